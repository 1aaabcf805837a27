"""Reads from a store what a report is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autotune.report.curves import Curve, sample
from autotune.report.report import Report
from autotune.trial import Trial, TrialState

if TYPE_CHECKING:
    from autotune.report.benchmark import Benchmark
    from autotune.store.mongo import MongoStore


def collect(store: MongoStore, name: str, *, benchmark: Benchmark | None = None, **options: Any) -> Report:
    """Return the report of a campaign, with the curves of its trials.

    Of very many trials the curves of `autotune.report.curves.MOST_CURVES` are read, evenly chosen.

    Args:
        store: An open store.
        name: Name of the campaign.
        benchmark: Its benchmark, or None; the curve of the default configuration is read as well.
        options: Further fields of `Report`: ``n_best``, ``n_worst``, ``parameter``.

    Raises:
        NotFoundError: If there is no such campaign.
    """
    campaign = store.campaigns.get(name)
    trials = tuple(store.trials.find(name))
    begun = [trial.number for trial in trials if _has_begun(trial)]
    return Report(
        campaign=campaign,
        trials=trials,
        curves=store.reports.curves(name, sample(begun)) if begun else {},
        benchmark=benchmark,
        default_curve=_default_curve(store, benchmark),
        **options,
    )


def _has_begun(trial: Trial) -> bool:
    return bool(trial.attempts) and trial.state is not TrialState.QUEUED


def _default_curve(store: MongoStore, benchmark: Benchmark | None) -> Curve | None:
    """Return what the default configuration reported while it trained for the benchmark."""
    trial = None if benchmark is None else benchmark.default_trial
    return None if trial is None else store.reports.curve(trial.campaign, trial.number)
