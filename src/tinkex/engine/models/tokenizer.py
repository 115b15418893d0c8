"""Tokenizers. The engine needs text of token ids, for stop strings, and makes no tokens of text.

Loaded on first use: most requests stop at token ids, and tokenizers cost time and memory.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tinkex.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence


class TextDecoder(Protocol):
    """The one thing that the engine needs of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """Give the text of token ids."""
        ...


_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Without one of these a folder has no tokenizer; transformers invents one."""
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files that `transformers` reads with the package sentencepiece."""


def may_have_tokenizer(location: str) -> bool:
    """Whether there may be a tokenizer: any hub id, and a folder that has a tokenizer's file."""
    folder = Path(location)
    if not location or not folder.is_dir():
        return bool(location)
    return any(_has(folder, name) for name in _FILES) or "auto_map" in _settings(folder)


def load_decoder(location: str, *, trust_remote_code: bool = False) -> TextDecoder | None:
    """Load the tokenizer at a folder or hub id; None where there is none.

    Args:
        location: a folder or hub id.
        trust_remote_code: let the model's repository run its own code here.

    Raises:
        EngineError: it cannot be loaded: a file is damaged, a package missing, no hub reached.
    """
    if not may_have_tokenizer(location):
        return None
    folder = Path(location)
    decoder = None
    if _has(folder, "tokenizer.json"):
        decoder = _from_file(folder / "tokenizer.json")
        if all(decoder.token_to_id(token) is not None for token in _added(folder)):
            return cast("TextDecoder", decoder)
    try:
        tokenizer = _load(location, trust_remote_code=trust_remote_code)
    except Exception as error:  # as of `load_fast_tokenizer`
        if decoder is not None:
            return cast("TextDecoder", decoder)
        # It may go to a client, whom the folder's name does not concern.
        reason = _missing_package(location, error) or type(error).__name__
        raise EngineError(
            f"the base model's tokenizer cannot be loaded ({reason}): give stop as token ids"
        ) from error
    return cast("TextDecoder", getattr(tokenizer, "backend_tokenizer", tokenizer))


def _from_file(path: Path) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415 - see the module's docstring

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no kind of its own
        raise EngineError(
            f"the base model's tokenizer.json cannot be read ({error}): give stop as token ids"
        ) from error


def load_fast_tokenizer(location: str, *, trust_remote_code: bool = False) -> Any | None:
    """Load a fast tokenizer of `transformers`, chat template and all; None where there is none.

    Args:
        location: a folder or hub id.
        trust_remote_code: let the model's repository run its own code here.

    Raises:
        EngineError: it cannot be loaded: a file is damaged, a package missing, no hub reached.
    """
    if not may_have_tokenizer(location):
        return None
    try:
        tokenizer = _load(location, trust_remote_code=trust_remote_code)
    except Exception as error:  # what it raises depends on what is wrong
        reason = _missing_package(location, error) or " ".join(str(error).split())[:500]
        reason = reason or type(error).__name__
        raise EngineError(f"the tokenizer of {location} cannot be loaded: {reason}") from error
    return tokenizer if hasattr(tokenizer, "backend_tokenizer") else None


def _load(location: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - see the module's docstring

    # Left out, transformers asks on the terminal whether to run a repository's code.
    return AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)


def _missing_package(location: str, error: Exception) -> str | None:
    """Say which package is missing, where `transformers` names the one that it tries last."""
    if find_spec("sentencepiece") is not None:
        return None
    folder = Path(location)
    if folder.is_dir():
        named = [name for name in _FILES if _has(folder, name)]
        wanted = bool(named) and named[0] in _SENTENCEPIECE
    else:
        wanted = "`tiktoken` is required" in str(error)
    return "it needs the package sentencepiece: `pip install sentencepiece`" if wanted else None


def _added(folder: Path) -> set[str]:
    """Name the tokens that are added beside tokenizer.json, as older tools write them."""
    decoder = _settings(folder).get("added_tokens_decoder", {})
    entries = decoder.values() if isinstance(decoder, dict) else ()
    named = {str(entry["content"]) for entry in entries if "content" in entry}
    return named.union(_settings(folder, "added_tokens.json"))


def _settings(folder: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    """Read a file of settings; empty where there is none, or it is no JSON object."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()
