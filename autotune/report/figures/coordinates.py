"""Parallel coordinates: each configuration a line through its parameters to its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.scales import Scale, option_text, tick
from autotune.report.figures.scores import FAILURE
from autotune.report.figures.style import FAILED, GREY, INK, PAGE_MM, amount_map, canvas, plain, wrapped
from autotune.report.ranking import Entry

NAME = "parallel_coordinates"
MOST_AXES, MOST_LINES = 12, 1000
_ABSENT = -0.12  # below the axes: a configuration that has no such parameter
_COLUMNS = ("number", "state", "rank", "axis", "value", "position")


def parallel_coordinates(scene: Scene) -> Drawing:
    """Return the figure.

    Args:
        scene: The campaign.
    """
    shown = scene.scales[:MOST_AXES]
    if not shown or not scene.entries:
        why = "No trial has ended yet." if not scene.entries else "No parameter is searched."
        return scene.empty(NAME, "Parallel coordinates", why, _COLUMNS)
    ranks = _ranks(scene)
    chosen = _chosen(scene, ranks)
    ends = {scale.name: _ends(scene, scale) for scale in shown}
    paths = {
        number: [_unit(scale, ends[scale.name], entry.params.get(scale.name)) for scale in shown]
        + [_score_unit(scene, entry)]
        for entry in scene.entries
        if (number := entry.number) in chosen
    }

    def draw() -> Figure:
        figure = canvas(PAGE_MM, 80, scene.head(len(paths)))
        axes = figure.add_subplot()
        norm = _lines(axes, paths, ranks)
        for x, scale in enumerate(shown):
            _axis(axes, x, scale, ends[scale.name])
        _score_axis(axes, len(shown), scene)
        _frame(axes, [scale.name for scale in shown] + [scene.metric])
        if norm is not None and len(ranks) > 1:
            bar = figure.colorbar(ScalarMappable(norm=norm, cmap=amount_map()), ax=axes, pad=0.01, aspect=30)
            bar.set_label("rank (1: the best)")
            bar.ax.invert_yaxis()
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_locator(FixedLocator(_rank_ticks(len(ranks))))
        return figure

    caption = _caption(scene, len(shown), len(paths))
    return Drawing(
        draw=draw, name=NAME, title="Parallel coordinates", caption=caption, data=_table(scene, shown, paths, ranks),
        alt=f"Parallel coordinates of {len(shown)} parameters and {scene.metric}. {caption}",
    )  # fmt: skip


def _ranks(scene: Scene) -> dict[int, int]:
    """Return number -> rank of the configurations with a finite score of a whole training."""
    sign = -1.0 if scene.campaign.metric["mode"] == "max" else 1.0
    ordered = sorted((sign * e.score, e.number) for e in scene.entries if e.is_scored)
    return {number: place for place, (_, number) in enumerate(ordered, start=1)}


def _chosen(scene: Scene, ranks: dict[int, int]) -> set[int]:
    """Return which configurations are drawn: the best half of the most, and others evenly."""
    numbers = [entry.number for entry in scene.entries]
    if len(numbers) <= MOST_LINES:
        return set(numbers)
    ordered = sorted(numbers, key=lambda number: ranks.get(number, len(numbers)))
    half = MOST_LINES // 2
    rest = ordered[half:]
    return {*ordered[:half], *(rest[i * len(rest) // half] for i in range(half))}


def _ends(scene: Scene, scale: Scale) -> tuple[float, float]:
    if scale.kind == "categorical":
        return 0.0, float(max(len(scale.options) - 1, 0))
    places = [scale.place(entry.params.get(scale.name)) for entry in scene.entries]
    known = [place for place in places if not math.isnan(place)]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _unit(scale: Scale, ends: tuple[float, float], value: Any) -> float:
    unit = scale.unit(value, *ends)
    return _ABSENT if math.isnan(unit) else unit


def _score_unit(scene: Scene, entry: Entry) -> float:
    """Return where a score lies between 1 (best, at the top) and 0 (worst on the axis); failed ones below."""
    y, mark = scene.scores.place(entry)
    if mark == FAILURE:
        return _ABSENT
    best, worst = scene.scores.ends
    return max(1 - (y - best) / (worst - best), -0.05) if worst != best else 0.5


def _lines(axes: Axes, paths: dict[int, list[float]], ranks: dict[int, int]) -> Normalize | None:
    """Draw the lines, the best on top; those that are not ranked thin and grey."""
    others = [number for number in paths if number not in ranks]
    ranked = sorted((number for number in paths if number in ranks), key=lambda n: -ranks[n])
    many = len(paths) > 150
    if others:
        axes.add_collection(
            LineCollection(
                [list(enumerate(paths[n])) for n in others],
                colors=GREY,
                linewidths=0.5,
                alpha=0.5,
                linestyles=(0, (3, 2)),
                rasterized=many,
                zorder=2,
            )
        )
    if not ranked:
        return None
    norm, cmap = Normalize(1, max(ranks.values()) if len(ranks) > 1 else 2), amount_map()
    alphas = [0.95 if ranks[n] <= min(20, max(3, len(ranked) // 10)) else (0.15 if many else 0.45) for n in ranked]
    colors = [(*cmap(norm(ranks[n]))[:3], alpha) for n, alpha in zip(ranked, alphas, strict=True)]
    widths = [1.3 if alpha > 0.9 else 0.6 for alpha in alphas]
    axes.add_collection(
        LineCollection(
            [list(enumerate(paths[n])) for n in ranked], colors=colors, linewidths=widths, rasterized=many, zorder=3
        )
    )
    return norm


def _rank_ticks(count: int) -> list[int]:
    """Return 1, about five round ranks, and the last."""
    step = max(2, int(float(f"{count / 5:.1g}")))
    return [1, *range(step, count - step // 2, step), count]


def _axis(axes: Axes, x: int, scale: Scale, ends: tuple[float, float]) -> None:
    """Draw one axis with its ticks."""
    axes.plot([x, x], [0, 1], color=INK, linewidth=0.7, zorder=4)
    low, high = ends
    if scale.kind == "categorical":
        step = max(1, math.ceil(len(scale.options) / 12))
        ticks = [(scale.unit(o, low, high), option_text(o, 12)) for o in scale.options[::step]]
    elif high <= low:
        ticks = [(0.5, tick(low))]
    elif scale.kind == "log":
        ticks = [(u, tick(float(f"{math.exp(math.log(low) + u * math.log(high / low)):.2g}"))) for u in (0, 0.5, 1)]
    else:
        count = int(high - low) + 1 if scale.spots and high - low <= 6 else 3
        ticks = [(u, tick(float(f"{low + u * (high - low):.3g}"))) for u in np.linspace(0, 1, count)]
    for unit, text in ticks:
        _tick(axes, x, float(unit), text)


def _score_axis(axes: Axes, x: int, scene: Scene) -> None:
    axes.plot([x, x], [0, 1], color=INK, linewidth=1.4, zorder=4)
    best, worst = scene.scores.ends
    if scene.scores.scores:
        for unit in (0.0, 0.5, 1.0) if worst != best else (0.5,):
            _tick(axes, x, 1 - unit, tick(float(f"{best + unit * (worst - best):.5g}")))
    if scene.scores.failures:
        _tick(axes, x, _ABSENT, "failed", FAILED)


def _tick(axes: Axes, x: int, y: float, text: str, color: str = INK) -> None:
    axes.text(x + 0.03, y, text, fontsize=7, va="center", ha="left", color=color, zorder=6,
              bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip


def _frame(axes: Axes, names: Sequence[str]) -> None:
    """Name the axes and hide the frame."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    width = max(10, 100 // len(names))
    texts = [_broken(plain(name, 2 * width), width) for name in names]
    axes.set_xticks(range(len(names)), texts)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 1 + 0.45)
    axes.set_ylim(-0.18, 1.06)


def _broken(name: str, width: int) -> str:
    """Return a name in lines, broken after ``_`` and ``.`` where it is long."""
    if len(name) <= width:
        return name
    return wrapped(name.replace("_", "_ ").replace(".", ". "), width).replace("_ ", "_").replace(". ", ".")


def _table(scene: Scene, shown: Sequence[Scale], paths: dict[int, list[float]], ranks: dict[int, int]) -> pd.DataFrame:
    found = []
    for entry in scene.entries:
        if entry.number in paths:
            values = [entry.params.get(scale.name) for scale in shown] + [entry.score]
            names = [scale.name for scale in shown] + [scene.metric]
            found += [
                (entry.number, str(entry.state), ranks.get(entry.number), name, value, place)
                for name, value, place in zip(names, values, paths[entry.number], strict=True)
            ]
    return pd.DataFrame(found, columns=list(_COLUMNS)).astype({"rank": "Int64"})


def _caption(scene: Scene, axes: int, lines: int) -> str:
    parts = ["One line per configuration; the best tenth (at most 20) thick, best at the top of the last axis."]
    parts.append(scene.counted())
    if axes < len(scene.scales):
        parts.append(f"The first {axes} of {len(scene.scales)} parameters.")
    if lines < len(scene.entries):
        parts.append(f"{lines} of them are drawn: the best {MOST_LINES // 2} and others evenly.")
    if any(math.isnan(s.place(e.params.get(s.name))) for s in scene.scales[:axes] for e in scene.entries):
        parts.append("A line that passes below an axis has no such parameter.")
    if len(_ranks(scene)) < len(scene.entries):
        parts.append("Grey, dashed: failed or pruned.")
    return " ".join(parts)
