"""What trainings reported while they ran, as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.store.base import CampaignRecord
from autotune.trial import Report

Curve = Sequence[Report]
"""The reports of one trial, in order of step."""

MOST_CURVES = 500
"""So many trials' curves are drawn at most."""

MOST_POINTS = 400
"""So many points of a curve are drawn at most."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of one trial.

    Attributes:
        number: Number of the trial, or -1 for the default configuration.
        steps: Steps (epochs as a rule), upwards.
        values: Value at each; NaN where it was not a number.
    """

    number: int
    steps: tuple[int, ...]
    values: tuple[float, ...]


def sample(numbers: Sequence[int], most: int = MOST_CURVES) -> list[int]:
    """Return at most `most` of the numbers, evenly spaced, the first and the last among them."""
    ordered = sorted(numbers)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def metric_of(campaign: CampaignRecord, curves: Mapping[int, Curve]) -> str | None:
    """Return which reported metric the curves show, or None where nothing was reported.

    The schedule's metric, else the campaign's own, else the first that says ``validation`` in its name, else the first.

    Args:
        campaign: The campaign.
        curves: Number of a trial -> its reports.
    """
    reported = sorted({name for curve in curves.values() for report in curve for name in report.metrics})
    schedule = (campaign.spec.get("schedule") or {}).get("metric") or {}
    wanted = [schedule.get("name"), campaign.metric["name"]]
    wanted += [name for name in reported if "validation" in name] + reported
    return next((str(name) for name in wanted if name in reported), None)


def mode_of(campaign: CampaignRecord, metric: str) -> str:
    """Return what is better of a reported metric, ``min`` or ``max``; ``min`` where nobody says."""
    schedule = (campaign.spec.get("schedule") or {}).get("metric") or {}
    known = (campaign.facts.get("objective") or {}).get("metrics") or {}
    for said in (campaign.metric, schedule):
        if said.get("name") == metric:
            return str(said["mode"])
    one = known.get(metric)
    return str(one["mode"]) if isinstance(one, Mapping) and one.get("mode") in ("min", "max") else "min"


def line(number: int, curve: Curve, metric: str) -> Line:
    """Return one metric of a trial's reports, thinned to `MOST_POINTS`."""
    found = [(report.step, report.metrics[metric]) for report in curve if metric in report.metrics]
    if len(found) > MOST_POINTS:
        found = [found[i] for i in sample(range(len(found)), MOST_POINTS)]
    values = tuple(float(value) if math.isfinite(value) else math.nan for _, value in found)
    return Line(number=number, steps=tuple(step for step, _ in found), values=values)
