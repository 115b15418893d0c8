"""What one key may do in a minute, and hold at a time.

Owns the limits by key: requests and tokens a minute, open futures. What is above one is answered
429, with the time after which it makes sense to come again; nothing is dropped, and nothing that
was accepted is held back. Sessions, runs and samplers are counted where they are kept.

A request of a run is never refused while others wait for it: it would hold them up until their
time is over. Tokens are taken by the request's size when it is accepted, and set right when it
ends, by what it used.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkex.server.futures import Operation
from tinkex.server.load.buckets import Bucket
from tinkex.server.observe.context import current_request
from tinkex.server.refusal import Refusal, try_later

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinkex._clock import Clock
    from tinkex.server.config import Limits
    from tinkex.server.futures import Future
    from tinkex.server.observe.metrics import ServerMetrics

BUSY_RETRY_S = 1.0
MEMORY_S = 60.0
"""Seconds for which a refusal counts as the reason why a run waits."""
MOST_KEYS = 10_000
"""Keys whose buckets are kept; those used longest ago go, by then full again."""
BYTES_PER_TOKEN = {Operation.SAMPLE: 8, Operation.FORWARD_BACKWARD: 20}
"""Of a request's data: tokens as int64, and in training a target and a weight for each."""
REQUESTS, TOKENS = "requests", "tokens"


@dataclass(slots=True)
class _Key:
    """One key's state."""

    buckets: dict[str, Bucket]
    open_futures: int = 0
    refused: dict[str, float] = field(default_factory=dict)
    """Monotonic seconds of the last refusal, by the limit's name."""


class KeyGate:
    """The limits of every key.

    Args:
        limits: the settings.
        clock: tells time.
        metrics: counts refusals.
    """

    def __init__(self, limits: Limits, *, clock: Clock, metrics: ServerMetrics) -> None:
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        given = {REQUESTS: limits.requests_per_minute, TOKENS: limits.tokens_per_minute}
        self._rates = {name: rate for name, rate in given.items() if rate is not None}
        self._keys: OrderedDict[str, _Key] = OrderedDict()
        self._taken: dict[str, tuple[str, int]] = {}
        """By open future: its key, and the tokens that were taken for it."""

    @property
    def has_rates(self) -> bool:
        """Whether there is a limit by the minute at all."""
        return bool(self._rates)

    def take_request(self, key_id: str) -> None:
        """Count a request that is no work of a run's sequence.

        Raises:
            Refusal: 429 when the key has used up its requests.
        """
        if REQUESTS in self._rates:
            key = self._key(key_id)
            self._check_rate(key, REQUESTS)
            key.buckets[REQUESTS].take(1)

    def check(self) -> None:
        """Refuse more work of the key whose request is being served, if it has too much.

        Raises:
            Refusal: 429.
        """
        request = current_request.get()
        if request is None or request.key_id is None:
            return
        key = self._key(request.key_id)
        if key.open_futures >= self._limits.max_open_futures_per_key:
            raise self._refuse(
                key,
                "open_futures",
                f"{key.open_futures} requests of this key are pending; it may have "
                f"{self._limits.max_open_futures_per_key}. Wait for some of them.",
                BUSY_RETRY_S,
            )
        for name in self._rates:
            if name != REQUESTS or not request.counted:
                self._check_rate(key, name)

    def opened(self, future: Future) -> None:
        """Count accepted work on the key whose request is being served."""
        request = current_request.get()
        if request is None or request.key_id is None:
            return
        key = self._key(request.key_id)
        key.open_futures += 1
        per_token = BYTES_PER_TOKEN.get(future.operation)
        tokens = 0 if per_token is None else future.request_bytes // per_token
        self._taken[future.request_id] = (request.key_id, tokens)
        if REQUESTS in self._rates and not request.counted:
            key.buckets[REQUESTS].take(1)
        if TOKENS in self._rates:
            key.buckets[TOKENS].take(tokens)

    def finished(self, future: Future) -> None:
        """Set right what accepted work was counted as, now that it has ended."""
        key_id, tokens = self._taken.pop(future.request_id, ("", 0))
        key = self._keys.get(key_id)
        if key is None:
            return
        key.open_futures -= 1
        if TOKENS in self._rates and future.work is not None:
            used = future.work.used(failed=future.error is not None)
            spent = (
                used.forward_tokens
                + used.forward_backward_tokens
                + used.prefilled_tokens
                + used.cached_tokens
                + used.sampled_tokens
            )
            self._filled(key, TOKENS).take(spent - tokens)

    def limit_that_holds(self, key_id: str) -> str | None:
        """Say which limit a key ran into of late, in words; None for none."""
        key = self._keys.get(key_id)
        if key is None:
            return None
        since = self._clock.monotonic() - MEMORY_S
        for name, rate in self._rates.items():
            if key.refused.get(name, since) > since:
                return f"{rate} {name} a minute"
        return None

    def headers(self, key_id: str) -> Mapping[str, str]:
        """Give the headers that tell a client what its key may still use."""
        found = {}
        for name, rate in self._rates.items():
            bucket = self._filled(self._key(key_id), name)
            found[f"x-ratelimit-limit-{name}"] = str(rate)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
            found[f"x-ratelimit-reset-{name}"] = f"{max(0.0, bucket.full_in_s):.3f}s"
        return found

    def _check_rate(self, key: _Key, name: str) -> None:
        bucket = self._filled(key, name)
        if not bucket.is_open:
            raise self._refuse(
                key,
                name,
                f"This key may use {self._rates[name]} {name} a minute, and has. Wait "
                f"{bucket.wait_s:.2f} s and send again.",
                bucket.wait_s,
            )

    def _refuse(self, key: _Key, name: str, detail: str, retry_after_s: float) -> Refusal:
        key.refused[name] = self._clock.monotonic()
        self._metrics.refused(name)
        return try_later(detail, retry_after_s=retry_after_s)

    def _filled(self, key: _Key, name: str) -> Bucket:
        bucket = key.buckets[name]
        bucket.fill(self._clock.monotonic())
        return bucket

    def _key(self, key_id: str) -> _Key:
        key = self._keys.get(key_id)
        if key is None:
            now = self._clock.monotonic()
            buckets = {name: Bucket(rate, now) for name, rate in self._rates.items()}
            key = self._keys[key_id] = _Key(buckets)
            self._drop_idle()
        self._keys.move_to_end(key_id)
        return key

    def _drop_idle(self) -> None:
        while len(self._keys) > MOST_KEYS:
            oldest = next(iter(self._keys))
            if self._keys[oldest].open_futures:
                self._keys.move_to_end(oldest)
                return
            del self._keys[oldest]
