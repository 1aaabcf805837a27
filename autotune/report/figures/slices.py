"""Slices: the score against every parameter, side by side."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.marks import legend, ring, rows, scatter
from autotune.report.figures.scores import PRUNED
from autotune.report.figures.style import PAGE_MM, canvas, order_map

NAME = "slices"
MOST_PANELS = 24
_PER_ROW = 3


def slices(scene: Scene) -> Drawing:
    """Return the figure: one panel per parameter, coloured by the order of the trials.

    Args:
        scene: The campaign.
    """
    shown = scene.scales[:MOST_PANELS]
    columns = ("parameter", "number", "state", "cause", "value", "score", "x", "y", "mark")
    if not shown or not scene.entries:
        why = "No trial has ended yet." if not scene.entries else "No parameter is searched."
        return scene.empty(NAME, "Slices", why, columns)
    tables = [rows(scene, scale, "number") for scale in shown]
    numbers = [entry.number for entry in scene.entries]
    norm = Normalize(min(numbers), max(max(numbers), min(numbers) + 1))
    best = None if scene.best is None else scene.best.number
    per_row = min(_PER_ROW, len(shown))
    lines = math.ceil(len(shown) / per_row)

    def draw() -> Figure:
        figure = canvas(PAGE_MM if per_row > 1 else PAGE_MM / 2, 18 + 52 * lines, scene.head())
        grid = figure.subplots(lines, per_row, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(shown):
                axes.set_axis_off()
                continue
            scatter(axes, tables[place], "number", norm, order_map())
            ring(axes, tables[place], best)
            shown[place].apply(axes, most=6)
            scene.scores.apply(axes, label=place % per_row == 0)
            axes.tick_params(labelleft=place % per_row == 0)
        bar = figure.colorbar(ScalarMappable(norm=norm, cmap=order_map()), ax=grid, pad=0.01, aspect=30 * lines,
                              fraction=0.05)  # fmt: skip
        bar.set_label("number of the trial")
        bar.outline.set_visible(False)
        legend(figure, [mark for table in tables for mark in table["mark"]], best is not None)
        return figure

    caption = _caption(scene, len(shown))
    if any(PRUNED in set(table["mark"]) for table in tables):
        caption += " Squares: pruned, with the score of a shorter training."
    data = pd.concat([t.assign(parameter=s.name) for t, s in zip(tables, shown, strict=True)])[list(columns)]
    return Drawing(
        draw=draw, name=NAME, title="Score against every parameter", caption=caption, data=data,
        alt=f"{len(shown)} small scatter plots of {scene.metric}, one per parameter. {caption}",
    )  # fmt: skip


def _caption(scene: Scene, panels: int) -> str:
    parts = ["Score against each parameter; colour: number of the trial, red (first) to green (last)."]
    parts.append(scene.counted())
    if panels < len(scene.scales):
        parts.append(f"The first {panels} of {len(scene.scales)} parameters.")
    if scene.best is not None:
        parts.append(f"Ring: the best, trial {scene.best.number}.")
    return " ".join([*parts, scene.scores.sentence()]).strip()
