"""Between the store's documents and the values of `autotune.trial`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.schema import SCHEMA_VERSION
from autotune.trial import Attempt, CampaignState, Failure, Lease, Origin, Report, Result, Trial, TrialState

Document = dict[str, Any]

TRACEBACK_CHARS = 8_000
LOG_CHARS = 8_000
MESSAGE_CHARS = 2_000


def campaign_document(record: CampaignRecord) -> Document:
    """Return the document of a new campaign, without its times."""
    return {
        "_id": record.name,
        "schema_version": SCHEMA_VERSION,
        "state": str(record.state),
        "message": record.message,
        "spec": dict(record.spec),
        "spec_hash": record.spec_hash,
        "space": dict(record.space),
        "metric": dict(record.metric),
        "facts": dict(record.facts),
        "paths": list(record.paths),
        "environment": dict(record.environment),
        "max_trials": record.max_trials,
        "max_hours": record.max_hours,
        "max_device_hours": record.max_device_hours,
        "revision": 0,
        "ran_s": 0.0,
        "ended_at": None,
    }


def campaign_record(document: Mapping[str, Any]) -> CampaignRecord:
    """Return the value of a campaign's document."""
    return CampaignRecord(
        name=document["_id"],
        state=CampaignState(document["state"]),
        message=document.get("message", ""),
        spec=document["spec"],
        spec_hash=document["spec_hash"],
        space=document["space"],
        metric=document["metric"],
        facts=document.get("facts", {}),
        paths=tuple(document.get("paths", ())),
        environment=document.get("environment", {}),
        max_trials=int(document["max_trials"]),
        max_hours=document.get("max_hours"),
        max_device_hours=document.get("max_device_hours"),
        revision=int(document.get("revision", 0)),
        used_s=float(document.get("used_s", 0.0)),
        read_at=document.get("read_at"),
        created_at=document.get("created_at"),
        ended_at=document.get("ended_at"),
    )


def trial_document(
    campaign: str,
    number: int,
    params: Mapping[str, Any],
    config_hash: str,
    *,
    seed: int,
    fold: int,
    replicate: int,
    origin: Origin,
) -> Document:
    """Return the document of a new trial, without its times."""
    return {
        "schema_version": SCHEMA_VERSION,
        "campaign": campaign,
        "number": number,
        "fold": fold,
        "replicate": replicate,
        "params": dict(params),
        "config_hash": config_hash,
        "state": str(TrialState.QUEUED),
        "seed": seed,
        "origin": str(origin),
        "lease": None,
        "attempts": [],
        "claims": 0,
        "ends": {},
        "alone": False,
        "score": None,
        "metrics": {},
        "facts": {},
        "started_at": None,
        "ended_at": None,
    }


def trial_value(document: Mapping[str, Any]) -> Trial:
    """Return the value of a trial's document; fields that a projection left out have their defaults."""
    attempts = tuple(attempt_value(a) for a in document.get("attempts", []))
    claims = int(document.get("claims", len(attempts)))
    return Trial(
        campaign=document["campaign"],
        number=int(document["number"]),
        params=document.get("params", {}),
        config_hash=document.get("config_hash", ""),
        state=TrialState(document["state"]),
        seed=int(document.get("seed", 0)),
        fold=int(document.get("fold", 0)),
        replicate=int(document.get("replicate", 0)),
        origin=Origin(document.get("origin", Origin.SEARCH)),
        attempts=attempts,
        claims=claims,
        ends=document.get("ends", {}),
        alone=bool(document.get("alone", False)),
        lease=lease_value(document, claims - 1),
        score=document.get("score"),
        metrics=document.get("metrics", {}),
        facts=document.get("facts", {}),
        proposed_at=document.get("proposed_at"),
        started_at=document.get("started_at"),
        ended_at=document.get("ended_at"),
    )


def lease_value(document: Mapping[str, Any], attempt: int) -> Lease | None:
    """Return the lease in a trial's document, or None."""
    lease = document.get("lease")
    if not lease:
        return None
    return Lease(
        campaign=document["campaign"],
        number=int(document["number"]),
        owner=lease.get("owner", ""),
        token=lease.get("token", ""),
        attempt=attempt,
        duration_s=float(lease.get("duration_s", 0.0)),
        expires_at=lease.get("expires_at"),
    )


def attempt_value(document: Mapping[str, Any]) -> Attempt:
    """Return the value of an attempt in a trial's document."""
    return Attempt(
        token=document.get("token", ""),
        owner=document.get("owner", ""),
        host=document.get("host", ""),
        device=document.get("device", ""),
        started_at=document.get("started_at"),
        ended_at=document.get("ended_at"),
        cause=document.get("cause"),
        message=document.get("message"),
        traceback=document.get("traceback"),
        log_tail=document.get("log_tail"),
        exit_code=document.get("exit_code"),
        timing=document.get("timing") or {},
        late_result=document.get("late_result"),
        share=float(document.get("share", 1.0)),
        versions=document.get("versions") or {},
        mismatch=tuple(document.get("mismatch") or ()),
    )


def failure_fields(failure: Failure) -> Document:
    """Return what a failure adds to its attempt; long texts keep their ends."""
    return {
        "cause": str(failure.cause),
        "message": _storable(failure.message)[:MESSAGE_CHARS],
        "traceback": tail(failure.traceback, TRACEBACK_CHARS),
        "log_tail": tail(failure.log_tail, LOG_CHARS),
        "exit_code": failure.exit_code,
    }


def result_fields(result: Result) -> Document:
    """Return what a result adds to its trial."""
    return {
        "score": float(result.score),
        "metrics": {name: dict(metric) for name, metric in result.metrics.items()},
        "facts": dict(result.facts),
    }


def report_value(document: Mapping[str, Any]) -> Report:
    """Return the value of a report's document."""
    return Report(step=int(document["step"]), metrics=document["metrics"], attempt=int(document["attempt"]))


def worker_value(document: Mapping[str, Any]) -> WorkerRecord:
    """Return the value of a worker's document."""
    campaigns = document.get("campaigns")
    return WorkerRecord(
        id=document["_id"],
        host=document["host"],
        pid=int(document["pid"]),
        slots=int(document["slots"]),
        devices=tuple(document.get("devices", ())),
        campaigns=None if campaigns is None else tuple(campaigns),
        versions=document.get("versions", {}),
        refusals=document.get("refusals", {}),
        state=document["state"],
        started_at=document.get("started_at"),
        seen_at=document.get("seen_at"),
    )


def tail(text: str | None, limit: int) -> str | None:
    """Return the last `limit` characters of a text, marked when shortened."""
    if text is None:
        return None
    text = _storable(text)
    return text if len(text) <= limit else "[...]\n" + text[-limit:]


def _storable(text: str) -> str:
    """Return `text` with what is not Unicode (bytes that a decoder escaped) as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
