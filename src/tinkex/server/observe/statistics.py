"""What one engine has done and holds, counted in its thread and read from any other.

Owns the counters. The thread publishes a new snapshot after each turn, so that nobody who looks
waits for the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinkex.engine.engine import Engine
    from tinkex.types import SampleResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Sums since the engine started, and what it holds now."""

    training_s: float = 0.0
    """Seconds of its time in training runs' work."""
    sampling_s: float = 0.0
    """Seconds of its time in sampling."""
    trained_tokens: int = 0
    """Tokens of the data that went through forward or forward_backward."""
    prefilled_tokens: int = 0
    """Prompt tokens computed."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache instead."""
    sampled_tokens: int = 0
    """Tokens of the samples that were finished."""
    preemptions: int = 0
    """How often a sample gave its memory to an older one, and was computed again."""
    lanes: int = 0
    """Training runs that have work."""
    lanes_without_memory: int = 0
    """Of these, those that wait for room for their adapter."""
    samples: int = 0
    """Sample requests in the engine, and on their way into it."""
    samples_without_memory: int = 0
    """Of these, those that wait for room for their weights."""
    places: Mapping[tuple[str, str], tuple[int, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Count and bytes of what it holds, by kind ("adapter", "sampler") and place ("device", "host",
    "disk")."""


class EngineCounter:
    """Counts in the engine's thread.

    Args:
        engine: tells what it holds.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._training_s = 0.0
        self._sampling_s = 0.0
        self._trained_tokens = 0
        self._sampled_tokens = 0
        self.latest = EngineStatistics()
        """The last snapshot; replaced, never changed."""

    def trained(self, seconds: float) -> None:
        """Count a training slice's time."""
        self._training_s += seconds

    def sampled(self, seconds: float) -> None:
        """Count a sampling step's time."""
        self._sampling_s += seconds

    def tokens_trained(self, tokens: int) -> None:
        """Count the tokens of a training slice."""
        self._trained_tokens += tokens

    def finished(self, response: SampleResponse) -> None:
        """Count a finished sample's tokens."""
        self._sampled_tokens += sum(len(sequence.tokens) for sequence in response.sequences)

    def publish(
        self, *, lanes: int, lanes_without_memory: int, samples: int, samples_without_memory: int
    ) -> None:
        """Take a snapshot."""
        self.latest = EngineStatistics(
            training_s=self._training_s,
            sampling_s=self._sampling_s,
            trained_tokens=self._trained_tokens,
            prefilled_tokens=self._engine.prefilled_tokens,
            cached_tokens=self._engine.cached_tokens,
            sampled_tokens=self._sampled_tokens,
            preemptions=self._engine.preemptions,
            lanes=lanes,
            lanes_without_memory=lanes_without_memory,
            samples=samples,
            samples_without_memory=samples_without_memory,
            places=self._engine.places(),
        )
