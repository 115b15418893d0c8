"""The adapters that accounts published: what gateways write of them, and what a name stands for.

Owns the entries of the gateways' "adapters" feed, their fold, and the rules of names. Pure.

A request names a model in one of four ways:

    <base>               a base model
    <base>;<name>        an adapter, which must be of that base
    <name>               an adapter
    mesh://<content>     an adapter by its hash, for who may see it under any name

A base model comes before an adapter of its name (gateways know which there are). An account's own
adapter comes before one of the same name that somebody shared; of two that were shared, the one
that was first. A private one is its owner's alone: to others it does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from tinkex.openai_api.refusal import refused

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
CONTENT = re.compile(r"[0-9a-f]{64}")
CONTENT_SCHEME = "mesh://"


class CatalogRecord(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"
):
    """Base of what stands in an adapters feed."""

    account_id: str
    name: str
    at: Annotated[float, msgspec.Meta(ge=0.0, lt=2.0**53)]
    """Unix seconds."""


class AdapterPublished(CatalogRecord, frozen=True, tag="published"):
    """An account makes an adapter known, or changes what a name of its stands for."""

    base_model: str
    content: str
    """The hash of its manifest, in hexadecimal."""
    shared: bool


class AdapterUnpublished(CatalogRecord, frozen=True, tag="unpublished"):
    """An account makes it unknown again."""


CatalogEvent = AdapterPublished | AdapterUnpublished


def encode_catalog(event: CatalogEvent) -> bytes:
    """Return an entry's payload."""
    return msgspec.msgpack.encode(event)


def decode_catalog(payload: bytes) -> CatalogEvent:
    """Read an entry's payload, which another gateway wrote.

    Raises:
        ValueError, RecursionError: it is none.
    """
    event: CatalogEvent = msgspec.msgpack.decode(payload, type=CatalogEvent)
    return event


def check_publication(name: str, content: str) -> None:
    """Check how an adapter is to be called.

    Raises:
        APIStatusError: 400, naming the field.
    """
    if not NAME.fullmatch(name):
        raise refused(
            "An adapter's name is 1 to 128 letters, digits, '.', '_', '/' and '-', and begins with "
            "a letter or digit.",
            param="name",
        )
    if not CONTENT.fullmatch(content):
        raise refused(
            "The content of an adapter is 64 hexadecimal digits in lower case.", param="content"
        )


class NamedModel(msgspec.Struct, frozen=True):
    """What a request's model stands for."""

    base_model: str
    adapter: AdapterPublished | None = None

    @property
    def content(self) -> str | None:
        """The adapter's hash."""
        return None if self.adapter is None else self.adapter.content


class AdapterCatalog:
    """The fold of all gateways' adapters feeds.

    Entries may come in any order: of two about one name, what is later in the feed's order holds.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], tuple[tuple[Any, ...], CatalogEvent]] = {}
        self._published: dict[str, dict[str, AdapterPublished]] = {}
        """By name, by account."""
        self._by_content: dict[str, set[tuple[str, str]]] = {}

    def apply(self, order: tuple[Any, ...], event: CatalogEvent) -> None:
        """Fold one entry, with its place in the feed's order."""
        key = (event.account_id, event.name)
        known = self._latest.get(key)
        if known is not None and known[0] >= order:
            return
        self._remove(key)
        self._latest[key] = (order, event)
        if isinstance(event, AdapterPublished):
            self._published.setdefault(event.name, {})[event.account_id] = event
            self._by_content.setdefault(event.content, set()).add(key)

    def visible(self, account_id: str) -> Iterator[AdapterPublished]:
        """Go through what an account may name: its own, and what is shared."""
        for name in self._published:
            found = self.find(account_id, name)
            if found is not None:
                yield found

    def find(self, account_id: str, name: str) -> AdapterPublished | None:
        """Return what a name stands for, for an account."""
        by_account = self._published.get(name, {})
        own = by_account.get(account_id)
        if own is not None:
            return own
        shared = [one for one in by_account.values() if one.shared]
        return min(shared, key=lambda one: (one.at, one.account_id), default=None)

    def owned(self, account_id: str, name: str) -> AdapterPublished | None:
        """Return an account's own adapter of a name."""
        return self._published.get(name, {}).get(account_id)

    def count(self, account_id: str) -> int:
        """Return how many adapters an account has published."""
        return sum(account_id in by_account for by_account in self._published.values())

    def resolve(self, account_id: str, model: str) -> NamedModel:
        """Say what a request's model stands for; what is no adapter is taken for a base model."""
        if model.startswith(CONTENT_SCHEME):
            by_hash = self._of_content(account_id, model.removeprefix(CONTENT_SCHEME))
            return NamedModel(model) if by_hash is None else NamedModel(by_hash.base_model, by_hash)
        base, _, name = model.rpartition(";")
        found = self.find(account_id, name)
        if found is None or base not in {"", found.base_model}:
            return NamedModel(model)
        return NamedModel(found.base_model, found)

    def _of_content(self, account_id: str, content: str) -> AdapterPublished | None:
        for owner, name in sorted(self._by_content.get(content, ())):
            one = self._published[name][owner]
            if one.shared or owner == account_id:
                return one
        return None

    def _remove(self, key: tuple[str, str]) -> None:
        account_id, name = key
        by_account = self._published.get(name, {})
        old = by_account.pop(account_id, None)
        if not by_account:
            self._published.pop(name, None)
        if old is not None:
            keys = self._by_content[old.content]
            keys.discard(key)
            if not keys:
                del self._by_content[old.content]
