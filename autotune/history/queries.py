"""Filter, order and cut a frame of trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from autotune.errors import QueryError
from autotune.history.columns import is_missing, is_number
from autotune.history.frames import metric_column
from autotune.history.where import Filter, check_column


def query(
    frame: pd.DataFrame,
    where: Filter | None = None,
    sort: str | None = None,
    descending: bool | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
    *,
    metric: str | None = None,
    mode: str = "min",
) -> pd.DataFrame:
    """Return rows and columns of a frame.

    Missing values come last whatever the order; equal ones stay in order of number. Sorting by the campaign's metric
    puts the best first, and then infinite scores count as missing; anything else is sorted ascending.

    Args:
        frame: As returned by `autotune.history.frame`.
        where: Conditions that rows must meet; None: all rows.
        sort: Column to sort by; ``-NAME`` reverses. None: order of number.
        descending: True or False sets the order whatever the column; None: as said above.
        limit: At most so many rows; None: all.
        columns: Columns to return, in this order; None: all.
        metric: Name of the campaign's metric.
        mode: ``min`` or ``max``: what is best.

    Raises:
        QueryError: For an unknown column (names the nearest), a negative limit, or values that cannot be compared.
    """
    if limit is not None and limit < 0:
        raise QueryError(f"limit {limit} is negative; use 0 or more")
    known = not frame.empty
    rows = frame if where is None else where.apply(frame)
    if sort is not None and known:
        rows = _sorted(rows, sort, descending, metric_column(metric) if metric else None, mode)
    elif descending:
        rows = rows.iloc[::-1]
    if limit is not None:
        rows = rows.head(limit)
    if columns is not None:
        wanted = list(dict.fromkeys(columns))
        for name in wanted:
            if known:
                check_column(name, frame, "columns")
        rows = rows.loc[:, [name for name in wanted if name in rows.columns]]
    return rows.reset_index(drop=True)


def _sorted(rows: pd.DataFrame, sort: str, descending: bool | None, metric: str | None, mode: str) -> pd.DataFrame:
    """Return the rows in the order that `query` documents."""
    reverse = sort not in rows.columns and sort.startswith("-")
    name = sort[1:] if reverse else sort
    check_column(name, rows, "sort")
    if reverse and descending is not None:
        raise QueryError(f"sort '{sort}' already says the order; drop the '-' or the other option")
    if descending is None:
        descending = (name == metric and mode == "max") != reverse
    values = rows[name].tolist()
    numbers = rows["number"].tolist()
    positions = sorted(range(len(values)), key=lambda i: numbers[i])
    last = [i for i in positions if _goes_last(values[i], name == metric)]
    first = [i for i in positions if not _goes_last(values[i], name == metric)]
    first.sort(key=lambda i: _key(values[i]), reverse=descending)
    return rows.iloc[first + last]


def _goes_last(value: Any, is_metric: bool) -> bool:
    return is_missing(value) or (is_metric and not math.isfinite(value))


def _key(value: Any) -> tuple[int, Any]:
    """Return a key that orders numbers before times before text, so that mixed columns can be sorted."""
    if is_number(value) or isinstance(value, bool):
        return 0, value
    return (1, value) if isinstance(value, pd.Timestamp) else (2, str(value))
