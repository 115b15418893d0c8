"""Tokenizers of base models: there or not, and loaded once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tinkex
from tinkex.errors import APIStatusError
from tinkex.server.completer import texts
from tinkex.server.completer.texts import Texts, load_text
from tinkex.testing.clock import VirtualClock

SPROUT = str(Path(tinkex.__file__).parent / "engine" / "assets" / "sprout")


def test_there_is_no_text_without_a_tokenizer(tmp_path):
    assert load_text("some/model", "", VirtualClock()) is None
    assert load_text("some/model", str(tmp_path), VirtualClock()) is None


async def test_tokenizer_is_loaded_once_for_all_who_wait(monkeypatch):
    loads = []
    load = texts.load_text
    monkeypatch.setattr(texts, "load_text", lambda *args: loads.append(args) or load(*args))
    found = Texts(VirtualClock())
    first, second = await asyncio.gather(*(found.of("some/model", SPROUT) for _ in range(2)))
    assert first is second
    assert len(loads) == 1
    with pytest.raises(APIStatusError, match="no tokenizer") as error:
        await found.of("other/model", "")
    assert error.value.body["param"] == "model"
