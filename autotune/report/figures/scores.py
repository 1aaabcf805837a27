"""The axis of scores: what does not fit, what was pruned and what failed have a place of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from autotune.report.figures.scales import tick
from autotune.report.figures.style import GREY, plain
from autotune.report.formatting import score_text
from autotune.report.ranking import Entry
from autotune.store.base import CampaignRecord
from autotune.trial import TrialState

_FENCE = 3.0
_NATS = ("marginal_ll", "elbo_", "reconstruction_")

FINISHED, BEYOND, PRUNED, FAILURE = "finished", "beyond the axis", "pruned", "failed"
"""How a configuration is marked."""


def metric_label(name: str, mode: str) -> str:
    """Return a metric's name with its unit and what is better, in two lines.

    Args:
        name: Name of the metric.
        mode: ``min`` or ``max``.
    """
    unit = "nats per cell, " if name.startswith(_NATS) else ""
    return f"{plain(name)}\n({unit}{'higher' if mode == 'max' else 'lower'} is better)"


@dataclass(frozen=True, kw_only=True)
class ScoreAxis:
    """Where scores lie, so that a few very bad ones do not hide all others.

    The axis ends where it is worse than the worse quartile by three times the distance of the quartiles (Tukey's outer
    fence), if any score lies beyond; those are marked at the end. Failed ones have a row beyond it.

    Attributes:
        metric: Name of the metric.
        mode: ``min`` or ``max``.
        scores: Finite scores.
        failures: Number of configurations without one.
    """

    metric: str
    mode: str
    scores: tuple[float, ...]
    failures: int

    @classmethod
    def of(cls, campaign: CampaignRecord, entries: Sequence[Entry]) -> ScoreAxis:
        """Return the axis for configurations of a campaign."""
        scores = tuple(e.score for e in entries if mark(e) != FAILURE)
        metric = campaign.metric
        return cls(metric=metric["name"], mode=metric["mode"], scores=scores, failures=len(entries) - len(scores))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The best and the worst score on the axis."""
        if not self.scores:
            return 0.0, 1.0
        sign = -1.0 if self.mode == "max" else 1.0
        losses = np.sort(sign * np.asarray(self.scores))
        low, high = np.quantile(losses, [0.25, 0.75])
        fence = high + _FENCE * (high - low)
        worst = losses[-1] if high == low else losses[losses <= fence][-1]
        return float(sign * losses[0]), float(sign * worst)

    @property
    def label(self) -> str:
        """The metric with its unit and what is better."""
        return metric_label(self.metric, self.mode)

    @cached_property
    def _step(self) -> float:
        best, worst = self.ends
        span = abs(worst - best) or abs(best) * 0.1 or 1.0
        return (-1.0 if self.mode == "max" else 1.0) * span

    def is_beyond(self, score: float) -> bool:
        """Return whether a score is worse than the end of the axis."""
        return score < self.ends[1] if self.mode == "max" else score > self.ends[1]

    def place(self, entry: Entry) -> tuple[float, str]:
        """Return where a configuration lies on the axis, and how it is marked."""
        kind = mark(entry)
        if kind == FAILURE:
            return self.ends[1] + 0.2 * self._step, kind
        if self.is_beyond(entry.score):
            return self.ends[1] + 0.09 * self._step, BEYOND
        return entry.score, kind

    def apply(self, axes: Axes, *, label: bool = True) -> None:
        """Set limits, ticks and label of a vertical axis, and draw where it ends."""
        best, worst = self.ends
        beyond, failed = self.beyond, self.failures
        end = worst + (0.28 if failed else 0.14 if beyond else 0.05) * self._step
        start = best - 0.09 * self._step
        axes.set_ylim(min(start, end), max(start, end))
        self.separate(axes)
        low, high = min(best, worst), max(best, worst)
        margin = 0.02 * (high - low)
        ticks = [value for value in axes.get_yticks() if low - margin <= value <= high + margin]
        ticks = [] if not self.scores else [best] if low == high else ticks
        texts = [_tick(value) for value in ticks]
        if failed:
            ticks, texts = [*ticks, worst + 0.2 * self._step], [*texts, "failed"]
        if len(set(texts)) < len(texts):
            texts = [score_text("", value) for value in ticks[: len(texts)]]
        axes.set_yticks(ticks, texts)
        if label:
            axes.set_ylabel(self.label)

    def separate(self, axes: Axes) -> None:
        """Draw the line between scores and failed ones."""
        if self.failures:
            axes.axhline(self.ends[1] + 0.145 * self._step, color=GREY, linewidth=0.5, linestyle=(0, (4, 3)))

    @cached_property
    def beyond(self) -> int:
        """Number of scores beyond the end of the axis."""
        return sum(self.is_beyond(score) for score in self.scores)

    def sentence(self) -> str:
        """Return what is not at its place, as a sentence or nothing."""
        parts = []
        if self.beyond:
            word = "lies" if self.beyond == 1 else "lie"
            side = "below" if self.mode == "max" else "above"
            parts.append(
                f"{self.beyond} {word} {side} {score_text(self.metric, self.ends[1])}, where the axis ends "
                "(triangles; the file with the data has their scores)"
            )
        if self.failures:
            parts.append(f"{self.failures} failed (crosses)")
        return f"{'; '.join(parts)}." if parts else ""


def _tick(value: float) -> str:
    return tick(round(value, 12))


def mark(entry: Entry) -> str:
    """Return how a configuration is marked, not looking at the axis."""
    if entry.state is TrialState.FAILED or not math.isfinite(entry.score):
        return FAILURE
    return PRUNED if entry.state is TrialState.PRUNED else FINISHED


def numbers_on(axes: Axes) -> None:
    """Write plain numbers on a vertical axis."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
