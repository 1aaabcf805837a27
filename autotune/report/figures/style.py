"""How figures look, and how they become files that are the same bytes for the same input."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

COLUMN_MM, PAGE_MM = 89.0, 183.0
"""Widths of a figure: one column and two columns of a printed page."""

DPI = 200
DEFAULT_BLUE, FAILED, GREY, INK, PRUNED = "#0a4fd6", "#111111", "#8a8a8a", "#222222", "#6b6b6b"
MANY = 1500
"""Marks beyond this number are drawn as pixels, also in SVG."""

FIRST_TO_LAST = ("#ff7a63", "#c9742f", "#8d6c1c", "#55641b", "#1c5426", "#06351c")
"""Red (first) to green (last): each is darker than the one before, so that the order also shows to eyes and printers
that cannot tell red from green."""

_FONT = "DejaVu Sans"  # comes with matplotlib, so it is the same on every machine
_RC = {
    "axes.edgecolor": INK,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 7.5,
    "figure.facecolor": "white",
    "font.family": _FONT,
    "font.size": 7.5,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "autotune",
    "text.parse_math": False,
    "xtick.labelsize": 7.0,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7.0,
    "ytick.major.width": 0.6,
}


def render(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """Return a figure as PNG (200 dpi) and as SVG; settings of the user's matplotlib change nothing.

    Args:
        draw: Makes the figure.
    """
    with matplotlib.style.context(["default", _RC]):
        figure = draw()
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def canvas(width_mm: float, height_mm: float, head: str) -> Figure:
    """Return an empty figure with a line above everything.

    Args:
        width_mm: Width.
        height_mm: Height.
        head: What and how much is shown; says if data are simulated.
    """
    figure = Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr,call-arg] # stubs name none
    figure.suptitle(head, x=0.01, ha="left", fontsize=7.5, color=INK)
    return figure


def note(axes: Axes, text: str) -> None:
    """Write a sentence where nothing can be drawn."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, wrapped(text, 46), ha="center", va="center", transform=axes.transAxes, color=INK)


def wrapped(text: str, width: int) -> str:
    """Return `text` in lines of at most `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def order_map() -> Colormap:
    """Return the colours from the first trial (red, light) to the last one (green, dark)."""
    return LinearSegmentedColormap.from_list("first_to_last", FIRST_TO_LAST)


def amount_map() -> Colormap:
    """Return colours for amounts: viridis without its lightest part, which is lost on white paper."""
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, 256))
    return LinearSegmentedColormap.from_list("amount", colors)


@cache
def _font() -> Any:
    return get_font(findfont(FontProperties(family=[_FONT])))


def plain(text: Any, limit: int = 28) -> str:
    """Return text that can be drawn: one line, not longer than `limit`, what the font lacks as ``U+XXXX``."""
    one = " ".join(str(text).split())
    if len(one) > limit:
        one = one[: limit - 7] + "…" + one[-6:]
    return "".join(c if _drawable(c) else f"U+{ord(c):04X}" for c in one)


def _drawable(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co", "Cf"):
        return False
    return bool(_font().get_char_index(ord(character)))
