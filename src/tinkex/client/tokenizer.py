"""Which tokenizer a model has, and one loaded copy of each.

Owns the table of special cases and the cache. `transformers` is imported on use: a client that
never asks for a tokenizer does not need it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tinkex.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Callable

LLAMA_3_TOKENIZER = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"
"""Stands in for the gated repositories of Llama 3. Older clients used
`baseten/Meta-Llama-3-tokenizer` and `unsloth/Meta-Llama-3.1-8B-Instruct`."""

_SHIPPED = {"tinkex/sprout": ("engine", "assets", "sprout")}
"""Models whose tokenizer is a folder of this package."""

_PINNED = {
    "moonshotai/Kimi-K2-Thinking": "612681931a8c906ddb349f8ad0f582cb552189cd",
    "moonshotai/Kimi-K2.5": "4d01dfe0332d63057c186e0b262165819efb6611",
    "moonshotai/Kimi-K2.6": "b5aabbfb20227ed42becbf5541dbffd213942c58",
    "moonshotai/Kimi-K3": "f831ab66814297da540d832a5235f8e904f29d06",
}
"""Tokenizers that are code: the revision that was looked at, and no other, is run."""

_RENAMED = {"moonshotai/Kimi-K2.5-Text-Only": "moonshotai/Kimi-K2.5"}

_PRIVATE = ("TML/", "thinkingmachines/")
"""Names whose tokenizers only the package `tml_tokenizers` has."""


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Where a tokenizer is loaded from; equal sources share one loaded copy."""

    location: str
    """Hub id or folder."""
    revision: str | None = None
    """Commit to load, where the tokenizer is code."""
    shipped: bool = False
    """A folder of this package, in the form that all tokenizers have that need no code."""

    @property
    def runs_code(self) -> bool:
        """Whether loading it runs code of its repository (at a pinned revision)."""
        return self.revision is not None


def resolve_tokenizer(model_name: str, tokenizer_id: str | None = None) -> TokenizerSource:
    """Return the tokenizer of a model.

    Args:
        model_name: name of the base model; a `:suffix` is ignored.
        tokenizer_id: what the server says; wins over every rule about names.
    """
    name = tokenizer_id or _by_model_name(model_name.split(":", 1)[0])
    name = _RENAMED.get(name, name)
    if shipped := _SHIPPED.get(name):
        return TokenizerSource(str(files("tinkex").joinpath(*shipped)), shipped=True)
    return TokenizerSource(name, _PINNED.get(name))


def _by_model_name(name: str) -> str:
    if name.startswith("meta-llama/Llama-3"):
        return LLAMA_3_TOKENIZER
    if name.count("/") == 2 and not name.startswith("/"):  # organisation/model/variant
        return name.rpartition("/")[0]
    return name


class TokenizerCache:
    """Loaded tokenizers by source. Safe from any thread; each is loaded once.

    Args:
        load: makes a tokenizer; the default uses `transformers`.
    """

    def __init__(self, load: Callable[[TokenizerSource], Any] | None = None) -> None:
        self._load = load or load_tokenizer
        self._lock = threading.Lock()
        self._entries: dict[TokenizerSource, _Entry] = {}

    def get(self, source: TokenizerSource) -> Any:
        """Return the tokenizer, loading it if nobody has; a failed load is tried again.

        Raises:
            TokenizerError: it cannot be loaded.
        """
        with self._lock:
            entry = self._entries.setdefault(source, _Entry())
        with entry.lock:
            if entry.tokenizer is None:
                entry.tokenizer = self._load(source)
            return entry.tokenizer


class _Entry:
    """One tokenizer, and the lock of those who wait for it to be loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokenizer: Any = None


def load_tokenizer(source: TokenizerSource) -> Any:
    """Load a tokenizer with `transformers`.

    Raises:
        TokenizerError: a package is missing, or the source cannot be loaded.
    """
    if source.location.startswith(_PRIVATE):
        return _load_private(source.location)
    try:
        if source.shipped:
            # What AutoTokenizer makes of it; that imports torch, for seconds, to find out.
            from transformers import PreTrainedTokenizerFast as Tokenizer  # noqa: PLC0415 - slow
        else:
            from transformers import AutoTokenizer as Tokenizer  # noqa: PLC0415 - slower
    except ImportError as error:
        raise TokenizerError(
            "Tokenizers need the package transformers: `pip install transformers`."
        ) from error
    pinned = {"revision": source.revision, "trust_remote_code": True} if source.runs_code else {}
    try:
        return Tokenizer.from_pretrained(source.location, **pinned)
    except (OSError, ValueError, ImportError) as error:
        raise TokenizerError(
            f"The tokenizer {source.location!r} cannot be loaded: {error}. Load one yourself with "
            "transformers.AutoTokenizer if it has another name or place."
        ) from error


def _load_private(name: str) -> Any:
    try:
        from tml_tokenizers.tinker_tokenizers import (  # noqa: PLC0415 - rarely installed
            get_tinker_tokenizer,
        )
    except ImportError as error:
        raise TokenizerError(
            f"The tokenizer of {name!r} is only in the package tml_tokenizers, which is not "
            "installed. Tokenize with that model's own renderer."
        ) from error
    tokenizer = get_tinker_tokenizer(name)
    if tokenizer is None:
        raise TokenizerError(f"tml_tokenizers knows no tokenizer for {name!r}.")
    return tokenizer
