"""How the best score so far came about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from autotune.report.ranking import Entry
from autotune.trial import Trial


def progress(entries: Sequence[Entry], trials: Sequence[Trial], mode: str) -> pd.DataFrame:
    """Return one row per ended configuration, in order of end.

    Columns: ``ended`` (1, 2, ...), ``number``, ``state``, ``score``, ``best`` (best score of finished ones so far) and
    ``device_hours`` (device time of all attempts at all trials up to that end; NaN where it is not known).

    Args:
        entries: Configurations.
        trials: All trials of the campaign.
        mode: ``min`` or ``max``.
    """
    sign = -1.0 if mode == "max" else 1.0
    known = [entry.ended_at for entry in entries if entry.ended_at is not None]
    late = max(known, default=None)
    ordered = sorted(entries, key=lambda e: (e.ended_at is None, e.ended_at or late or 0, e.number))
    losses = np.array([sign * e.score if e.is_scored else np.inf for e in ordered], dtype=float)
    best = sign * np.minimum.accumulate(losses) if len(losses) else losses
    return pd.DataFrame(
        {
            "ended": range(1, len(ordered) + 1),
            "number": [entry.number for entry in ordered],
            "state": [str(entry.state) for entry in ordered],
            "score": pd.Series([entry.score for entry in ordered], dtype="float64"),
            "best": np.where(np.isfinite(best), best, np.nan),
            "device_hours": _used([entry.ended_at for entry in ordered], trials) / 3600.0,
        }
    )


def _used(times: Sequence[datetime | None], trials: Sequence[Trial]) -> np.ndarray:
    """Return the device seconds that all attempts had used at each time."""
    spans = [
        (a.started_at, a.ended_at, a.share)
        for trial in trials
        for a in trial.attempts
        if a.started_at is not None and a.device
    ]
    if not spans:
        return np.full(len(times), np.nan)
    zero = min(start for start, _, _ in spans)
    starts = sorted(((start - zero).total_seconds(), share) for start, _, share in spans)
    ends = sorted(((end - zero).total_seconds(), share) for _, end, share in spans if end is not None)
    seconds = np.array([np.nan if time is None else (time - zero).total_seconds() for time in times], dtype=float)
    used: np.ndarray = _elapsed(starts, seconds) - _elapsed(ends, seconds)
    return used


def _elapsed(events: Sequence[tuple[float, float]], seconds: np.ndarray) -> np.ndarray:
    """Return for each time the sum over earlier events of share x time since the event."""
    when = np.array([time for time, _ in events], dtype=float)
    shares = np.array([share for _, share in events], dtype=float)
    weights = np.concatenate([[0.0], np.cumsum(shares)])
    moments = np.concatenate([[0.0], np.cumsum(shares * when)])
    index = np.searchsorted(when, seconds, side="right")
    result: np.ndarray = weights[index] * seconds - moments[index]
    return result
