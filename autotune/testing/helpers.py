"""Small helpers of the shared suites: making trials, making time pass in the store, waiting with a deadline."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.trial import Cause, Failure, Lease, Result, Trial

CAMPAIGN = "c"
LONG_S = 600.0
"""A lease that does not run out while a test runs."""

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def propose(store: MongoStore, number: int, campaign: str = CAMPAIGN, params: Mapping[str, Any] | None = None) -> Trial:
    """Propose trial `number`, by default with a configuration of its own."""
    return store.trials.propose(campaign, number, params or {"x": number}, f"hash-{number}", seed=number)


def claim(store: MongoStore, campaign: str = CAMPAIGN, *, owner: str = "w", duration_s: float = LONG_S) -> Lease:
    """Claim the next trial, which must be there; return its lease."""
    trial = store.trials.claim([campaign], owner=owner, token=secrets.token_hex(8), duration_s=duration_s)
    assert trial is not None, "no trial was queued"
    assert trial.lease is not None, "a claimed trial has a lease"
    return trial.lease


def running(store: MongoStore, number: int = 0, *, owner: str = "w") -> Lease:
    """Propose trial `number` and claim it; return its lease."""
    propose(store, number)
    return claim(store, owner=owner)


def expire(store: MongoStore, lease: Lease) -> None:
    """Move the end of a lease into the past, as if its whole length had passed."""
    done = store.connection.database["trials"].update_one(
        {"campaign": lease.campaign, "number": lease.number, "lease.token": lease.token},
        {"$set": {"lease.expires_at": _LONG_AGO}},
    )
    assert done.modified_count == 1, "the lease is not held any more"


def reaped(store: MongoStore, number: int = 0) -> Lease:
    """Return the lease of a worker that was not heard of for so long that its trial went back to the queue."""
    lease = running(store, number)
    expire(store, lease)
    assert store.trials.reap(CAMPAIGN) == [number], "an expired lease is reaped"
    return lease


def taken_over(store: MongoStore, number: int = 0) -> tuple[Lease, Lease]:
    """Return (lease that ran out and was reaped, lease of the worker that claimed the trial after it)."""
    old = running(store, number, owner="old")
    expire(store, old)
    assert store.trials.reap(CAMPAIGN) == [number], "an expired lease is reaped"
    return old, claim(store, owner="new")


def result(score: float = 1.0, **facts: Any) -> Result:
    """Return a result."""
    return Result(score=score, metrics={"loss": {"value": score, "se": 0.1, "split": "valid"}}, facts=facts)


def failure(cause: Cause, message: str = "it broke") -> Failure:
    """Return a failure."""
    return Failure(cause=cause, message=message, traceback="Traceback ...", log_tail="last line", exit_code=1)


def campaign_record(name: str = CAMPAIGN, **changes: Any) -> CampaignRecord:
    """Return a campaign to create."""
    fields: dict[str, Any] = {
        "spec": {"name": name, "objective": "math:fsum"},
        "spec_hash": "one",
        "space": {"x": {"float": [0, 1]}},
        "metric": {"name": "loss", "mode": "min"},
        "max_trials": 4,
    }
    return CampaignRecord(name=name, **{**fields, **changes})


def worker_record(worker_id: str, **changes: Any) -> WorkerRecord:
    """Return a worker to register."""
    return WorkerRecord(id=worker_id, **{"host": "h", "pid": 1, "slots": 2, **changes})


def forget_worker(store: MongoStore, worker_id: str) -> None:
    """Make a worker one that was not heard of for long."""
    store.connection.database["workers"].update_one({"_id": worker_id}, {"$set": {"seen_at": _LONG_AGO}})


def back_date(store: MongoStore, hours: float, campaign: str = CAMPAIGN) -> None:
    """Move the time since when a campaign runs into the past, as if so many hours had passed."""
    since = server_now(store) - timedelta(hours=hours)
    store.connection.database["campaigns"].update_one({"_id": campaign}, {"$set": {"running_since": since}})


def expire_lead(store: MongoStore, campaign: str = CAMPAIGN) -> None:
    """Move the end of a coordinator's lead into the past."""
    store.connection.database["leaders"].update_one({"_id": campaign}, {"$set": {"expires_at": _LONG_AGO}})


def stored(store: MongoStore, number: int, campaign: str = CAMPAIGN) -> dict[str, Any]:
    """Return the raw document of a trial."""
    document = store.connection.database["trials"].find_one({"campaign": campaign, "number": number})
    assert document is not None, f"trial {number} is not there"
    return document


def server_now(store: MongoStore) -> datetime:
    """Return the time on the database's clock."""
    now: datetime = store.connection.client.admin.command("hello")["localTime"]
    return now.replace(tzinfo=UTC)


def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait until `condition` holds; an AssertionError after `deadline_s` seconds."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"did not happen within {deadline_s:g} s"
        time.sleep(0.01)
