"""One log line for each completion, at each worker that it passed; one id in all of them.

Owns the id's way through the calls: it is the gateway's, stands in its receipt and in the reply's
`id`, and goes to processors as a W3C `traceparent`. No prompt, no account, no name of an adapter.
"""

from __future__ import annotations

import logging

REQUEST_ID_CHARS = 24
_FILL = "0" * 8


def trace_of(request_id: str) -> str:
    """Make the `traceparent` of a request, for calls that are made for it."""
    return f"00-{request_id}{_FILL}-{request_id[:16]}-01"


def request_of(trace: str) -> str:
    """Read the id off what `trace_of` made; of another trace, all of its id; of none, nothing."""
    found = trace[3:35]
    return found.removesuffix(_FILL) if len(found) == REQUEST_ID_CHARS + len(_FILL) else ""


def log_ended(logger: logging.Logger, request_id: str, outcome: str, **fields: object) -> None:
    """Log how a completion ended.

    Args:
        logger: the worker's.
        request_id: names it, everywhere.
        outcome: `ok`, `left` where its reader went away, or the class of an error.
        fields: numbers, and what names nobody.
    """
    told = {"request_id": request_id, "outcome": outcome, **fields}
    logger.info("completion ended", extra={"fields": told})
