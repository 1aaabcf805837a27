"""The median stopping rule."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.schedule.base import Curve, Preview, Verdict
from autotune.schedule.none import NoSchedule


@dataclass(frozen=True, kw_only=True)
class MedianSchedule(NoSchedule):
    """Stops a trial whose best loss is worse than the median of what others had averaged by that step.

    The rule of Golovin et al. 2017 (Vizier, section 3.2.2). Here a trial counts as soon as it has reported the step in
    question or a later one, whether it has ended or not; in the paper only completed ones do.

    Attributes:
        maximum: Steps that a trial trains for if it is not stopped; None: what the objective decides.
        warm_up: Nothing is stopped before this step.
        least: Nothing is stopped unless so many other trials have come as far.
    """

    warm_up: int = 1
    least: int = 5

    @property
    def stops_between_rungs(self) -> bool:
        """True."""
        return True

    def verdict(self, curve: Curve, others: Sequence[Curve]) -> Verdict:
        """Return whether a trial goes on; see `Schedule.verdict`."""
        if not curve.steps or curve.steps[-1] < self.warm_up:
            return Verdict.CONTINUE
        step = curve.steps[-1]
        averages = [average for other in others if (average := other.average(step)) is not None]
        if len(averages) >= self.least and curve.best() > statistics.median(averages):
            return Verdict.STOP
        return Verdict.CONTINUE

    def preview(self, max_trials: int) -> Preview:
        """Return an upper bound: as if nothing were stopped."""
        return replace(super().preview(max_trials), exact=False, note="at most; what is stopped depends on the scores")
