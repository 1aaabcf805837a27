"""The best score so far, over trials and over device time."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.scales import tick
from autotune.report.figures.scores import BEYOND, FAILURE, FINISHED, PRUNED
from autotune.report.figures.style import DEFAULT_BLUE, FAILED, GREY, MANY, PAGE_MM, canvas, note
from autotune.report.formatting import score_text
from autotune.report.progress import progress

NAME = "best_so_far"
_UNITS = ((1.0, "hours"), (60.0, "minutes"), (3600.0, "seconds"))
_STYLES = {
    FINISHED: ("o", GREY, GREY),
    BEYOND: ("^", GREY, GREY),
    PRUNED: ("s", "none", GREY),
    FAILURE: ("x", FAILED, FAILED),
}


def best_so_far(scene: Scene) -> Drawing:
    """Return the figure: left over ended configurations, right over device time.

    Args:
        scene: The campaign.
    """
    table = progress(scene.entries, scene.trials, scene.campaign.metric["mode"])
    by_number = {entry.number: entry for entry in scene.entries}
    placed = [scene.scores.place(by_number[number]) for number in table["number"].tolist()]
    table["y"] = pd.Series([y for y, _ in placed], dtype="float64")
    table["mark"] = pd.Series([mark for _, mark in placed], dtype="object")
    if table.empty:
        return scene.empty(NAME, "Best score so far", "No trial has ended yet.", list(table.columns))
    longest = float(table["device_hours"].max())
    factor, unit = next(((f, u) for f, u in _UNITS if longest * f >= 2), _UNITS[-1])

    def draw() -> Figure:
        figure = canvas(PAGE_MM, 70, scene.head())
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, table["ended"], table, "configurations that have ended")
        scene.scores.apply(left)
        left.set_xlim(0, len(table) * 1.02 + 0.5)
        left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if table["device_hours"].notna().any():
            _panel(right, table["device_hours"] * factor, table, f"device time of all attempts ({unit})")
            scene.scores.separate(right)
            right.set_xlim(left=0)
            right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        else:
            note(right, "No attempt says on which device it ran: there is no device time to show.")
        _legend(figure, table)
        return figure

    caption = _caption(scene, table)
    alt = f"Two panels with the best {scene.metric} so far as a falling or rising staircase. {caption}"
    return Drawing(draw=draw, name=NAME, title="Best score so far", caption=caption, alt=alt, data=table)


def _panel(axes: Axes, x: pd.Series[float], table: pd.DataFrame, label: str) -> None:
    many = len(table) > MANY
    for mark, (shape, face, edge) in _STYLES.items():
        part = table["mark"] == mark
        color = {"c": edge} if shape == "x" else {"facecolors": face, "edgecolors": edge}
        axes.scatter(x[part], table["y"][part], marker=shape, s=4 if many else 12, alpha=0.8, linewidths=0.7,
                     rasterized=many, zorder=2, **color)  # type: ignore[arg-type] # fmt: skip
    known = table["best"].notna() & x.notna()
    axes.step(x[known], table["best"][known], where="post", color=DEFAULT_BLUE, linewidth=1.5, zorder=4,
              marker="o" if known.sum() == 1 else None, markersize=4)  # fmt: skip
    axes.set_xlabel(label)


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    handles = [Line2D([], [], color=DEFAULT_BLUE, linewidth=1.5, label="best so far")]
    for mark, (shape, face, edge) in _STYLES.items():
        if (table["mark"] == mark).any():
            handles.append(Line2D([], [], linestyle="", marker=shape, color=edge, markerfacecolor=face, markersize=4,
                                  label=mark))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)


def _caption(scene: Scene, table: pd.DataFrame) -> str:
    parts = ["Best score of finished configurations so far (line), and each score (marks), in order of end."]
    parts.append(scene.counted())
    last = table["best"].dropna()
    if len(last):
        final = float(last.iloc[-1])
        reached = int((table["best"] != final).sum()) + 1
        parts.append(f"The best, {score_text(scene.metric, final)}, came {reached}. of {len(table)}.")
    hours = table["device_hours"].dropna()
    if len(hours):
        parts.append("Device time: of all attempts, failed ones too; k trials on one device count 1/k each.")
    return " ".join([*parts, scene.scores.sentence()]).strip()
