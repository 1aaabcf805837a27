"""Numbers as people read them; exports to CSV keep full precision instead."""

from __future__ import annotations

import math
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import pandas as pd

from autotune.history.columns import is_missing, is_number

Scores = str | Collection[str] | None
"""The columns of a table that hold scores."""

_TWO_DECIMALS = frozenset({"marginal_ll"})
_PLAIN_EXPONENTS = range(-10, 15)


def score_text(name: str, value: float) -> str:
    """Return a score: two decimals for ``marginal_ll``, six significant digits or more for others, or ``NaN``.

    Args:
        name: Name of the metric.
        value: The score.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if name in _TWO_DECIMALS and abs(value) < 1e12:
        return f"{value:.2f}"
    if value == 0:
        return "0"
    if 999_999.5 <= abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:#.6g}".rstrip(".")


def number_text(value: float, digits: int = 6) -> str:
    """Return a number as a plain decimal (``0.0001``, not ``1e-04``) unless it is very small or large.

    Args:
        value: An int, kept whole, or a float.
        digits: Significant digits of a float; all digits of its whole part are kept.
    """
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if abs(value) < 1e15 and (value.is_integer() or abs(value) >= 10**digits):
        return f"{value:.0f}"
    short = f"{value:.{digits}g}"
    if value and math.floor(math.log10(abs(value))) not in _PLAIN_EXPONENTS:
        return short
    return f"{Decimal(short):f}"


def cell_text(value: Any, digits: int = 6) -> str:
    """Return any value of a table on one line; ``-`` where missing.

    Args:
        value: A value of a parameter or fact.
        digits: Significant digits of a float.
    """
    if is_missing(value):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_number(value):
        return number_text(value, digits)
    return " ".join(str(value).split())


def as_text(table: pd.DataFrame, metric: Scores = None, digits: int = 6) -> pd.DataFrame:
    """Return the table with all values as text for people.

    Args:
        table: A table of `autotune.report.tables`.
        metric: Name or names of the columns that hold scores, or None.
        digits: Significant digits of floats that are no scores.
    """
    scores = score_names(metric)
    columns = {
        str(name): [
            score_text(str(name), value) if name in scores else cell_text(value, digits)
            for value in table[name].tolist()
        ]
        for name in table.columns
    }
    return pd.DataFrame(columns, index=table.index, dtype="object")


def score_names(metric: Scores) -> frozenset[str]:
    """Return the names of the columns that hold scores."""
    return frozenset([metric] if isinstance(metric, str) else metric or ())


def is_numeric(table: pd.DataFrame, name: str) -> bool:
    """Return whether a column holds numbers only, and so is set flush right."""
    values = [value for value in table[name].tolist() if not is_missing(value)]
    return bool(values) and all(is_number(value) for value in values)
