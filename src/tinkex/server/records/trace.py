"""A session's requests as a timeline, for https://ui.perfetto.dev or chrome://tracing.

Owns the form: JSON of the Trace Event Format, which both open whatever the file is called. Each
training run and each sampling session is a process; each request is a slice from its acceptance to
its end, with two slices in it, `queued` until an engine first worked on it and `running` after
that. Requests at the same time lie in lanes, which are the process's threads. Times are
microseconds of unix time. What is still running is not in it, and what is older than
`trace_retention_s` neither.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import select

from tinkex.server.records.tables import REQUESTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import RowMapping

    from tinkex.server.records.ledger import Ledger
    from tinkex.server.records.store import RecordStore

PAGE = 1000
_HEAD = b'{"displayTimeUnit":"ms","traceEvents":[\n'
_TAIL = b"\n]}\n"


class Traces:
    """Reads the requests of sessions as traces."""

    def __init__(self, ledger: Ledger, store: RecordStore) -> None:
        self._ledger = ledger
        self._store = store

    async def has(self, session_id: str) -> bool:
        """Whether there is anything of a session to show."""
        await self._ledger.settle()
        return bool(await self._page(session_id, None, limit=1))

    async def chunks(self, session_id: str) -> AsyncIterator[bytes]:
        """Give a session's trace piece by piece, as JSON."""
        await self._ledger.settle()
        timeline, before, lead = Timeline(), None, _HEAD
        while page := await self._page(session_id, before, limit=PAGE):
            before = page[-1]["number"]
            events = [event for row in page for event in timeline.events(row)]
            yield lead + b",\n".join(orjson.dumps(event) for event in events)
            lead = b",\n"
        yield (_HEAD if before is None else b"") + _TAIL

    async def _page(self, session_id: str, before: int | None, *, limit: int) -> list[RowMapping]:
        """Return requests in the reverse order of their ends."""
        statement = select(REQUESTS).where(REQUESTS.c.session_id == session_id)
        if before is not None:
            statement = statement.where(REQUESTS.c.number < before)
        rows = await self._store.all(statement.order_by(REQUESTS.c.number.desc()).limit(limit))
        return list(rows)


class Timeline:
    """Puts requests, the last to end first, into lanes: none covers another."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._lanes: dict[str, list[tuple[float, int]]] = {}
        """By process: when the earliest request of each lane begins, the latest of these first."""

    def events(self, row: RowMapping) -> Iterator[dict[str, Any]]:
        """Give the trace's events of one request."""
        source = row["source_id"] or row["session_id"]
        new = source not in self._processes
        place = {
            "pid": self._processes.setdefault(source, len(self._processes) + 1),
            "tid": self._lane(source, row["accepted_at"], row["finished_at"]),
        }
        if new:
            yield {"ph": "M", "name": "process_name", **place, "args": {"name": source}}
        began = row["finished_at"] if row["began_at"] is None else row["began_at"]
        arguments = {
            "request_id": row["request_id"],
            "engine_seconds": row["engine_s"],
            **row["amounts"],
        }
        if row["error"] is not None:
            arguments["error"] = row["error"]
        whole = _slice(row["operation"], row["accepted_at"], row["finished_at"], place)
        yield {**whole, "cat": "request", "args": arguments}
        yield {**_slice("queued", row["accepted_at"], began, place), "cat": "queued"}
        if row["began_at"] is not None:
            yield {**_slice("running", began, row["finished_at"], place), "cat": "running"}

    def _lane(self, source: str, start: float, end: float) -> int:
        """Take the lane whose earliest request begins last, if that is after this one's end."""
        lanes = self._lanes.setdefault(source, [])
        if lanes and -lanes[0][0] >= end:
            return heapq.heapreplace(lanes, (-start, lanes[0][1]))[1]
        heapq.heappush(lanes, (-start, len(lanes) + 1))
        return len(lanes)


def _slice(name: str, start: float, end: float, place: dict[str, int]) -> dict[str, Any]:
    first = _microseconds(start)
    return {"ph": "X", "name": name, "ts": first, "dur": _microseconds(end) - first, **place}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
