"""Tokenizers of base models: there or not, and loaded once."""

from __future__ import annotations

import asyncio
import io
import shutil
from pathlib import Path

import pytest

import tinkex
from tinkex._logs import make_logger
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
    monkeypatch.setattr(
        texts, "load_text", lambda *args, **options: loads.append(args) or load(*args, **options)
    )
    found = Texts(VirtualClock(), make_logger("info", io.StringIO()))
    first, second = await asyncio.gather(*(found.of("some/model", SPROUT) for _ in range(2)))
    assert first is second
    assert len(loads) == 1
    with pytest.raises(APIStatusError, match="no tokenizer") as error:
        await found.of("other/model", "")
    assert error.value.body["param"] == "model"


async def test_tokenizer_that_cannot_be_loaded_is_logged_and_tried_again(tmp_path):
    folder = shutil.copytree(SPROUT, tmp_path / "model")
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{")
    log = io.StringIO()
    found = Texts(VirtualClock(), make_logger("info", log))
    for _ in range(2):
        with pytest.raises(APIStatusError, match="cannot be loaded") as error:
            await found.of("some/model", str(folder))
        assert str(tmp_path) not in str(error.value)
    assert str(folder) in log.getvalue()
    (folder / "tokenizer.json").write_text(whole)
    assert await found.of("some/model", str(folder))
