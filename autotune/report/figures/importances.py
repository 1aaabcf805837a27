"""The importance of parameters, as bars."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autotune.report.figures.drawing import Drawing, Scene
from autotune.report.figures.scales import Scale, tick
from autotune.report.figures.style import COLUMN_MM, DEFAULT_BLUE, GREY, INK, canvas, plain, wrapped
from autotune.report.ranking import Entry

NAME, TITLE = "importance", "Importance of parameters"
_MOST_BARS = 20
_COLUMNS = ("parameter", "importance", "spread", "active")


def importances(scene: Scene) -> Drawing:
    """Return the figure; without scikit-learn, or with too few trials, it says so.

    Args:
        scene: The campaign.
    """
    try:
        from autotune.report.importance import importance
    except ImportError:
        why = "Importance needs scikit-learn: pip install 'autotune[report]'"
        return scene.empty(NAME, TITLE, why, _COLUMNS)
    entries = [entry for entry in scene.entries if entry.is_scored]
    found = importance({s.name: [_number(s, e) for e in entries] for s in scene.scales}, [e.score for e in entries])
    if found.table.empty:
        return scene.empty(NAME, TITLE, found.warning, _COLUMNS)
    table = found.table.head(_MOST_BARS)

    def draw() -> Figure:
        figure = canvas(COLUMN_MM, 26 + 6.0 * len(table) + (8 if found.warning else 0), scene.head(found.used))
        axes = figure.add_subplot()
        places = np.arange(len(table))
        axes.barh(places, table["importance"], height=0.62, color=GREY if found.warning else DEFAULT_BLUE, alpha=0.75)
        axes.errorbar(table["importance"], places, xerr=table["spread"], fmt="none", ecolor=INK, elinewidth=0.8,
                      capsize=2)  # fmt: skip
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.set_yticks(places, [plain(name, 26) for name in table["parameter"]])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(value, 9))))
        axes.set_xlabel("explained share of variance lost when shuffled")
        if found.warning:
            figure.supxlabel(wrapped(found.warning, 60), fontsize=7, x=0.02, ha="left", style="italic")
        return figure

    caption = _caption(scene, found.used, found.explained, found.warning, len(found.table))
    listed = ", ".join(f"{n} {v:.2f}" for n, v in zip(table["parameter"], table["importance"], strict=True))
    alt = f"Horizontal bars, the importance of each parameter: {listed}. {caption}"
    return Drawing(draw=draw, name=NAME, title=TITLE, caption=caption, alt=alt, data=table)


def _number(scale: Scale, entry: Entry) -> float:
    place = scale.place(entry.params.get(scale.name))
    return math.log(place) if scale.kind == "log" and place > 0 else place


def _caption(scene: Scene, used: int, explained: float, warning: str, parameters: int) -> str:
    parts = [
        "Permutation importance on random forests (scikit-learn, 20 forests, measured on configurations that a forest "
        "has not seen) of the ranks of the scores; lines: standard deviation over forests.",
        scene.counted(),
        f"{used} finished ones are used; failed and pruned ones are not.",
        f"The forests explain {max(explained, 0.0):.0%} of held-out variance.",
        "A parameter that only some configurations have is shuffled among those.",
    ]
    if parameters > _MOST_BARS:
        parts.append(f"The first {_MOST_BARS} of {parameters} parameters.")
    return " ".join([*parts, warning]).strip()
