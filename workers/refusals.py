"""What a worker refuses to serve, and why; the store knows it too, so that `autotune status` can say it."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING

from autotune.errors import StoreError
from autotune.store.base import CampaignRecord

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

Key = tuple[str, str, str]
"""What makes a campaign's code and data: its name, its definition, its objective's source."""


def key_of(record: CampaignRecord) -> Key:
    """Return what the code and data of a campaign are known by."""
    return record.name, record.spec_hash, str(record.environment.get("objective_hash"))


def environment_key(record: CampaignRecord) -> str:
    """Return what a campaign's environment is known by: another launch of the same definition may change it."""
    return json.dumps(record.environment, sort_keys=True, default=str)


class Refusals:
    """The campaigns that a worker does not serve. Safe to use from many threads.

    What was decided of a campaign holds until its definition or its environment changes.

    Args:
        store: An open store.
        worker_id: Id of the worker.
    """

    def __init__(self, store: MongoStore, worker_id: str) -> None:
        self._store = store
        self._worker_id = worker_id
        self._known: dict[tuple[Key, str], tuple[str | None, float | None]] = {}
        self._written: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def first(self) -> str | None:
        """The first reason, or None when nothing is refused."""
        with self._lock:
            return next((reason for reason, _ in self._known.values() if reason is not None), None)

    def knows(self, record: CampaignRecord) -> bool:
        """Return whether it was decided lately whether to serve a campaign."""
        with self._lock:
            _, until_s = self._known.get(_decided_by(record), (None, 0.0))
        return until_s is None or time.monotonic() < until_s

    def of(self, record: CampaignRecord) -> str | None:
        """Return why a campaign is refused, or None when it is served."""
        with self._lock:
            return self._known.get(_decided_by(record), (None, None))[0]

    def set(self, record: CampaignRecord, reason: str | None, *, again_s: float | None = None) -> None:
        """Take in why a campaign is refused, or with None that it is served.

        Args:
            record: The campaign.
            reason: One line, or None.
            again_s: Decide anew after so many seconds; None: never.
        """
        until_s = None if again_s is None else time.monotonic() + again_s
        with self._lock:
            self._known = {key: value for key, value in self._known.items() if key[0][0] != record.name}
            self._known[_decided_by(record)] = reason, until_s
            changed = self._written.get(record.name) != reason
        if not changed:
            return
        if reason is not None:
            _log.error(
                "%s; it serves this campaign no more", reason, extra={"action": "refuse", "campaign": record.name}
            )
        try:
            self._store.workers.refuse(self._worker_id, record.name, reason)
        except StoreError as error:
            _log.warning("%s", error, extra={"action": "store-away"})
            return
        with self._lock:
            if reason is None:
                self._written.pop(record.name, None)
            else:
                self._written[record.name] = reason


def _decided_by(record: CampaignRecord) -> tuple[Key, str]:
    return key_of(record), environment_key(record)
