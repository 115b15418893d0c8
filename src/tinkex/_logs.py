"""A process's log lines: structured, on stderr, without secrets.

Owns their form. Nothing is configured for the process: a server or worker has a logger of its own
and hands it on. Request bodies, headers, keys and client tracebacks are never logged.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from tinkex._redact import redact

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

    Logger = FilteringBoundLogger

LEVELS = logging.getLevelNamesMapping()


class _TolerantLogger(structlog.WriteLogger):
    """Drops a line that cannot be written: a reader that left must not stop the server."""

    def msg(self, message: str) -> None:
        """Write a line, if possible; a key or token that got into it is taken out."""
        with contextlib.suppress(OSError, ValueError):
            super().msg(redact(message))

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def make_logger(level: str, stream: TextIO | None = None) -> Logger:
    """Return a logger that writes lines of at least `level` to `stream` (stderr when None).

    On a terminal the lines are for people, elsewhere they are `key=value` pairs.
    """
    target = sys.stderr if stream is None else stream
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if target.isatty():
        # the default formatter shows the variables of every frame: keys, passwords, prompts
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=plain))
    else:
        order = ["timestamp", "level", "event"]
        processors.append(structlog.processors.format_exc_info)
        processors.append(structlog.processors.LogfmtRenderer(key_order=order))
    logger: Any = structlog.wrap_logger(
        _TolerantLogger(target),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level.upper()]),
        cache_logger_on_first_use=True,
    )
    return cast("Logger", logger)
