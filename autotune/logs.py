"""Structured logs: one line an event, with a fixed ``action`` field. `docs/logs.md` lists the actions.

``AUTOTUNE_LOG=json`` gives one JSON object a line, for machines; otherwise lines are for people.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from autotune.errors import InputError

FORMAT_VARIABLE = "AUTOTUNE_LOG"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Formats a record as ``time level action key=value ... message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and its traceback behind it."""
        extra = _extra(record)
        action = extra.pop("action", "-")
        pairs = "".join(f" {key}={_short(value)}" for key, value in extra.items())
        line = f"{self.formatTime(record)} {record.levelname} action={action}{pairs} {_one_line(record)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line, in ASCII.

    ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``action``, ``message``, then the event's own fields, and
    ``traceback`` where there is one. Numbers that JSON has no word for (NaN, infinity) are text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        extra = _extra(record)
        head = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "action": extra.pop("action", "-"),
            "message": _one_line(record),
        }
        if record.exc_info:
            head["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain({**extra, **head}), allow_nan=False)


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send the service's own log lines to `stream` (standard error by default), as ``AUTOTUNE_LOG`` says.

    Raises:
        InputError: If ``AUTOTUNE_LOG`` is neither ``json`` nor ``text``.
    """
    wanted = os.environ.get(FORMAT_VARIABLE) or "text"
    formatters: dict[str, type[logging.Formatter]] = {"text": LineFormatter, "json": JsonFormatter}
    if wanted not in formatters:
        raise InputError(f"{FORMAT_VARIABLE}={wanted} is not a format of logs; set it to json or text")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatters[wanted]())
    for name in ("autotune", "workers"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}


def _one_line(record: logging.LogRecord) -> str:
    return " ".join(record.getMessage().split())


def _short(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if any(c.isspace() for c in text) or not text else text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
