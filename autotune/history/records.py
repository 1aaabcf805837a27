"""Trials as plain JSON values, for ``--format json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from autotune.trial import Attempt, Trial


def records(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Return one mapping per trial, in order of number.

    Strict JSON: ``json.dumps(..., allow_nan=False)`` accepts it. Times are ISO-8601 in UTC; NaN and infinite numbers
    are null. Lease tokens, tracebacks and log tails are left out.

    Args:
        trials: Trials of one campaign.
    """
    return [_trial(trial) for trial in sorted(trials, key=lambda trial: trial.number)]


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": str(trial.state),
        "params": plain(trial.params),
        "metrics": plain(trial.metrics),
        "facts": plain(trial.facts),
        "score": plain(trial.score),
        "fold": trial.fold,
        "replicate": trial.replicate,
        "seed": trial.seed,
        "origin": str(trial.origin),
        "claims": trial.claims,
        "attempts": [_attempt(attempt) for attempt in trial.attempts],
        "proposed_at": plain(trial.proposed_at),
        "started_at": plain(trial.started_at),
        "ended_at": plain(trial.ended_at),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    names = ("owner", "host", "device", "started_at", "ended_at", "cause", "message", "exit_code", "timing", "share",
             "threads", "versions", "mismatch")  # fmt: skip
    return {name: plain(getattr(attempt, name)) for name in names}


def plain(value: Any) -> Any:
    """Return `value` as strict JSON values.

    Args:
        value: JSON values, also with NaN, infinite numbers, times, enumeration members or tuples in them.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)
