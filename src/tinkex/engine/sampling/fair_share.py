"""Who has been served least: counts of tokens, for owners and for the samplers of each.

Policy only: no tensors, no clock. A party that comes back after a pause starts no lower than the
least of those that are there, so that idleness earns no credit (the virtual token counter of Sheng
et al. 2024, "Fairness in Serving Large Language Models", arXiv 2401.00588); one that stays away
for a moment keeps its count, so that leaving and coming back pays no debt.
"""

from __future__ import annotations

from collections import Counter

Party = tuple[str, str | None]
"""An owner, and one of its samplers (None: the base model)."""


class TokenCounts:
    """Tokens served to each of several names."""

    def __init__(self) -> None:
        self._served: dict[object, int] = {}
        self._jobs: Counter[object] = Counter()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def served(self, name: object) -> int:
        """Give what a name that has entered was served."""
        return self._served[name]

    def enter(self, name: object) -> None:
        """Count a job of `name` in."""
        if name not in self._jobs:
            self._served[name] = max(self._served.get(name, 0), self._least())
        self._jobs[name] += 1

    def charge(self, name: object, tokens: int) -> None:
        """Add tokens to what a name that has entered was served."""
        self._served[name] += tokens

    def leave(self, name: object) -> None:
        """Count a job of `name` out; counts that no longer tell anything are dropped."""
        self._jobs[name] -= 1
        if self._jobs[name]:
            return
        del self._jobs[name]
        least = self._least()
        self._served = {
            name: served
            for name, served in self._served.items()
            if name in self._jobs or (self._jobs and served > least)
        }

    def _least(self) -> int:
        return min((self._served[name] for name in self._jobs), default=0)


class FairShares:
    """Ranks parties: owners take turns by tokens, and the samplers of one owner take turns in its.

    A party enters once for each of its jobs, and leaves as often.
    """

    def __init__(self) -> None:
        self._owners = TokenCounts()
        self._samplers: dict[str, TokenCounts] = {}

    def enter(self, party: Party) -> None:
        """Count a job in."""
        owner, sampler = party
        self._owners.enter(owner)
        self._samplers.setdefault(owner, TokenCounts()).enter(sampler)

    def leave(self, party: Party) -> None:
        """Count a job out."""
        owner, sampler = party
        self._owners.leave(owner)
        self._samplers[owner].leave(sampler)
        if not self._samplers[owner]:
            del self._samplers[owner]

    def charge(self, party: Party, tokens: int) -> None:
        """Add tokens to what a party that has entered was served; negative ones take back."""
        owner, sampler = party
        self._owners.charge(owner, tokens)
        self._samplers[owner].charge(sampler, tokens)

    def rank(self, party: Party) -> tuple[int, int]:
        """Give a party's place: the lowest is next."""
        owner, sampler = party
        return self._owners.served(owner), self._samplers[owner].served(sampler)
