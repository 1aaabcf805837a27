"""Waiting for changes: by change stream, and by polling where a server has none."""

from __future__ import annotations

import random
import threading
from typing import Any, Self

from pymongo.change_stream import DatabaseChangeStream
from pymongo.errors import OperationFailure

from autotune.store.connection import Connection

_AWAIT_MS = 500
_NO_CHANGE_STREAMS = 40573

_CHANGED = ["queued", "cancelled", "pruned"]

WORK: list[dict[str, Any]] = [
    {
        "$match": {
            "$or": [
                {"ns.coll": "trials", "operationType": {"$in": ["insert", "replace"]}},
                {"ns.coll": "trials", "updateDescription.updatedFields.state": {"$in": _CHANGED}},
                {"ns.coll": "campaigns"},
            ]
        }
    },
    {"$project": {"_id": 1, "ns": 1}},
]
"""What a worker waits for: queued trials, cancelled ones (it may be running them), and changed campaigns."""


def progress_of(campaign: str) -> list[dict[str, Any]]:
    """Return what a coordinator waits for: its trials that leave a slot, workers that come and go, its campaign."""
    left = ["queued", "paused", "finished", "pruned", "failed", "cancelled"]
    return [
        {
            "$match": {
                "$or": [
                    {"ns.coll": "trials", "updateDescription.updatedFields.state": {"$in": left}},
                    {"ns.coll": "workers", "updateDescription.updatedFields.refusals": {"$exists": True}},
                    {"ns.coll": "workers", "operationType": {"$in": ["insert", "replace"]}},
                    {"ns.coll": "workers", "updateDescription.updatedFields.state": {"$exists": True}},
                    {"ns.coll": "campaigns", "documentKey._id": campaign},
                ]
            }
        },
        {"$project": {"_id": 1, "ns": 1}},
    ]


class StreamWatch:
    """Waits on a change stream, opened at once so that nothing after the construction is missed.

    One thread only. Where the server has no change streams it polls, with back-off and jitter, and each poll counts
    as a change.

    Attributes:
        changed: Name of the collection that the last change was in; None: it may have been in any.
    """

    def __init__(self, connection: Connection, pipeline: list[dict[str, Any]]) -> None:
        self.connection = connection
        self._pipeline = pipeline
        self._stream: DatabaseChangeStream[dict[str, Any]] | None = None
        self._poll_s = 0.0
        self._sleep = threading.Event()
        self.changed: str | None = None
        self._open()

    def _open(self) -> None:
        with self.connection.mapped():
            try:
                self._stream = self.connection.database.watch(self._pipeline, max_await_time_ms=_AWAIT_MS)
            except OperationFailure as error:
                if error.code != _NO_CHANGE_STREAMS:
                    raise
                self._poll_s = 0.05

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float) -> bool:
        """Return True when something changed since the last call, False after about `timeout_s` seconds of quiet.

        Raises:
            StoreUnreachableError: If the store went away; call again later.
        """
        self.changed = None
        if self._stream is None and self._poll_s:
            pause = min(timeout_s, self._poll_s * random.uniform(0.5, 1.5))
            self._sleep.wait(pause)
            self._poll_s = min(2.0, self._poll_s * 1.5)
            return True
        if self._stream is None or not self._stream.alive:
            self.close()
            self._open()
            return True
        rounds = max(1, round(timeout_s * 1000 / _AWAIT_MS))
        with self.connection.mapped():
            for _ in range(rounds):
                change = self._stream.try_next()
                if change is not None:
                    self.changed = (change.get("ns") or {}).get("coll")
                    return True
        return False

    def close(self) -> None:
        """Stop watching."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with self.connection.mapped():
                stream.close()
