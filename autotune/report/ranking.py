"""Which configurations count, and in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autotune.history import flatten
from autotune.trial import ACTIVE_STATES, Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration that is ranked.

    Attributes:
        number: Number of its (first) trial.
        score: The score, or the mean over folds and replicates; NaN where a training failed.
        state: State of its trials; of several, the worst of failed, pruned, finished.
        params: Flat parameters.
        facts: Facts that are scalars; the mean over folds and replicates where they differ.
        metrics: Name -> value, the mean over folds and replicates; NaN where one has none.
        cause: Why it failed, or ``pruned``; None where it finished, and where nobody knows.
        ended_at: When the last of its trials ended, or None.
    """

    number: int
    score: float
    state: TrialState
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None
    ended_at: datetime | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it was trained to its end and its score is a finite number."""
        return self.state is TrialState.FINISHED and math.isfinite(self.score)


def has_folds(trials: Sequence[Trial]) -> bool:
    """Return whether configurations are trained more than once, as folds or replicates."""
    return any(trial.fold or trial.replicate for trial in trials)


def rank(trials: Sequence[Trial], mode: str) -> list[Entry]:
    """Return the configurations that count, best first.

    Finished ones come first, in order of score; then pruned ones, whose scores are of shorter trainings; then those
    whose score is not a finite number, and failed ones. Equal ones are in order of number. Trials that have not ended
    and cancelled ones do not count.

    Args:
        trials: Trials of one campaign.
        mode: ``min`` or ``max``: what is best.
    """
    entries = [entry for group in _groups(trials) if (entry := _entry(group)) is not None]
    sign = -1.0 if mode == "max" else 1.0

    def place(entry: Entry) -> tuple[int, float, int]:
        if entry.state is TrialState.FAILED or not math.isfinite(entry.score):
            return 2, 0.0, entry.number
        return int(entry.state is TrialState.PRUNED), sign * entry.score, entry.number

    return sorted(entries, key=place)


def _groups(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each configuration, in order of number."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    if not has_folds(trials):
        return [[trial] for trial in ordered]
    groups: dict[str, list[Trial]] = {}
    for trial in ordered:
        groups.setdefault(trial.config_hash, []).append(trial)
    return list(groups.values())


def _entry(group: Sequence[Trial]) -> Entry | None:
    """Return the configuration trained by `group`, or None if it does not count (yet)."""
    if any(trial.state in ACTIVE_STATES or trial.state is TrialState.CANCELLED for trial in group):
        return None
    states = {trial.state for trial in group}
    state = next(s for s in (TrialState.FAILED, TrialState.PRUNED, TrialState.FINISHED) if s in states)
    scores = [math.nan if t.score is None or t.state is TrialState.FAILED else float(t.score) for t in group]
    facts = [trial.facts for trial in group]
    ends = [trial.ended_at for trial in group if trial.ended_at is not None]
    return Entry(
        number=group[0].number,
        score=sum(scores) / len(scores),
        state=state,
        params=flatten(group[0].params),
        facts={name: _together([fact.get(name) for fact in facts]) for name in facts[0]},
        metrics={name: _mean([trial.metrics.get(name, {}).get("value") for trial in group]) for name in _names(group)},
        cause=_cause(group, state),
        ended_at=max(ends, default=None),
    )


def _names(group: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(name for trial in group for name in trial.metrics))


def _mean(values: Sequence[Any]) -> float:
    """Return the mean, or NaN where one is no number."""
    if not all(isinstance(value, (int, float)) for value in values):
        return math.nan
    return sum(float(value) for value in values) / len(values)


def _cause(group: Sequence[Trial], state: TrialState) -> str | None:
    """Return why the first failed trial failed, or that they were pruned."""
    if state is TrialState.PRUNED:
        return str(state)
    failures = [trial.failure for trial in group if trial.state is TrialState.FAILED]
    return next((str(failure.cause) for failure in failures if failure is not None), None)


def _together(values: Sequence[Any]) -> Any:
    """Return the common value, the mean of different numbers, or None."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, (int, float)) for value in values):
        return sum(values) / len(values)
    return None
