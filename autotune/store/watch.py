"""Waiting for changes: by change stream, and by polling where a server has none."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from pymongo.change_stream import DatabaseChangeStream
from pymongo.errors import OperationFailure

from autotune.store.connection import Connection

_AWAIT_MS = 500
_QUIET_MS = 10_000
_QUIET_AFTER_S = 5.0
_NO_CHANGE_STREAMS = 40573

_CHANGED = ["queued", "cancelled", "pruned"]

_HEARD_OF = {"$project": {"_id": 1, "ns": 1}}


def work_of(worker_id: str | None = None) -> list[dict[str, Any]]:
    """Return what a worker waits for: queued trials, cancelled ones (it may be running them), changed campaigns.

    Args:
        worker_id: Its id; that it has signed off counts too, so that its own wait ends at once.
    """
    wanted: list[dict[str, Any]] = [
        {"ns.coll": "trials", "operationType": {"$in": ["insert", "replace"]}},
        {"ns.coll": "trials", "updateDescription.updatedFields.state": {"$in": _CHANGED}},
        {"ns.coll": "campaigns"},
    ]
    if worker_id is not None:
        signed_off = {"updateDescription.updatedFields.state": {"$exists": True}}
        wanted.append({"ns.coll": "workers", "documentKey._id": worker_id, **signed_off})
    return [{"$match": {"$or": wanted}}, _HEARD_OF]


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
        _HEARD_OF,
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
        self._await_ms = _AWAIT_MS
        self._heard_s = time.monotonic()
        self.changed: str | None = None
        self._open()

    def _open(self, after: Any = None) -> None:
        with self.connection.mapped():
            try:
                self._stream = self.connection.database.watch(
                    self._pipeline, max_await_time_ms=self._await_ms, resume_after=after
                )
            except OperationFailure as error:
                if error.code != _NO_CHANGE_STREAMS:
                    raise
                self._poll_s = 0.05

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float, *, patient: bool = False) -> bool:
        """Return True when something changed since the last call, False after about `timeout_s` seconds of quiet.

        Args:
            timeout_s: How long to wait.
            patient: Once nothing has changed for a while, wait up to 10 s at a time whatever `timeout_s` says: the
                server is asked seldom, and still answers at once.

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
        self._ask_every(patient)
        rounds = max(1, round(timeout_s * 1000 / self._await_ms))
        with self.connection.mapped():
            for _ in range(rounds):
                change = self._stream.try_next()
                if change is not None:
                    self._heard_s = time.monotonic()
                    self.changed = self._all_of(change)
                    return True
        return False

    def _all_of(self, change: Mapping[str, Any]) -> str | None:
        """Take in the changes that came with this one; return the collection that all were in, None if in several.

        Who waits looks at all that has changed: woken once for each, it would fall ever further behind where changes
        come faster than it looks.
        """
        found = {(change.get("ns") or {}).get("coll")}
        while self._stream is not None and self._has_more():
            more = self._stream.try_next()
            if more is not None:
                found.add((more.get("ns") or {}).get("coll"))
        return found.pop() if len(found) == 1 else None

    def _has_more(self) -> bool:
        """Return whether changes of the server's last answer are left; the driver has no public way to ask for that."""
        has_next = getattr(getattr(self._stream, "_cursor", None), "_has_next", None)
        return has_next is not None and bool(has_next())

    def _ask_every(self, patient: bool) -> None:
        """Go on with the stream where it is, asking as often as is right now."""
        quiet = patient and time.monotonic() - self._heard_s >= _QUIET_AFTER_S
        await_ms = _QUIET_MS if quiet else _AWAIT_MS
        token = None if self._stream is None else self._stream.resume_token
        if await_ms != self._await_ms and token is not None:
            self._await_ms = await_ms
            self.close()
            self._open(after=token)

    def close(self) -> None:
        """Stop watching."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with self.connection.mapped():
                stream.close()
