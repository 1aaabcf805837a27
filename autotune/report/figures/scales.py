"""Axes of parameters: linear, logarithmic or categorical, as the space defines them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from autotune.errors import SpaceError
from autotune.history import flatten
from autotune.history.columns import is_missing, is_number
from autotune.report.figures.style import plain
from autotune.report.formatting import cell_text, number_text
from autotune.report.ranking import Entry
from autotune.report.tables import parameter_names
from autotune.space import Space, parse_space
from autotune.space.choices import Choice, Template, unwrap
from autotune.space.numeric import Numeric
from autotune.store.base import CampaignRecord

_LOGARITHMIC = ("log_int", "log_float", "log_normal")
_MOST_TICKS = 24  # categories beyond this number are not all named on an axis


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How the values of one parameter lie on an axis.

    Attributes:
        name: Flat name of the parameter.
        kind: ``linear``, ``log`` or ``categorical``.
        options: Values of a categorical parameter, in order: numbers upwards, others as the space lists them; also
            None, where the space has it.
        spots: Whether the values are few, so that marks would lie on each other.
    """

    name: str
    kind: str
    options: tuple[Any, ...] = ()
    spots: bool = False

    def place(self, value: Any) -> float:
        """Return where a value lies: the number itself, or the index of the category; NaN where there is none."""
        if self.kind == "categorical":
            return float(_index(self.options, None if is_missing(value) else value))
        if is_missing(value):
            return math.nan
        return float(value) if is_number(value) and math.isfinite(value) else math.nan

    def unit(self, value: Any, low: float, high: float) -> float:
        """Return where a value lies between 0 (`low`) and 1 (`high`), both as `place` returns them."""
        place = self.place(value)
        if math.isnan(place) or high <= low:
            return math.nan if math.isnan(place) else 0.5
        if self.kind == "log":
            return (math.log(place) - math.log(low)) / (math.log(high) - math.log(low))
        return (place - low) / (high - low)

    def apply(self, axes: Axes, *, label: bool = True, most: int = 8) -> None:
        """Set scale, ticks and label of a horizontal axis.

        Args:
            axes: The axes.
            label: Whether the parameter is named.
            most: Most ticks of a numeric axis.
        """
        if label:
            axes.set_xlabel(plain(self.name) + (" (log scale)" if self.kind == "log" else ""))
        if self.kind == "categorical":
            step = max(1, math.ceil(len(self.options) / _MOST_TICKS))
            places = list(range(0, len(self.options), step))
            texts = [option_text(self.options[i], 14) for i in places]
            turn = len(texts) * max(len(text) + 1 for text in texts) > most * 6
            axes.set_xticks(places, texts, rotation=40 if turn else 0, ha="right" if turn else "center",
                            rotation_mode="anchor" if turn else "default")  # fmt: skip
            axes.set_xlim(-0.6, max(0.6, len(self.options) - 0.4))
            return
        if self.kind == "log":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=most))
            if _decades(axes) < 2:
                axes.xaxis.set_major_locator(FixedLocator(_few(*axes.get_xlim())))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(most, integer=self.spots))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def option_text(option: Any, limit: int) -> str:
    """Return the label of a category."""
    return "null" if option is None else plain(cell_text(option), limit)


def tick(value: float) -> str:
    """Return a number at a tick: short, and without mathematical text."""
    short = f"{value:.3g}"
    if "e" in short and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = short.split("e")
        return f"{mantissa}e{int(exponent)}"
    return number_text(float(value), 4)


def _decades(axes: Axes) -> float:
    low, high = axes.get_xlim()
    return math.log10(high / low) if low > 0 else 9.0


def _few(low: float, high: float) -> list[float]:
    """Return round numbers between two others that are less than two powers of ten apart."""
    exponent = math.floor(math.log10(low))
    steps = (1, 2, 5) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [m * 10.0**e for e in range(exponent, exponent + 4) for m in steps if low <= m * 10.0**e <= high]


def scales(campaign: CampaignRecord, entries: Sequence[Entry]) -> list[Scale]:
    """Return the axes of the parameters that are searched, in the order of the tables.

    Args:
        campaign: The campaign.
        entries: Its ranked configurations.
    """
    known = _definitions(campaign)
    names = parameter_names(campaign, entries)
    values = {name: [e.params[name] for e in entries if not is_missing(e.params.get(name))] for name in names}
    made = {name: _scale(name, known.get(name, []), values[name]) for name in names if values[name]}
    searched = [name for name in made if _is_searched(known.get(name), values[name])]
    return [made[name] for name in searched or [n for n in made if n not in known]]


def _is_searched(known: Sequence[Any] | None, values: Sequence[Any]) -> bool:
    """Return whether a parameter may take several values: by its definition, else by its values."""
    if known:
        return len(known) > 1 or isinstance(known[0], Numeric)
    return len({_key(value) for value in values}) > 1


def _scale(name: str, known: Sequence[Any], values: Sequence[Any]) -> Scale:
    numeric = [one for one in known if isinstance(one, Numeric)]
    numbers = all(is_number(value) and math.isfinite(value) for value in values)
    if numbers and (numeric or not known):
        log = bool(numeric) and all(one.kind in _LOGARITHMIC for one in numeric) and min(values) > 0
        whole = all(float(value).is_integer() for value in values)
        spots = whole and max(values) - min(values) <= 20 and not log
        return Scale(name=name, kind="log" if log else "linear", spots=spots)
    options = list({_key(v): v for v in [*(k for k in known if not isinstance(k, Numeric)), *values]}.values())
    if all(is_number(option) for option in options):
        options.sort()
    elif not known:
        options.sort(key=lambda option: cell_text(option))
    return Scale(name=name, kind="categorical", options=tuple(options), spots=True)


def _definitions(campaign: CampaignRecord) -> dict[str, list[Any]]:
    """Return flat name -> what may stand there: numeric parameters and plain values, in order."""
    try:
        space: Space = parse_space(campaign.space)
    except SpaceError:
        return {}
    found: dict[str, list[Any]] = {}
    for name, parameter in space.parameters.items():
        for flat, one in _walk(parameter, name):
            found.setdefault(flat, []).append(one)
    return found


def _walk(template: Template, name: str) -> Iterator[tuple[str, Any]]:
    template = unwrap(template)
    if isinstance(template, Numeric):
        yield name, template
    elif isinstance(template, Choice):
        for option in template.options:
            yield from _walk(option, name)
    elif isinstance(template, Mapping) and template:
        for key, part in template.items():
            yield from _walk(part, f"{name}.{key}")
    elif not isinstance(template, list) or not _has_parameter(template):
        yield from flatten({name: template}).items()


def _has_parameter(template: Any) -> bool:
    if isinstance(template, Mapping):
        return any(_has_parameter(part) for part in template.values())
    if isinstance(template, list):
        return any(_has_parameter(part) for part in template)
    return isinstance(template, Numeric | Choice)


def _key(value: Any) -> tuple[str, str]:
    """Return what tells values apart: True is not 1, 1.0 is 1."""
    if is_number(value):
        return "number", repr(float(value))
    return type(value).__name__, str(value)


def _index(options: Sequence[Any], value: Any) -> float:
    return next((i for i, option in enumerate(options) if _key(option) == _key(value)), math.nan)
