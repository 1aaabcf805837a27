"""What a trial is compared by at its rung, and what begins while there is no room for checkpoints."""

from __future__ import annotations

import math
from typing import Any

import pytest

from autotune.planning import spared
from autotune.schedule import Action, Promote, Propose, Prune
from autotune.trial import Report, Trial, TrialState
from workers.reports import BestReported, apart_s


def trial(state: TrialState = TrialState.RUNNING, **more: Any) -> Trial:
    return Trial(campaign="c", number=0, params={}, config_hash="", state=state, **more)


def score(values: dict[int, float], mode: str = "min", **more: Any) -> float | None:
    """Return the score at its rung of a trial that reports these values by step."""
    schedule = {"algorithm": "hyperband", "maximum": 9, "metric": {"name": "loss", "mode": mode}}
    best = BestReported({"schedule": schedule}, trial(**more))
    for step, value in values.items():
        best.take(Report(step=step, metrics={"loss": value, "other": 0.0}))
    return best.value


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        ({1: 3.0}, {"target": 1}, 3.0),
        ({1: 3.0, 2: 1.0, 3: 2.0}, {"target": 3}, 1.0),
        ({1: math.nan, 2: 4.0, 3: math.inf}, {"target": 3}, 4.0),
        ({1: math.nan}, {"target": 1}, None),
        ({}, {"target": 1}, None),
        ({2: 5.0, 3: 5.0}, {"target": 3, "rung": 1, "rung_scores": (2.0,)}, 2.0),
        ({}, {"target": 3, "rung": 1, "rung_scores": (2.0,)}, 2.0),
        ({2: math.nan, 3: math.nan}, {"target": 3, "rung": 1, "rung_scores": (2.0,)}, None),
        ({1: 2.0, 2: math.nan, 3: math.nan}, {"target": 3, "rung": 1, "rung_scores": (2.0,)}, None),
        ({2: math.nan, 3: 7.0}, {"target": 3, "rung": 1, "rung_scores": (2.0,)}, 2.0),
        ({4: math.inf, 9: math.nan}, {"rung": 2, "rung_scores": (2.0, 1.0)}, None),
    ],
)
def test_a_number_that_is_none_is_never_the_best(
    values: dict[int, float], more: dict[str, Any], expected: float | None
) -> None:
    """A rung that a trial reached with nothing but NaN, whatever it had before, ranks it last."""
    assert score(values, **more) == expected


def test_larger_may_be_better() -> None:
    assert score({1: 3.0, 2: 5.0, 3: -math.inf}, mode="max", target=3) == 5.0


ACTIONS: list[Action] = [Propose(), Propose(), Prune(number=3)]


@pytest.mark.parametrize("state", [TrialState.QUEUED, TrialState.RUNNING])
def test_without_room_nothing_begins_while_something_is_on_its_way(state: TrialState) -> None:
    assert spared([trial(TrialState.PAUSED), trial(state)], ACTIONS) == [Prune(number=3)]


def test_without_room_one_trial_begins_where_everybody_waits() -> None:
    assert spared([trial(TrialState.PAUSED), trial(TrialState.FINISHED)], ACTIONS) == [Propose(), Prune(number=3)]
    promotion = Promote(number=1, rung=1)
    assert spared([trial(TrialState.PAUSED)], [promotion, *ACTIONS]) == [promotion, Prune(number=3)]


@pytest.mark.parametrize(
    ("since_s", "took_s", "crowd_s", "expected"),
    [
        (0.0, 0.001, 0.0, 0.5), (5.0, 0.001, 0.0, 0.5), (20.0, 0.001, 0.0, 2.0), (30.0, 0.001, 0.0, 3.0),
        (1e6, 0.001, 0.0, 3.0), (0.0, 0.05, 0.0, 2.5), (1e6, 0.05, 0.0, 3.0), (1e6, 0.1, 0.0, 5.0),
        (0.0, 0.2, 0.0, 6.0), (1e6, 60.0, 0.0, 6.0), (0.0, 0.001, 0.1, 0.5), (0.0, 0.001, 4.0, 4.0),
        (1e6, 0.001, 4.0, 4.0), (0.0, 0.001, 40.0, 6.0),
    ],
)  # fmt: skip
def test_reports_go_out_the_more_seldom_the_older_the_training_the_slower_the_store_and_the_more_the_workers(
    since_s: float, took_s: float, crowd_s: float, expected: float
) -> None:
    assert apart_s(since_s, took_s, crowd_s) == pytest.approx(expected)
