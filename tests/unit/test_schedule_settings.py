"""The ``schedule`` section: defaults, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import CampaignError
from autotune.schedule import make_schedule, schedule_settings
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
