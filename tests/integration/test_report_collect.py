"""What a report reads from a real store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.errors import NotFoundError
from autotune.report import curves
from autotune.report.collect import collect
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, campaign_record, claim, propose, result
from autotune.trial import Report


def _train(store: MongoStore, count: int, campaign: str = CAMPAIGN) -> None:
    """Create a campaign whose trials report twice and finish; the last one waits in the queue."""
    store.campaigns.create(campaign_record(campaign))
    for number in range(count):
        propose(store, number, campaign)
    for number in range(count - 1):
        lease = claim(store, campaign)
        store.reports.add(lease, [Report(step=step, metrics={"loss": float(number)}) for step in (1, 2)])
        store.trials.finish(lease, result(float(number)))


def test_curves_of_all_trials_in_one_query(store: MongoStore) -> None:
    _train(store, 4)
    found = store.reports.curves(CAMPAIGN)
    assert {number: [r.step for r in curve] for number, curve in found.items()} == {0: [1, 2], 1: [1, 2], 2: [1, 2]}
    assert found == store.reports.curves(CAMPAIGN, range(9))
    assert list(store.reports.curves(CAMPAIGN, [1])) == [1]
    assert store.reports.curves("other") == {}


def test_a_report_has_the_curves_of_trials_that_have_begun(store: MongoStore) -> None:
    _train(store, 4)
    made = collect(store, CAMPAIGN, n_best=2, n_worst=0)
    assert (len(made.trials), len(made.best), made.default_curve, made.benchmark) == (4, 2, None, None)
    assert made.curves is not None
    assert list(made.curves) == [0, 1, 2]
    with pytest.raises(NotFoundError):
        collect(store, "absent")


def test_curves_are_bounded(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(store, 8)
    monkeypatch.setattr(curves.sample, "__defaults__", (3,))
    made = collect(store, CAMPAIGN)
    assert list(made.curves or {}) == [0, 3, 6]


def test_the_curve_of_the_default_configuration_comes_from_the_benchmark(store: MongoStore) -> None:
    _train(store, 2)
    _train(store, 3, "companion")
    benchmark: Any = SimpleNamespace(default_trial=store.trials.get("companion", 1))
    made = collect(store, CAMPAIGN, benchmark=benchmark)
    assert [report.metrics["loss"] for report in made.default_curve or ()] == [1.0, 1.0]
    benchmark.default_trial = None
    assert collect(store, CAMPAIGN, benchmark=benchmark).default_curve is None
