"""Schedules: who trains how far, as a pure function of what was reported."""

from __future__ import annotations

from autotune.schedule.base import (
    Action,
    Curve,
    Member,
    Preview,
    Promote,
    Propose,
    Prune,
    Schedule,
    Verdict,
)
from autotune.schedule.settings import make_schedule, schedule_metric, schedule_of, schedule_settings, step_before

__all__ = [
    "Action",
    "Curve",
    "Member",
    "Preview",
    "Promote",
    "Propose",
    "Prune",
    "Schedule",
    "Verdict",
    "make_schedule",
    "schedule_metric",
    "schedule_of",
    "schedule_settings",
    "step_before",
]
