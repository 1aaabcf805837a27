"""What an objective sees of its trial. Workloads import this module and nothing else of the service.

An objective is any callable ``objective(trial) -> float | dict | Result``:

* a float is the value of the campaign's metric;
* a dict maps names to numbers (metrics) or other JSON values (facts shown in the tables); counts, whose names begin
  with ``n_``, are facts too: ``n_epochs`` and ``n_params`` have columns of their own;
* a `Result` says of each metric what it is (split, estimator, standard error).
"""

from __future__ import annotations

import math
import numbers
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class TrialStopped(Exception):  # a signal to the objective, not an error
    """Raised by `Trial.report` when the trial must end now (cancelled, or its lease was lost).

    Objectives let it pass; they may clean up in ``finally`` blocks.
    """


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number with what it means.

    Attributes:
        value: The number.
        se: Its standard error, same unit, or None when unknown.
        split: The part of the data it was measured on: ``train``, ``validation`` or ``test``.
        estimator: How it was computed, in words.
        draws: Number of Monte Carlo draws per item, where there are any.
        epoch: Number of epochs trained of the state that was scored.
        n: Number of items (cells) averaged over.
    """

    value: float
    se: float | None = None
    split: str | None = None
    estimator: str | None = None
    draws: int | None = None
    epoch: int | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training returns.

    Attributes:
        metrics: Name -> `Metric`; must hold the campaign's metric.
        facts: Name -> plain JSON value, shown as columns of the tables (``n_epochs``, ``n_params``, ...).
        score_s: Seconds of the objective's time that went into scores and not into training; shown by
            ``autotune status --timing``. None: not told.
    """

    metrics: Mapping[str, Metric]
    facts: Mapping[str, Any] = field(default_factory=dict)
    score_s: float | None = field(default=None, compare=False)


class Checkpoint(Protocol):
    """Where a training keeps its state, so that a later attempt, on any worker, goes on from there.

    An objective that does not use it still works; its trials begin anew after each interruption and each pause::

        start = 0
        if (kept := trial.checkpoint.load()) is not None:
            start = read(kept)
        for step in range(start + 1, last + 1):
            ...
            trial.report(step, loss=loss)
            if trial.checkpoint.wanted(step):
                trial.checkpoint.save(step, write)
    """

    def load(self) -> Path | None:
        """Return the folder that an earlier attempt wrote, or None when there is none: begin anew. Read only.

        Raises:
            TrialStopped: When the earlier attempt had come as far as the trial is to go for now.
        """
        ...

    def wanted(self, step: int) -> bool:
        """Return whether a checkpoint is wanted after `step`; cheap, to be asked after each report."""
        ...

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep the state after `step`; only the newest is kept.

        Args:
            step: Resource spent so far, as reported.
            write: Writes the state into the empty folder that it is given: files, in folders if need be, no links.
                What it raises passes through, and nothing is kept.

        Raises:
            TrialStopped: When the state is kept and this attempt must end here: the trial is paused or given back.
        """
        ...


class NoCheckpoint:
    """The checkpoint of a trial that runs outside a worker: `save` tries `write` and keeps nothing."""

    def load(self) -> Path | None:
        """Return None."""
        return None

    def wanted(self, step: int) -> bool:
        """Return False."""
        return False

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Call `write` with a folder that is removed afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))


def _ignore(step: int, metrics: Mapping[str, float]) -> None:
    """Drop a report: the default of a trial that runs outside a worker."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one configuration, as its objective sees it.

    Also usable outside a worker, to try an objective by hand: ``objective(Trial(params={"x": 1.0}))``.

    Attributes:
        params: The configuration: name -> value, the campaign's `fixed` values included.
        campaign: Name of the campaign.
        number: Number of the trial, 0, 1, 2, ...
        fold: Cross-validation fold, 0 by default.
        replicate: Repetition of the configuration, 0 by default.
        attempt: 0 for the first try at this trial, 1 for the second, ...
        seed: Seed of this trial, from (campaign seed, number); the same on every attempt.
        device: ``"cpu"`` or ``"cuda:0"`` (a slot sees its own device only).
        threads: Number of CPU threads that this trial may use.
        metric: Name of the campaign's metric.
        mode: ``"min"`` or ``"max"``.
        schedule_metric: Name of the reported metric by which a schedule compares trials while they train; empty where
            every trial trains to its end.
        data: What the workload's `prepare` returned, shared by the trials of a host; read only.
        checkpoint: Where the training keeps its state for a later attempt.
    """

    params: Mapping[str, Any]
    campaign: str = ""
    number: int = 0
    fold: int = 0
    replicate: int = 0
    attempt: int = 0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    metric: str = "loss"
    mode: str = "min"
    schedule_metric: str = ""
    data: Any = None
    send: Callable[[int, Mapping[str, float]], None] = _ignore
    checkpoint: Checkpoint = field(default=NoCheckpoint(), compare=False)

    def report(self, step: int, **metrics: float) -> None:
        """Report metrics at a step (an epoch, usually). Idempotent on (trial, step); cheap, never blocks on the store.

        Args:
            step: Non-negative integer, resource spent so far (epochs trained).
            **metrics: Name -> number. NaN is allowed and is shown as such.

        Raises:
            TrialStopped: If this trial must end now.
            TypeError: If a metric is not a number, or the step is not a non-negative integer below 2**63.
            ValueError: If a name is not usable.
        """
        if isinstance(step, bool) or not isinstance(step, numbers.Integral) or not 0 <= step < 2**63:
            raise TypeError(f"step must be a non-negative integer, not {step!r}")
        self.send(int(step), {check_name(name): as_float(name, value) for name, value in metrics.items()})


def check_name(name: str) -> str:
    """Return a name of a metric or a fact.

    Raises:
        ValueError: If it is not usable as one.
    """
    if not name or "." in name or name.startswith("$") or "\0" in name or not name.isprintable():
        raise ValueError(f"{name!r} is not usable as a name; names are printable text without '.' or a leading '$'")
    return name


def as_float(name: str, value: Any) -> float:
    """Return `value` as a float.

    Args:
        name: What the value is, for the error.
        value: An int, float, or zero-dimensional array or tensor.

    Raises:
        TypeError: If it is not a number.
    """
    if hasattr(value, "item") and not isinstance(value, numbers.Number):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise TypeError(f"{name} must be a number, not an array") from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return float(value)


def is_finite(value: float) -> bool:
    """Return whether `value` is neither NaN nor infinite."""
    return math.isfinite(value)
