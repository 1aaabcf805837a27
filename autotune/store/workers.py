"""Workers that serve the store, and the coordinators that lead its campaigns."""

from __future__ import annotations

from typing import Any

from pymongo import ReturnDocument

from autotune.store.base import WorkerRecord
from autotune.store.connection import AT_ONCE, Connection, mapped
from autotune.store.documents import worker_value
from autotune.store.expressions import NOW, in_seconds, literal
from autotune.store.schema import SCHEMA_VERSION

_DAY_S = 86_400.0
LIVE_S = 25.0
"""A worker that was not heard of for so many seconds is taken for gone."""


class Workers:
    """The collection ``workers``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._workers = connection.database["workers"]

    @mapped
    def register(self, worker: WorkerRecord) -> None:
        """Write that a worker serves this store."""
        self._workers.update_one(
            {"_id": worker.id},
            {
                "$set": {
                    "schema_version": SCHEMA_VERSION,
                    "host": worker.host,
                    "pid": worker.pid,
                    "slots": worker.slots,
                    "devices": list(worker.devices),
                    "campaigns": None if worker.campaigns is None else list(worker.campaigns),
                    "versions": dict(worker.versions),
                    "refusals": dict(worker.refusals),
                    "state": "active",
                },
                "$currentDate": {"seen_at": True, "started_at": True},
            },
            upsert=True,
        )

    @mapped
    def seen(self, worker_id: str) -> None:
        """Write that a worker lives; it says so again soon, so the write is not waited for to be safe."""
        self._workers.with_options(write_concern=AT_ONCE).update_one(
            {"_id": worker_id}, {"$currentDate": {"seen_at": True}}
        )

    @mapped
    def refuse(self, worker_id: str, campaign: str, reason: str | None) -> None:
        """Write why a worker does not serve a campaign, or with None that it does."""
        field = f"refusals.{campaign}"
        change = {"$unset": {field: True}} if reason is None else {"$set": {field: reason}}
        self._workers.update_one({"_id": worker_id}, {**change, "$currentDate": {"seen_at": True}})

    @mapped
    def stopped(self, worker_id: str) -> None:
        """Write that a worker ended in good order."""
        self._workers.update_one({"_id": worker_id}, {"$set": {"state": "stopped"}, "$currentDate": {"seen_at": True}})

    @mapped
    def live(self, campaign: str | None = None) -> list[WorkerRecord]:
        """Return the workers heard of lately; all of them or those that serve `campaign`."""
        recent = {"$expr": {"$gt": ["$seen_at", in_seconds(-LIVE_S)]}}
        query: dict[str, Any] = {"state": "active", **recent}
        if campaign is not None:
            query["campaigns"] = {"$in": [None, campaign]}
        return [worker_value(d) for d in self._workers.find(query).sort("_id", 1)]

    @mapped
    def count_live(self) -> int:
        """Return how many workers were heard of lately."""
        recent = {"$expr": {"$gt": ["$seen_at", in_seconds(-LIVE_S)]}}
        return self._workers.count_documents({"state": "active", **recent})

    @mapped
    def silent(self, campaign: str | None = None) -> list[WorkerRecord]:
        """Return the workers that did not sign off and were not heard of lately, though within a day."""
        silent = {"$expr": {"$and": [{"$lte": ["$seen_at", in_seconds(-LIVE_S)]},
                                     {"$gt": ["$seen_at", in_seconds(-_DAY_S)]}]}}  # fmt: skip
        query: dict[str, Any] = {"state": "active", **silent}
        if campaign is not None:
            query["campaigns"] = {"$in": [None, campaign]}
        return [worker_value(d) for d in self._workers.find(query).sort("_id", 1)]


class Leaders:
    """The collection ``leaders``: which coordinator leads a campaign."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._leaders = connection.database["leaders"]

    @mapped
    def lead(self, campaign: str, owner: str, duration_s: float) -> bool:
        """Take or keep the lead of a campaign for `duration_s` seconds; return whether this owner leads now."""
        free = {"$or": [{"$eq": ["$owner", literal(owner)]}, {"$lt": [{"$ifNull": ["$expires_at", None]}, NOW]}]}
        update = {
            "schema_version": SCHEMA_VERSION,
            "owner": {"$cond": [free, literal(owner), "$owner"]},
            "expires_at": {"$cond": [free, in_seconds(duration_s), "$expires_at"]},
        }
        after = self._leaders.find_one_and_update(
            {"_id": campaign}, [{"$set": update}], upsert=True, return_document=ReturnDocument.AFTER
        )
        return after is not None and bool(after.get("owner") == owner)

    @mapped
    def resign(self, campaign: str, owner: str) -> None:
        """Give up the lead, so that another coordinator need not wait for it to run out."""
        self._leaders.delete_one({"_id": campaign, "owner": owner})

    @mapped
    def leader(self, campaign: str) -> str | None:
        """Return the owner that leads a campaign now, or None."""
        document = self._leaders.find_one({"_id": campaign, "$expr": {"$gte": ["$expires_at", NOW]}})
        return None if document is None else str(document.get("owner", "unknown"))
