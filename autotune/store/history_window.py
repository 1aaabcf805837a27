"""For how long a server keeps what was overwritten, so that it can be read as of a moment ago.

The longer, the slower is a queue: whoever looks for the first trial that waits passes over all that waited within this
time (decision 021).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

PARAMETER = "minSnapshotHistoryWindowInSeconds"
"""Name of the server's parameter."""
DEFAULT_S = 300
RAISED_S = 3601
"""An hour for a backup; the second tells it from what somebody has set by hand."""


@contextmanager
def long_history(client: MongoClient[Any]) -> Iterator[None]:
    """See to it that what is read as of one moment stays readable for an hour.

    Where the server does not let this user read and set parameters, or keeps more, it is left as it is. What a backup
    left that was killed is put back by the next one. Of two that overlap the first to end takes it from the other.

    Args:
        client: Of the server.
    """
    node, before_s = client.primary, _raise_window(client)
    try:
        yield
    finally:
        if before_s is not None and client.primary == node:  # another primary has a window of its own
            with suppress(PyMongoError):
                client.admin.command({"setParameter": 1, PARAMETER: before_s})


def _raise_window(client: MongoClient[Any]) -> int | None:
    """Raise it; return what to put back, None if nothing."""
    try:
        window_s = int(client.admin.command({"getParameter": 1, PARAMETER: 1})[PARAMETER])
        if window_s > RAISED_S:
            return None
        if window_s == RAISED_S:
            configured = client.admin.command("getCmdLineOpts")["parsed"].get("setParameter") or {}
            return int(configured.get(PARAMETER, DEFAULT_S))
        client.admin.command({"setParameter": 1, PARAMETER: RAISED_S})
    except OperationFailure:
        return None
    return window_s
