"""What a key may spend.

Owns the comparison of a key's caps with what it has used. Counting is not done here: whoever counts
is asked through `UsageOfKeys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tinkex.server.refusal import too_expensive

if TYPE_CHECKING:
    from tinkex.server.accounts.caller import Caller
    from tinkex.server.accounts.store import AccountStore
    from tinkex.server.records.usage import Usage


class UsageOfKeys(Protocol):
    """Knows what each key has used."""

    async def used(self, key_id: str) -> Usage:
        """Return what a key has used since it was made."""
        ...


class Spending:
    """Holds keys to their caps.

    Args:
        store: knows the caps.
        usage: knows what was used.
    """

    def __init__(self, store: AccountStore, usage: UsageOfKeys) -> None:
        self._store = store
        self._usage = usage

    async def check(self, caller: Caller) -> None:
        """Refuse a caller whose key has used all it may.

        Raises:
            Refusal: 402, naming the cap. Work that was accepted before is finished: a cap can be
                passed by what one key had on its way.
        """
        key = self._store.key(caller.key_id)
        if key is None or not key.is_capped:
            return
        usage = await self._usage.used(key.key_id)
        for used, most, unit in (
            (usage.tokens, key.max_tokens, "tokens"),
            (usage.training_s + usage.sampling_s, key.max_seconds, "seconds"),
        ):
            if most is not None and used >= most:
                raise too_expensive(
                    f"The API key {key.name!r} has used {round(used, 3)} of the {most} {unit} that "
                    "it may use in all: take another key, or ask for more."
                )
