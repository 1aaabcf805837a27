"""Configurations as marks: score against one parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorizer import ColorizingArtist
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.scales import Scale
from autotune.report.figures.scores import BEYOND, FAILURE, FINISHED, PRUNED
from autotune.report.figures.style import COLUMN_MM, FAILED, GREY, MANY, amount_map, canvas, plain

_GOLDEN = 0.6180339887498949
_JITTER = 0.28  # to either side, in categories or whole numbers
_SHAPES = {FINISHED: "o", BEYOND: "^", PRUNED: "s", FAILURE: "x"}


def rows(scene: Scene, scale: Scale, color: str) -> pd.DataFrame:
    """Return one row per mark: number, state, cause, value, score, colour, and where it is drawn.

    Configurations that have no such parameter are left out. Marks of parameters with few values are moved sideways, by
    an amount that depends on the trial's number alone.

    Args:
        scene: The campaign.
        scale: The parameter.
        color: ``n_epochs`` or ``number``: what the colour says.
    """
    found: list[dict[str, Any]] = []
    for entry in scene.entries:
        place = scale.place(entry.params.get(scale.name))
        if math.isnan(place):
            continue
        y, mark = scene.scores.place(entry)
        shift = (2 * ((entry.number * _GOLDEN) % 1.0) - 1) * _JITTER if scale.spots else 0.0
        row = {"number": entry.number, "state": str(entry.state), "cause": entry.cause}
        row |= {"value": entry.params.get(scale.name), "score": entry.score}
        if color != "number":
            row[color] = entry.facts.get(color)
        found.append(row | {"x": place + shift, "y": y, "mark": mark})
    columns = ["number", "state", "cause", "value", "score", *([] if color == "number" else [color]), "x", "y", "mark"]
    return pd.DataFrame(found, columns=columns)


def scatter(axes: Axes, table: pd.DataFrame, color: str, norm: Normalize, cmap: Colormap) -> ColorizingArtist | None:
    """Draw marks; return those that carry colours.

    Args:
        axes: The axes.
        table: As `rows` returns it.
        color: Column that the colour says.
        norm: Scale of the colours.
        cmap: Colours.
    """
    many = len(table) > MANY
    size = 4.0 if many else 14.0 if len(table) > 150 else 20.0
    colored = None
    for mark, shape in _SHAPES.items():
        part = table[table["mark"] == mark]
        if part.empty:
            continue
        values = pd.to_numeric(part[color], errors="coerce").to_numpy(dtype=float)
        style: dict[str, Any] = {"s": size, "marker": shape, "rasterized": many, "zorder": 3}
        if mark == FAILURE:
            axes.scatter(part["x"], part["y"], c=FAILED, linewidths=0.8, **style)
        elif mark == PRUNED:
            axes.scatter(
                part["x"], part["y"], facecolors="none", edgecolors=_edges(values, norm, cmap), linewidths=0.8, **style
            )
        elif np.isnan(values).all():
            axes.scatter(part["x"], part["y"], c=GREY, alpha=0.85, linewidths=0, **style)
        else:
            colored = axes.scatter(
                part["x"], part["y"], c=values, cmap=cmap, norm=norm, plotnonfinite=True, alpha=0.5 if many else 0.9,
                edgecolors="none" if many else "white", linewidths=0.0 if many else 0.3, **style,
            )  # fmt: skip
    return colored


def _edges(values: np.ndarray, norm: Normalize, cmap: Colormap) -> list[Any]:
    """Return a colour for each value, grey where it is not known."""
    return [GREY if math.isnan(value) else cmap(norm(value)) for value in values]


def ring(axes: Axes, table: pd.DataFrame, number: int | None) -> None:
    """Draw a ring around the best configuration."""
    best = table[table["number"] == number]
    axes.scatter(best["x"], best["y"], s=70, facecolors="none", edgecolors="black", linewidths=0.9, zorder=4)


def legend(figure: Figure, kinds: Sequence[str], best: bool) -> None:
    """Explain marks, where there is more than one kind."""
    shown = [kind for kind in _SHAPES if kind in set(kinds)]
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=_SHAPES[kind],
            label=kind,
            markersize=4,
            color=FAILED if kind == FAILURE else GREY,
            markerfacecolor="none" if kind == PRUNED else None,
        )
        for kind in shown
    ]
    if best:
        handles.append(
            Line2D([], [], linestyle="", marker="o", markersize=7, color="black", markerfacecolor="none", label="best")
        )
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.1,
                      columnspacing=1.0)  # fmt: skip


def score_by(scene: Scene, scale: Scale, name: str) -> Drawing:
    """Return the scatter of the score against one parameter, coloured by epochs.

    Args:
        scene: The campaign.
        scale: The parameter.
        name: Name of the files.
    """
    color = "n_epochs" if scene.has_epochs else "number"
    word = "epochs trained to the best state" if scene.has_epochs else "number of the trial"
    table = rows(scene, scale, color)
    values = pd.to_numeric(table[color], errors="coerce").dropna()
    norm = _norm(values)
    best = None if scene.best is None else scene.best.number

    def draw() -> Figure:
        figure = canvas(COLUMN_MM, 70, scene.head(len(table)))
        axes = figure.add_subplot()
        colored = scatter(axes, table, color, norm, amount_map())
        ring(axes, table, best)
        scale.apply(axes)
        scene.scores.apply(axes)
        if colored is not None and len(values):
            bar = figure.colorbar(colored, ax=axes, pad=0.02, aspect=30)
            bar.set_label(word)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=2)
            bar.ax.yaxis.set_major_locator(MaxNLocator(7, integer=True))
            bar.solids.set_alpha(1.0)  # type: ignore[union-attr]
        legend(figure, table["mark"].tolist(), best is not None)
        return figure

    return Drawing(
        draw=draw, name=name, title=f"Score against {plain(scale.name, 60)}",
        caption=_caption(scene, scale, table, word),
        alt=f"Scatter plot of {scene.metric} against {scale.name}, coloured by {word}. {scene.counted()}", data=table,
    )  # fmt: skip


def _norm(values: pd.Series[float]) -> Normalize:
    """Return the scale of colours, wide enough also for one value."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return Normalize(low, high) if high > low else Normalize(low - 1, high + 1)


def _caption(scene: Scene, scale: Scale, table: pd.DataFrame, word: str) -> str:
    parts = [f"Score against {scale.name}; colour: {word}.", scene.counted()]
    absent = len(scene.entries) - len(table)
    if absent:
        parts.append(f"{absent} without this parameter {'is' if absent == 1 else 'are'} not drawn.")
    if scale.spots:
        parts.append("Marks are moved sideways so that they do not hide each other.")
    if scene.best is not None:
        parts.append(f"Ring: the best, trial {scene.best.number}.")
    if PRUNED in set(table["mark"]):
        parts.append("Squares: pruned, with the score of a shorter training.")
    return " ".join([*parts, scene.scores.sentence()]).strip()
