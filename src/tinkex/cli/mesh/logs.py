"""The log lines of a worker's process: on stderr, structured, without secrets.

The mesh writes them with Python's `logging`, under `tinkex.mesh`; where they go is the process's
business, and so this command's. Prompts and replies are in none.
"""

from __future__ import annotations

import logging
import sys
import time

from tinkex._redact import redact


class _Lines(logging.Formatter):
    """`time=... level=... logger=... event="..."`, one line each."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += " | " + self.formatException(record.exc_info)
        text = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        when = self.formatTime(record)
        level = record.levelname.lower()
        return redact(f'time={when} level={level} logger={record.name} event="{text}"')


def log_to_stderr(level: str) -> None:
    """Write what tinkex logs from `level` on to standard error; once in a process."""
    lines = _Lines()
    lines.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines)
    logger = logging.getLogger("tinkex")
    logger.setLevel(level.upper())
    logger.addHandler(handler)
    logger.propagate = False
