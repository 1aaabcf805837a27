"""Every schedule answers to the shared suite."""

from __future__ import annotations

from typing import ClassVar

from autotune.testing.schedule_contract import ScheduleContract


class TestNone(ScheduleContract):
    settings: ClassVar = {"algorithm": "none"}


class TestNoneWithMaximum(ScheduleContract):
    settings: ClassVar = {"algorithm": "none", "maximum": 7}


class TestMedian(ScheduleContract):
    settings: ClassVar = {"algorithm": "median", "maximum": 20}


class TestAsha(ScheduleContract):
    settings: ClassVar = {"algorithm": "asha", "maximum": 9}


class TestAshaInHalves(ScheduleContract):
    settings: ClassVar = {"algorithm": "asha", "minimum": 3, "maximum": 100, "eta": 2}


class TestAshaWithOneRung(ScheduleContract):
    settings: ClassVar = {"algorithm": "asha", "maximum": 2}


class TestHyperband(ScheduleContract):
    settings: ClassVar = {"algorithm": "hyperband", "maximum": 9}


class TestHyperbandInHalves(ScheduleContract):
    settings: ClassVar = {"algorithm": "hyperband", "minimum": 3, "maximum": 50, "eta": 2}


class TestHyperbandWithOneRung(ScheduleContract):
    settings: ClassVar = {"algorithm": "hyperband", "maximum": 1}
