"""The curve of every trial, from the first to the last, with the default run on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autotune.report.curves import MOST_CURVES, Curve, Line, line, metric_of, mode_of, sample
from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.scores import metric_label, numbers_on
from autotune.report.figures.style import DEFAULT_BLUE, FAILED, PAGE_MM, PRUNED, canvas, order_map
from autotune.report.formatting import number_text
from autotune.trial import TrialState

NAME = "history"
_SHARE, _MORE = 0.9, 1.5
_COLUMNS = ("number", "state", "step", "value")


def history(scene: Scene, curves: Mapping[int, Curve], default: Curve | None) -> Drawing:
    """Return the figure of all curves.

    Args:
        scene: The campaign.
        curves: Number of a trial -> its reports.
        default: Reports of the default configuration, or None.
    """
    metric = metric_of(scene.campaign, curves)
    if metric is None:
        return scene.empty(NAME, "Histories", "No trial has reported a metric while it trained.", _COLUMNS)
    lines = [made for n in sample(list(curves)) if (made := line(n, curves[n], metric)).steps]
    top = None if default is None else line(-1, default, metric)
    top = top if top is not None and top.steps else None
    states = {trial.number: trial.state for trial in scene.trials}
    begun = sum(bool(trial.attempts) and trial.state is not TrialState.QUEUED for trial in scene.trials)
    low, high = limits([*lines, *([top] if top else [])], mode_of(scene.campaign, metric))

    def draw() -> Figure:
        figure = canvas(PAGE_MM, 85, scene.head(len(lines), "trial", max(len(lines), begun)))
        axes = figure.add_subplot()
        norm = _draw_lines(axes, lines, states)
        if top is not None:
            axes.plot(top.steps, top.values, color=DEFAULT_BLUE, linewidth=1.8, zorder=6, marker="o",
                      markersize=0 if len(top.steps) > 1 else 4,
                      path_effects=[patheffects.withStroke(linewidth=3.4, foreground="white")])  # fmt: skip
        axes.set_ylim(low, high)
        axes.set_xlabel("epoch" if scene.has_epochs else "step that was reported")
        axes.set_ylabel(metric_label(metric, mode_of(scene.campaign, metric)))
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        numbers_on(axes)
        longest = max(one.steps[-1] for one in [*lines, *([top] if top else [])])
        axes.set_xlim(min(0, *(one.steps[0] for one in lines)) - 0.01 * longest, longest * 1.01 + 0.2)
        _explain(figure, axes, norm, [states.get(one.number) for one in lines], top is not None)
        return figure

    caption = _caption(scene, metric, lines, top, (low, high), begun)
    table = _table(lines, top, states)
    alt = f"Line plot of {metric} over training, one line per trial, from red (first) to green (last). {caption}"
    return Drawing(draw=draw, name=NAME, title=f"Histories of {metric}", caption=caption, alt=alt, data=table)


def limits(lines: Sequence[Line], mode: str) -> tuple[float, float]:
    """Return the ends of the vertical axis.

    The better end is the best value of all. The worse end is 1.5 times as far from it as the bests of 90% of the curves
    lie, or 60% of all values: the first epochs of a training are far worse than its end, and would hide it.

    Args:
        lines: The curves.
        mode: ``min`` or ``max``.
    """
    sign = -1.0 if mode == "max" else 1.0
    values = np.concatenate([sign * np.asarray(one.values) for one in lines])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    mine = [sign * np.asarray(one.values) for one in lines]
    ends = np.array([np.nanmin(one) for one in mine if np.isfinite(one).any()])
    best, worst = float(values.min()), float(values.max())
    bulk = float(np.quantile(ends, _SHARE)) - best
    typical = float(np.quantile(values, 0.6)) - best
    worst = min(worst, best + max(bulk, typical) * _MORE) if max(bulk, typical) > 0 else worst
    pad = 0.03 * ((worst - best) or abs(best) or 1.0)
    first, last = sorted((sign * (best - pad), sign * (worst + pad)))
    return first, last


def _draw_lines(axes: Axes, lines: Sequence[Line], states: Mapping[int, TrialState]) -> Normalize:
    """Draw the curves, first to last, and how pruned and failed ones ended."""
    cmap, norm = order_map(), Normalize(lines[0].number, max(lines[-1].number, lines[0].number + 1))
    alpha = float(np.clip(60.0 / len(lines), 0.25, 0.9))
    width = 0.9 if len(lines) <= 60 else 0.6
    many = sum(len(one.steps) for one in lines) > 6000
    longer = [one for one in lines if len(one.steps) > 1]
    axes.add_collection(
        LineCollection(
            [np.column_stack([one.steps, one.values]) for one in longer],
            linewidths=width,
            alpha=alpha,
            colors=[cmap(norm(one.number)) for one in longer],
            rasterized=many,
            zorder=3,
        )
    )
    for one in lines:
        state = states.get(one.number)
        ended = {TrialState.FAILED: ("x", FAILED), TrialState.PRUNED: ("|", PRUNED)}.get(state) if state else None
        shape, color = ended or (".", cmap(norm(one.number)))
        if ended or len(one.steps) == 1:
            finite = [(s, v) for s, v in zip(one.steps, one.values, strict=True) if v == v]
            for step, value in finite[-1:]:
                axes.plot([step], [value], marker=shape, color=color, markersize=4, linestyle="", zorder=5,
                          markeredgewidth=0.8, rasterized=many)  # fmt: skip
    axes.autoscale_view()
    return norm


def _explain(
    figure: Figure, axes: Axes, norm: Normalize, states: Sequence[TrialState | None], has_default: bool
) -> None:
    """Draw the bar of colours and the legend."""
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=order_map()), ax=axes, pad=0.01, aspect=30)
    bar.set_label("number of the trial (red: first, green: last)")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles = []
    if has_default:
        handles.append(Line2D([], [], color=DEFAULT_BLUE, linewidth=1.8, label="default configuration"))
    if TrialState.FAILED in states:
        handles.append(Line2D([], [], color=FAILED, marker="x", linestyle="", markersize=4, label="failed here"))
    if TrialState.PRUNED in states:
        handles.append(Line2D([], [], color=PRUNED, marker="|", linestyle="", markersize=5, label="pruned here"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _table(lines: Sequence[Line], top: Line | None, states: Mapping[int, TrialState]) -> pd.DataFrame:
    found: list[tuple[Any, ...]] = []
    for one in [*lines, *([top] if top is not None else [])]:
        state = "default" if one is top else str(states.get(one.number, ""))
        number = None if one is top else one.number
        found += [(number, state, step, value) for step, value in zip(one.steps, one.values, strict=True)]
    return pd.DataFrame(found, columns=list(_COLUMNS)).astype({"number": "Int64"})


def _caption(
    scene: Scene, metric: str, lines: Sequence[Line], top: Line | None, ends: tuple[float, float], known: int
) -> str:
    low, high = ends
    values = np.concatenate([np.asarray(one.values) for one in lines])
    values = values[np.isfinite(values)]
    outside = int(((values < low) | (values > high)).sum())
    unseen = sum(not any(low <= value <= high for value in one.values) for one in lines)
    parts = [f"{metric} as reported while training, one line per trial, red (first) to green (last), each darker than"]
    parts.append("the one before.")
    if len(lines) >= known:
        parts.append(f"{len(lines)} trials.")
    else:
        chosen = ", evenly chosen" if known > MOST_CURVES else "; the others have reported nothing"
        parts.append(f"{len(lines)} of {known} trials{chosen}.")
    if top is not None:
        parts.append("Blue: the default configuration.")
    if outside:
        share = f"{100 * outside / len(values):.2g}%"
        parts.append(f"The axis ends at {number_text(float(low), 5)} and {number_text(float(high), 5)}: {share} of the")
        parts.append(f"values lie beyond it, and {unseen} curves wholly.")
    return scene.simulated + " ".join(parts)
