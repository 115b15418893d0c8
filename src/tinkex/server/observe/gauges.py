"""What a server holds at the moment somebody asks, as Prometheus' samples.

Owns which counts are shown under which names. Counts nothing itself: everything here is kept by
those whose it is, and reading it waits for nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prometheus_client.core import Metric

    from tinkex.server.models.bases import HostedBase
    from tinkex.server.services import Services


class ServerGauges(Collector):
    """Reads a server's state for its registry.

    Args:
        services: the server.
        database: its file; those beside it (WAL) count too.
    """

    def __init__(self, services: Services, database: Path) -> None:
        self._s = services
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: the state is not there before the server has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        yield from self._counts()
        yield from self._engines(list(self._s.bases))

    def _counts(self) -> Iterator[Metric]:
        s = self._s
        found = {
            "futures_open": ("Accepted work not finished.", s.futures.open_count),
            "futures_open_bytes": ("Request data that waits to run.", s.futures.open_bytes),
            "results_bytes": ("Results kept for collection.", s.futures.result_bytes),
            "sessions": ("Live sessions.", len(s.sessions)),
            "training_runs": ("Training runs that are loaded.", len(s.runs)),
            "sampling_sessions": ("Sampling sessions that are open.", len(s.samplers)),
            "database_bytes": (
                "Size of the database, with its write-ahead log and the journal in it.",
                sum(size(path) for path in self._database.parent.glob(f"{self._database.name}*")),
            ),
        }
        for name, (text, value) in found.items():
            yield GaugeMetricFamily(f"tinkex_{name}", text, value)

    def _engines(self, bases: list[HostedBase]) -> Iterator[Metric]:
        seconds = CounterMetricFamily(
            "tinkex_engine_seconds", "Time of an engine's thread.", labels=("base_model", "work")
        )
        tokens = CounterMetricFamily(
            "tinkex_tokens",
            "Tokens trained on, computed of prompts, taken from the prefix cache, and sampled.",
            labels=("base_model", "kind"),
        )
        preemptions = CounterMetricFamily(
            "tinkex_preemptions",
            "Samples that gave their memory to older ones, and were computed again.",
            labels=("base_model",),
        )
        queues = GaugeMetricFamily(
            "tinkex_queue_length",
            "Training runs with work and sample requests, and those of them without memory.",
            labels=("base_model", "queue"),
        )
        held = GaugeMetricFamily(
            "tinkex_adapters",
            "Adapters in training and samplers, by the memory they lie in.",
            labels=("base_model", "kind", "place"),
        )
        held_bytes = GaugeMetricFamily(
            "tinkex_adapters_bytes", "The bytes of these.", labels=("base_model", "kind", "place")
        )
        for base in bases:
            now = base.jobs.statistics
            for work, value in (("training", now.training_s), ("sampling", now.sampling_s)):
                seconds.add_metric((base.name, work), value)
            for kind in ("trained", "prefilled", "cached", "sampled"):
                tokens.add_metric((base.name, kind), getattr(now, f"{kind}_tokens"))
            preemptions.add_metric((base.name,), now.preemptions)
            for queue in ("lanes", "lanes_without_memory", "samples", "samples_without_memory"):
                queues.add_metric((base.name, queue), getattr(now, queue))
            for (kind, place), (count, size_bytes) in now.places.items():
                held.add_metric((base.name, kind, place), count)
                held_bytes.add_metric((base.name, kind, place), size_bytes)
        yield from (seconds, tokens, preemptions, queues, held, held_bytes)


def size(path: Path) -> int:
    """Give a file's size in bytes; 0 for one that has just gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
