"""Structured logs: one line an event, with a fixed ``action`` field and ``key=value`` pairs behind it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Formats a record as ``time level action key=value ... message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        action = extra.pop("action", "-")
        pairs = "".join(f" {key}={_short(value)}" for key, value in extra.items())
        line = f"{self.formatTime(record)} {record.levelname} action={action}{pairs} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _short(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if any(c.isspace() for c in text) or not text else text


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send the service's own log lines to `stream` (standard error by default)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    for name in ("autotune", "workers"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
