"""Which processor a request goes to.

Owns the choice and what it is made from: what processors announce, what this gateway has sent them,
how fast they answered, and who is left alone for a while because it failed. Knows no clock, no
network and no randomness but what it is given.

Two candidates are drawn at random and the better one is taken (M. Mitzenmacher, "The Power of Two
Choices in Randomized Load Balancing", 2001): several gateways that all saw the same announcement
then do not all run to the same processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from tinkex.errors import ConfigurationError
from tinkex.mesh.positive import not_positive

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping

    from tinkex.mesh.identity import PeerId


@dataclass(frozen=True, slots=True)
class Offer:
    """What a processor said of itself, at some moment."""

    peer: PeerId
    models: Mapping[str, str]
    """The revision of each base model that it runs, by name."""
    fingerprint: str
    """Of its numerics."""
    slots: int
    """Sequences that it samples at once."""
    free_slots: int
    waiting: int
    """Requests of anybody's that wait for a slot."""
    expires_at: float
    """Monotonic seconds after which it counts for nothing."""
    adapters: frozenset[str] = frozenset()
    """Content hashes of those that it has loaded."""
    adapter_models: frozenset[str] = frozenset()
    """Base models beside which it can load more of them."""
    contexts: Mapping[str, int] = field(default_factory=dict)
    """Tokens of prompt and completion that each base model takes there, by name."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a request needs of a processor."""

    model: str
    """The base model."""
    adapter: str | None = None
    """A content hash."""
    revision: str | None = None
    """Of the base model; only this one will do."""
    fingerprint: str | None = None
    """Preferred: its tokens are equal to those that were sampled already."""
    excluded: Collection[PeerId] = ()
    longer_than: int = 0
    """Tokens; a context of so many is too short."""
    waits: bool = False
    """Whether a place behind many that wait is better than none."""

    def beyond(self, offer: Offer) -> Wanted:
        """Return what is wanted once the context of who made an offer has proven too short."""
        context = max(offer.contexts.get(self.model, 0), self.longer_than)
        return msgspec.structs.replace(self, longer_than=context)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerConfig:
    """How candidates are weighed. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    first_latency_s: float = 0.02
    """Assumed of a processor that has not answered yet."""
    latency_weight: float = 0.3
    """Of the newest measurement, in the moving average."""
    slow_half_life_s: float = 10.0
    """What a processor was slower than `first_latency_s` counts half after so long without a new
    measurement: else one that was slow once is not asked again as long as others have room."""
    spread_s: float = 0.05
    """What a wholly busy processor costs, beside a wholly free one."""
    turn_s: float = 1.0
    """What waiting for a whole round of its slots costs."""
    load_adapter_s: float = 0.5
    """What loading an adapter costs."""
    queue_rounds: float = 2.0
    """A processor with more than so many rounds of its slots waiting takes nothing more."""
    first_ejection_s: float = 1.0
    """A processor that failed gets nothing for so long; doubled with every failure in a row."""
    longest_ejection_s: float = 60.0
    """Where that doubling stops."""
    misbehaved_ejection_s: float = 60.0
    """One that sent what makes no sense gets nothing for so long."""

    def __post_init__(self) -> None:
        may_be_zero = ("first_latency_s", "spread_s", "turn_s", "load_adapter_s", "queue_rounds")
        problems = not_positive(self, but=may_be_zero)
        for name in may_be_zero:
            if not getattr(self, name) >= 0:
                problems.append(f"{name} is {getattr(self, name):g}: it cannot be negative")
        if self.latency_weight > 1:
            problems.append(f"latency_weight is {self.latency_weight:g}: it is at most 1")
        if problems:
            raise ConfigurationError(problems)


class Shortage(StrEnum):
    """Why no processor could be chosen."""

    UNKNOWN = "unknown"
    """None runs this model."""
    AWAY = "away"
    """Those that ran it are lost, or excluded."""
    FULL = "full"
    """They have as much to do as they take."""


@dataclass(slots=True, eq=False)
class _Processor:
    """One processor, as this gateway sees it."""

    offer: Offer
    latency_s: float
    measured_at: float
    """Monotonic seconds of the newest measurement."""
    in_flight: int = 0
    """Sequences that this gateway has there now."""
    in_flight_then: int = 0
    """The same, when the offer came: those are in the offer's numbers."""
    failures: int = 0
    """In a row."""
    ejected_until: float = 0.0
    misbehaved_until: float = 0.0

    @property
    def load(self) -> int:
        """Sequences that it has or that wait, as far as one can know."""
        announced = self.offer.slots - self.offer.free_slots + self.offer.waiting
        return max(self.in_flight, announced + self.in_flight - self.in_flight_then, 0)

    @property
    def rounds(self) -> float:
        """Its load, in rounds of its slots."""
        return self.load / max(1, self.offer.slots)


class Place(msgspec.Struct, eq=False):
    """Sequences that a gateway has at a processor; given back once, however often it is asked."""

    offer: Offer
    _processor: _Processor
    _sequences: int = 1
    _held: bool = True

    def release(self) -> None:
        """Say that they are done. Harmless twice."""
        if self._held:
            self._held = False
            self._processor.in_flight -= self._sequences


class Balancer:
    """Chooses among processors.

    Args:
        config: how they are weighed.
        rng: draws the candidates.
    """

    def __init__(self, config: BalancerConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._processors: dict[PeerId, _Processor] = {}

    def heard(self, offer: Offer) -> None:
        """Take what a processor says of itself; the newest word counts."""
        known = self._processors.get(offer.peer)
        if known is None:
            first = self._config.first_latency_s
            self._processors[offer.peer] = _Processor(offer, first, measured_at=0.0)
            return
        known.offer = offer
        known.in_flight_then = known.in_flight

    def withdrew(self, peer: PeerId) -> None:
        """Take note that a processor leaves: it is chosen no more until it is heard of again."""
        known = self._processors.get(peer)
        if known is not None:
            known.offer = replace(known.offer, expires_at=float("-inf"))

    def offers(self, now: float) -> list[Offer]:
        """List what counts at `now`; forgets who has been silent and has nothing to do."""
        offers = [one.offer for one in self._processors.values() if now < one.offer.expires_at]
        if len(offers) < len(self._processors):
            self._forget(now)
        return offers

    def choose(self, wanted: Wanted, now: float) -> Offer | Shortage:
        """Choose a processor, or say why there is none."""
        allowed, running = [], False
        for one in self._processors.values():
            if now < one.offer.expires_at and _runs(one.offer, wanted):
                running = True
                if one.offer.peer not in wanted.excluded and now >= one.misbehaved_until:
                    allowed.append(one)
        if not allowed:
            return Shortage.AWAY if running else Shortage.UNKNOWN
        # One that only was lost a moment ago is better than nobody: perhaps it is back.
        fit = [one for one in allowed if now >= one.ejected_until] or allowed
        with_room = [one for one in fit if one.rounds < 1 + self._config.queue_rounds]
        if not with_room and not wanted.waits:
            return Shortage.FULL
        fit = with_room or fit
        fit = _preferred(fit, wanted)
        if len(fit) == 1:
            return fit[0].offer
        drawn = fit if len(fit) < 3 else self._rng.sample(fit, 2)
        return min(drawn, key=lambda one: self._cost(one, wanted, now)).offer

    def take(self, offer: Offer, sequences: int = 1) -> Place:
        """Count sequences that are sent to a processor, until the place is released."""
        processor = self._processors[offer.peer]
        processor.in_flight += sequences
        return Place(offer, processor, sequences)

    def in_flight(self, peer: PeerId) -> int:
        """Return how many sequences this gateway has at a processor."""
        known = self._processors.get(peer)
        return 0 if known is None else known.in_flight

    def answered(self, peer: PeerId, latency_s: float, now: float) -> None:
        """Take note that a processor began a request, so many seconds after it was asked."""
        known = self._processors.get(peer)
        if known is None:
            return
        self._measured(known, latency_s, now)
        self.back(peer)

    def unanswered(self, peer: PeerId, waited_s: float, now: float) -> None:
        """Take note that a processor had not begun a request when it was given up on.

        It would have taken so many seconds at least. Else who hangs would seem as quick as ever,
        and each request would wait for it first.
        """
        known = self._processors.get(peer)
        if known is not None and waited_s > self._latency(known, now):
            self._measured(known, waited_s, now)

    def back(self, peer: PeerId) -> None:
        """Take note that a processor that was lost answers again."""
        known = self._processors.get(peer)
        if known is not None:
            known.failures = 0
            known.ejected_until = 0.0

    def failed(self, peer: PeerId, now: float) -> None:
        """Take note that a processor was lost or failed: left alone, each time twice as long."""
        known = self._processors.get(peer)
        if known is None:
            return
        known.failures += 1
        back_off = self._config.first_ejection_s * 2.0 ** min(known.failures - 1, 30)
        known.ejected_until = now + min(back_off, self._config.longest_ejection_s)

    def misbehaved(self, peer: PeerId, now: float) -> None:
        """Take note that a processor sent what it must not: not chosen at all for a while."""
        known = self._processors.get(peer)
        if known is not None:
            known.misbehaved_until = now + self._config.misbehaved_ejection_s

    def _measured(self, processor: _Processor, latency_s: float, now: float) -> None:
        weight, before = self._config.latency_weight, self._latency(processor, now)
        processor.latency_s = before + weight * (latency_s - before)
        processor.measured_at = now

    def _latency(self, processor: _Processor, now: float) -> float:
        """Return what is to be expected of a processor by now, in seconds."""
        first = self._config.first_latency_s
        beyond = processor.latency_s - first
        if beyond <= 0:
            return processor.latency_s
        past = max(now - processor.measured_at, 0.0) / self._config.slow_half_life_s
        return first + beyond * math.exp2(-past)

    def _forget(self, now: float) -> None:
        gone = [
            peer
            for peer, one in self._processors.items()
            if now >= max(one.offer.expires_at, one.ejected_until, one.misbehaved_until)
            and one.in_flight == 0
        ]
        for peer in gone:
            del self._processors[peer]

    def _cost(self, one: _Processor, wanted: Wanted, now: float) -> float:
        """Return about how many seconds later a request begins there than at an idle one."""
        config = self._config
        rounds = one.rounds
        cost = self._latency(one, now) + config.spread_s * min(rounds, 1.0)
        cost += config.turn_s * max(rounds - 1.0, 0.0)
        if wanted.adapter is not None and wanted.adapter not in one.offer.adapters:
            cost += config.load_adapter_s
        return cost


def _runs(offer: Offer, wanted: Wanted) -> bool:
    revision = offer.models.get(wanted.model)
    if revision is None or wanted.revision not in {None, revision}:
        return False
    if wanted.longer_than and offer.contexts.get(wanted.model, 0) <= wanted.longer_than:
        return False
    return (
        wanted.adapter is None
        or wanted.adapter in offer.adapters
        or wanted.model in offer.adapter_models
    )


def _preferred(fit: list[_Processor], wanted: Wanted) -> list[_Processor]:
    """Keep those with equal numerics, then those that have the adapter and room; else all."""
    if wanted.fingerprint is not None:
        fit = [one for one in fit if one.offer.fingerprint == wanted.fingerprint] or fit
    if wanted.adapter is not None:
        fit = [one for one in fit if wanted.adapter in one.offer.adapters and one.rounds < 1] or fit
    return fit
