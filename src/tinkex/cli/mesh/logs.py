"""The log lines of a worker's process: on stderr, structured, without secrets.

The mesh writes them with Python's `logging`, under `tinkex.mesh`; where they go is the process's
business, and so this command's. Prompts and replies are in none. A record's `fields`, where it has
them, become pairs of the line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping

from tinkex._redact import redact


class Lines(logging.Formatter):
    """One line for each record: `time=... level=... logger=... event="..."`, or the same in JSON.

    Args:
        form: `text` or `json`.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, form: str) -> None:
        super().__init__()
        self.converter = time.gmtime
        self._write = _as_json if form == "json" else _as_text

    def format(self, record: logging.LogRecord) -> str:
        """Write the line; whatever looks like a key or a token is left out."""
        event = record.getMessage()
        if record.exc_info:
            event += " | " + self.formatException(record.exc_info)
        pairs = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            **getattr(record, "fields", {}),
        }
        return self._write(
            {
                name: redact(value) if isinstance(value, str) else value
                for name, value in pairs.items()
            }
        )


def log_to_stderr(level: str, form: str) -> None:
    """Write what tinkex logs from `level` on to standard error; once in a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(form))
    logger = logging.getLogger("tinkex")
    logger.setLevel(level.upper())
    logger.addHandler(handler)
    logger.propagate = False


def _as_json(pairs: Mapping[str, object]) -> str:
    return json.dumps(pairs, default=str)


def _as_text(pairs: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_plain(value, name == 'event')}" for name, value in pairs.items())


def _plain(value: object, quoted: bool) -> str:
    if not isinstance(value, str):
        return "-" if value is None else str(value)
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"' if quoted or not text or " " in text or text != value else text
