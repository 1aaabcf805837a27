"""Between the store's documents and the values of `autotune.trial`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from autotune.errors import StoreError
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.schema import SCHEMA_VERSION
from autotune.trial import Attempt, CampaignState, Failure, Lease, Origin, Report, Result, Trial, TrialState

Document = dict[str, Any]

TRACEBACK_CHARS = 8_000
LOG_CHARS = 8_000
MESSAGE_CHARS = 2_000

_V = TypeVar("_V")
_TIME = (datetime, type(None))
_TEXT_OR_NONE = (str, type(None))
_REQUIRED: Any = object()


def _readable(kind: str) -> Callable[[Callable[[Mapping[str, Any]], _V]], Callable[[Mapping[str, Any]], _V]]:
    """Decorate a reader of documents: one that was damaged behind the validators is a clear error."""

    def decorate(read: Callable[[Mapping[str, Any]], _V]) -> Callable[[Mapping[str, Any]], _V]:
        @functools.wraps(read)
        def wrapper(document: Mapping[str, Any]) -> _V:
            try:
                return read(document)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                why = f"{type(error).__name__}: {error}"[:200]
                raise StoreError(
                    f"the store holds a {kind} that cannot be read ({str(document.get('_id'))[:80]}: {why}); "
                    "correct the document, or restore a backup"
                ) from None

        return wrapper

    return decorate


def _get(document: Mapping[str, Any], name: str, kinds: Any, default: Any = _REQUIRED) -> Any:
    """Return a field that must be of one of these types."""
    value = document.get(name, default)
    if value is _REQUIRED:
        raise KeyError(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise TypeError(f"'{name}' is {type(value).__name__}")
    return value


def _number(document: Mapping[str, Any], name: str, default: Any = _REQUIRED) -> int:
    """Return a field that must be a whole number."""
    value = _get(document, name, (int, float), default)
    if value != int(value):
        raise ValueError(f"'{name}' is {value}")
    return int(value)


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = _get(document, name, (list, tuple, type(None)), ()) or ()
    if not all(isinstance(v, str) for v in values):
        raise TypeError(f"'{name}' holds what is not text")
    return tuple(values)


def _mappings(document: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    values: dict[str, Mapping[str, Any]] = _get(document, name, Mapping, {})
    for metric in values.values():
        if not isinstance(metric, Mapping):
            raise TypeError(f"'{name}' holds what is no mapping")
        for key in ("value", "se"):
            _get(metric, key, (int, float, type(None)), None)
    return values


def _spec(document: Mapping[str, Any]) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = _get(document, "spec", Mapping)
    for section in (
        "data",
        "split",
        "search",
        "schedule",
        "checkpoints",
        "fixed",
        "lease",
        "failures",
        "limits",
        "budget",
        "evaluation",
    ):
        _get(spec, section, (Mapping, type(None)), None)
    return spec


def _finite(document: Mapping[str, Any], name: str) -> Any:
    return _get(document, name, (int, float, type(None)), None)


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
        "unsealed_at": None,
    }


def _metric(document: Mapping[str, Any]) -> Mapping[str, str]:
    metric: Mapping[str, str] = _get(document, "metric", Mapping)
    if not isinstance(metric.get("name"), str) or metric.get("mode") not in ("min", "max"):
        raise ValueError(f"'metric' is {metric}")
    return metric


@_readable("campaign")
def campaign_record(document: Mapping[str, Any]) -> CampaignRecord:
    """Return the value of a campaign's document."""
    return CampaignRecord(
        name=_get(document, "_id", str),
        state=CampaignState(document["state"]),
        message=_get(document, "message", str, ""),
        spec=_spec(document),
        spec_hash=_get(document, "spec_hash", str),
        space=_get(document, "space", Mapping),
        metric=_metric(document),
        facts=_get(document, "facts", Mapping, {}),
        paths=_texts(document, "paths"),
        environment=_get(document, "environment", Mapping, {}),
        max_trials=_number(document, "max_trials"),
        max_hours=_finite(document, "max_hours"),
        max_device_hours=_finite(document, "max_device_hours"),
        revision=_number(document, "revision", 0),
        used_s=float(document.get("used_s", 0.0)),
        read_at=_get(document, "read_at", _TIME, None),
        created_at=_get(document, "created_at", _TIME, None),
        ended_at=_get(document, "ended_at", _TIME, None),
        unsealed_at=_get(document, "unsealed_at", _TIME, None),
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
    bracket: int = 0,
    target: int | None = None,
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
        "bracket": bracket,
        "rung": 0,
        "target": target,
        "rung_scores": [],
        "checkpoint": None,
        "score": None,
        "metrics": {},
        "facts": {},
        "started_at": None,
        "ended_at": None,
    }


@_readable("trial")
def trial_value(document: Mapping[str, Any]) -> Trial:
    """Return the value of a trial's document; fields that a projection left out have their defaults."""
    attempts = tuple(attempt_value(a) for a in _get(document, "attempts", list, []))
    claims = _number(document, "claims", len(attempts))
    return Trial(
        campaign=_get(document, "campaign", str),
        number=_number(document, "number"),
        params=_get(document, "params", Mapping, {}),
        config_hash=_get(document, "config_hash", str, ""),
        state=TrialState(document["state"]),
        seed=_number(document, "seed", 0),
        fold=_number(document, "fold", 0),
        replicate=_number(document, "replicate", 0),
        origin=Origin(document.get("origin", Origin.SEARCH)),
        attempts=attempts,
        claims=claims,
        ends={str(k): int(v) for k, v in _get(document, "ends", Mapping, {}).items()},
        alone=bool(document.get("alone", False)),
        bracket=_number(document, "bracket", 0),
        rung=_number(document, "rung", 0),
        target=_get(document, "target", (int, type(None)), None),
        rung_scores=tuple(_get(document, "rung_scores", list, [])),
        checkpoint=_get(document, "checkpoint", (Mapping, type(None)), None),
        lease=lease_value(document, claims - 1),
        score=_finite(document, "score"),
        metrics=_mappings(document, "metrics"),
        facts=_get(document, "facts", Mapping, {}),
        proposed_at=_get(document, "proposed_at", _TIME, None),
        started_at=_get(document, "started_at", _TIME, None),
        ended_at=_get(document, "ended_at", _TIME, None),
    )


def lease_value(document: Mapping[str, Any], attempt: int) -> Lease | None:
    """Return the lease in a trial's document, or None."""
    lease = _get(document, "lease", (Mapping, type(None)), None)
    if not lease:
        return None
    return Lease(
        campaign=document["campaign"],
        number=int(document["number"]),
        owner=_get(lease, "owner", str, ""),
        token=_get(lease, "token", str, ""),
        attempt=attempt,
        duration_s=float(_get(lease, "duration_s", (int, float), 0.0)),
        expires_at=_get(lease, "expires_at", _TIME, None),
    )


def attempt_value(document: Mapping[str, Any]) -> Attempt:
    """Return the value of an attempt in a trial's document."""
    return Attempt(
        token=_get(document, "token", str, ""),
        owner=_get(document, "owner", str, ""),
        host=_get(document, "host", str, ""),
        device=_get(document, "device", str, ""),
        started_at=_get(document, "started_at", _TIME, None),
        ended_at=_get(document, "ended_at", _TIME, None),
        cause=_get(document, "cause", _TEXT_OR_NONE, None),
        message=_get(document, "message", _TEXT_OR_NONE, None),
        traceback=_get(document, "traceback", _TEXT_OR_NONE, None),
        log_tail=_get(document, "log_tail", _TEXT_OR_NONE, None),
        exit_code=_get(document, "exit_code", (int, type(None)), None),
        timing=_get(document, "timing", (Mapping, type(None)), None) or {},
        late_result=_get(document, "late_result", (Mapping, type(None)), None),
        share=float(_get(document, "share", (int, float), 1.0)),
        threads=_get(document, "threads", int, 0),
        versions=_get(document, "versions", (Mapping, type(None)), None) or {},
        mismatch=_texts(document, "mismatch"),
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


@_readable("report")
def report_value(document: Mapping[str, Any]) -> Report:
    """Return the value of a report's document."""
    return Report(
        step=_number(document, "step"), metrics=_get(document, "metrics", Mapping), attempt=_number(document, "attempt")
    )


@_readable("worker")
def worker_value(document: Mapping[str, Any]) -> WorkerRecord:
    """Return the value of a worker's document."""
    campaigns = document.get("campaigns")
    return WorkerRecord(
        id=_get(document, "_id", str),
        host=_get(document, "host", str),
        pid=_number(document, "pid"),
        slots=_number(document, "slots"),
        devices=_texts(document, "devices"),
        campaigns=None if campaigns is None else _texts(document, "campaigns"),
        versions=_get(document, "versions", Mapping, {}),
        refusals=_get(document, "refusals", Mapping, {}),
        state=_get(document, "state", str),
        started_at=_get(document, "started_at", _TIME, None),
        seen_at=_get(document, "seen_at", _TIME, None),
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
