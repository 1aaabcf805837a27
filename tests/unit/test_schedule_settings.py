"""The ``schedule`` section: defaults, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import CampaignError
from autotune.schedule import make_schedule, schedule_metric, schedule_settings, step_before
from autotune.schedule.asha import AshaSchedule
from autotune.schedule.hyperband import HyperbandSchedule
from autotune.schedule.median import MedianSchedule
from autotune.schedule.none import NoSchedule


@pytest.mark.parametrize(
    ("settings", "filled"),
    [
        ({}, {"algorithm": "none", "maximum": None}),
        ({"algorithm": None}, {"algorithm": "none", "maximum": None}),
        ({"algorithm": "median"}, {"algorithm": "median", "maximum": None, "warm_up": 1, "least": 5}),
        ({"algorithm": "asha", "maximum": 9}, {"algorithm": "asha", "minimum": 1, "maximum": 9, "eta": 3}),
        (
            {"algorithm": "hyperband", "minimum": 2, "maximum": 64, "eta": 4},
            {"algorithm": "hyperband", "minimum": 2, "maximum": 64, "eta": 4},
        ),
    ],
)
def test_defaults(settings: dict[str, Any], filled: dict[str, Any]) -> None:
    assert schedule_settings(settings) == filled
    assert schedule_settings(filled) == filled


def test_the_workload_gives_defaults_that_the_file_overrides() -> None:
    defaults = {"minimum": 5, "maximum": 100, "eta": None}
    assert schedule_settings({"algorithm": "asha"}, defaults) == {
        "algorithm": "asha", "minimum": 5, "maximum": 100, "eta": 3,
    }  # fmt: skip
    assert schedule_settings({"algorithm": "asha", "maximum": 50, "minimum": None}, defaults)["maximum"] == 50
    assert schedule_settings({"algorithm": "none"}, defaults) == {"algorithm": "none", "maximum": 100}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "hyperbnd"}, "unknown schedule 'hyperbnd'; did you mean 'hyperband'"),
        ({"algorithm": 3}, "not a name"),
        ({"algorithm": "asha", "maximun": 9}, "did you mean 'maximum'"),
        ({"algorithm": "asha"}, "schedule asha needs maximum"),
        ({"algorithm": "hyperband", "maximum": 9, "minimum": 10}, "below its minimum"),
        ({"algorithm": "hyperband", "maximum": 9, "eta": 1}, "eta 1 is below 2"),
        ({"algorithm": "hyperband", "maximum": 9.0}, "maximum: 9.0 is not a whole number"),
        ({"algorithm": "hyperband", "maximum": True}, "maximum: True is not a whole number"),
        ({"algorithm": "median", "warm_up": 0}, "warm_up: 0"),
        ({"algorithm": "none", "eta": 3}, "unknown setting 'eta'"),
        (["hyperband"], "a mapping such as"),
    ],
)
def test_errors(settings: Any, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        schedule_settings(settings)
    with pytest.raises(CampaignError, match=message):
        make_schedule(settings)


def test_makes() -> None:
    assert make_schedule({}) == NoSchedule()
    assert make_schedule({"algorithm": "median", "least": 2}) == MedianSchedule(least=2)
    assert make_schedule({"algorithm": "asha", "maximum": 9}) == AshaSchedule(maximum=9)
    assert make_schedule({"algorithm": "hyperband", "maximum": 9}) == HyperbandSchedule(maximum=9)


_LOSS = {"name": "loss", "mode": "min"}
_KNOWN = {"metric": {"name": "elbo", "mode": "max"}, "metrics": {"elbo": "max", "reconstruction": "min"}}


@pytest.mark.parametrize(
    ("settings", "known", "chosen"),
    [
        ({}, {}, ("loss", "min")),
        ({"metric": "loss"}, {}, ("loss", "min")),
        ({"metric": "accuracy", "mode": "max"}, {}, ("accuracy", "max")),
        ({"metric": "error", "mode": "min"}, {}, ("error", "min")),
        ({}, _KNOWN, ("elbo", "max")),
        ({"metric": "reconstruction"}, _KNOWN, ("reconstruction", "min")),
        ({"metric": "reconstruction", "mode": "min"}, _KNOWN, ("reconstruction", "min")),
    ],
)
def test_the_metric_of_a_schedule_has_its_own_mode(
    settings: dict[str, Any], known: dict[str, Any], chosen: tuple[str, str]
) -> None:
    assert schedule_metric(settings, _LOSS, known) == {"name": chosen[0], "mode": chosen[1]}


@pytest.mark.parametrize(
    ("settings", "known", "message"),
    [
        ({"metric": "accuracy"}, {}, "add mode: min or mode: max"),
        ({"metric": "loss", "mode": "max"}, {}, "loss is better when it is smaller; write mode: min"),
        ({"metric": "loss", "mode": "maximum"}, {}, "neither min nor max"),
        ({"metric": 3}, {}, "metric 3 is not a name"),
        ({"metric": "elbow"}, _KNOWN, "no metric 'elbow' is reported while a trial trains; did you mean 'elbo'"),
        ({"mode": "min"}, _KNOWN, "elbo is better when it is larger; write mode: max"),
    ],
)
def test_a_mode_that_nobody_can_know_is_asked_for(
    settings: dict[str, Any], known: dict[str, Any], message: str
) -> None:
    with pytest.raises(CampaignError, match=message):
        schedule_metric(settings, _LOSS, known)


@pytest.mark.parametrize(
    ("rung", "target", "step"), [(0, 1, 0), (0, 27, 0), (1, 3, 1), (1, 81, 27), (3, None, 27), (4, None, 27)]
)
def test_the_rung_before(rung: int, target: int | None, step: int) -> None:
    assert step_before({"schedule": {"algorithm": "hyperband", "maximum": 81, "metric": _LOSS}}, rung, target) == step


def test_the_rung_before_of_a_schedule_that_is_not_here() -> None:
    assert step_before({"schedule": {"algorithm": "of-another-package"}}, 2, 9) == 0
