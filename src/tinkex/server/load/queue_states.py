"""Why accepted work waits, for clients that ask.

Owns the words. `paused_capacity`: other users' adapters take the memory that it needs.
`paused_rate_limit`: requests of its run that come before it were refused for its key's limit.
Anything else, and work that is being done, is `active`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.server.futures import Operation

if TYPE_CHECKING:
    from tinkex.server.futures import Future
    from tinkex.server.services import Services

ACTIVE, PAUSED_CAPACITY, PAUSED_RATE_LIMIT = "active", "paused_capacity", "paused_rate_limit"


def queue_state(services: Services, future: Future) -> tuple[str, str | None]:
    """Give a pending future's state, and the reason where there is one to tell."""
    if future.operation is Operation.SAMPLE:
        if any(base.jobs.sample_waits(future.request_id) for base in services.bases):
            return PAUSED_CAPACITY, (
                "All memory for adapters is in use by samples and training runs at work; this "
                "sample begins when one of them ends."
            )
        return ACTIVE, None
    source = None if future.work is None else future.work.source
    run = None if source is None else services.runs.find(future.owner, source.source_id)
    if source is None or run is None:
        return ACTIVE, None
    if run.base.jobs.lane_waits(run.model_id):
        return PAUSED_CAPACITY, (
            "All memory for adapters is in use by training runs and samples at work; this run "
            "goes on when one of them ends."
        )
    if not run.holds(future):
        return ACTIVE, None
    limit = services.gate.limit_that_holds(source.key_id)
    missing = f"the request with seq_id {run.next_seq_id} of this run, which comes before it"
    if limit is not None:
        return PAUSED_RATE_LIMIT, f"It waits for {missing}; this key is limited to {limit}."
    return ACTIVE, f"It waits for {missing}: it has not arrived yet."
