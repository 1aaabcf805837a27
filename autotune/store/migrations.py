"""Brings documents of older schemas to the one of this version. Each step is safe to repeat."""

from __future__ import annotations

from typing import Any

from pymongo.database import Database

from autotune.store.schema import MAX_ATTEMPTS, SCHEMA_VERSION
from autotune.trial import Origin


def migrate(database: Database[dict[str, Any]]) -> None:
    """Bring all documents to `SCHEMA_VERSION`; those that are there already are left alone.

    Validators of the old version may refuse the new fields' absence, never their presence, so this runs before the
    new validators are put in place.
    """
    _trials_to_2(database)
    _campaigns_to_2(database)
    _campaigns_to_3(database)
    for name in ("trials", "reports", "workers", "leaders", "events"):
        database[name].update_many(_older_than(SCHEMA_VERSION), {"$set": {"schema_version": SCHEMA_VERSION}})


def _older_than(version: int) -> dict[str, Any]:
    return {"schema_version": {"$lt": version}}


def _trials_to_2(database: Database[dict[str, Any]]) -> None:
    """Schema 2 counts claims and causes, bounds attempts, and says who chose a configuration."""
    killed = {"$size": {"$filter": {"input": "$attempts", "cond": {"$eq": ["$$this.process_killed", True]}}}}
    fields = {
        "claims": {"$ifNull": ["$claims", {"$size": "$attempts"}]},
        "ends": {"$ifNull": ["$ends", {"killed": killed}]},
        "alone": {"$ifNull": ["$alone", False]},
        "bracket": {"$ifNull": ["$bracket", 0]},
        "rung": {"$ifNull": ["$rung", 0]},
        "target": {"$ifNull": ["$target", None]},
        "rung_scores": {"$ifNull": ["$rung_scores", []]},
        "checkpoint": {"$ifNull": ["$checkpoint", None]},
        "origin": {"$ifNull": ["$origin", str(Origin.SEARCH)]},
        "attempts": {"$slice": ["$attempts", -MAX_ATTEMPTS]},
        "schema_version": 2,
    }
    database["trials"].update_many(_older_than(2), [{"$set": fields}])


def _campaigns_to_2(database: Database[dict[str, Any]]) -> None:
    """Schema 2 counts the time that a campaign runs, and has further budgets."""
    is_running = {"$eq": ["$state", "running"]}
    ran_s = {"$divide": [{"$subtract": [{"$ifNull": ["$ended_at", "$$NOW"]}, "$created_at"]}, 1000]}
    fields = {
        "environment": {"$ifNull": ["$environment", {}]},
        "max_hours": {"$ifNull": ["$max_hours", None]},
        "max_device_hours": {"$ifNull": ["$max_device_hours", None]},
        "revision": {"$ifNull": ["$revision", 0]},
        "ran_s": {"$ifNull": ["$ran_s", {"$cond": [is_running, 0.0, ran_s]}]},
        "running_since": {"$ifNull": ["$running_since", {"$cond": [is_running, "$created_at", None]}]},
        "schema_version": 2,
    }
    database["campaigns"].update_many(_older_than(2), [{"$set": fields}])


def _campaigns_to_3(database: Database[dict[str, Any]]) -> None:
    """Schema 3 says since when a campaign's test part is open: those of before have never opened theirs."""
    fields = {"unsealed_at": {"$ifNull": ["$unsealed_at", None]}, "schema_version": 3}
    database["campaigns"].update_many(_older_than(3), [{"$set": fields}])
