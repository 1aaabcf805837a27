"""Conditions of ``--where``: ``NAME OPERATOR VALUE``, parsed and compared, never evaluated."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from autotune.errors import QueryError, nearest
from autotune.history.columns import compact, is_missing, is_number
from autotune.trial import Cause, TrialState

EXAMPLES = "'n_layers=2', 'marginal_ll<1200' or 'state!=failed'"

_PATTERN = re.compile(
    r"\s*(?P<name>[^<>=!]*[^<>=!\s])\s*(?P<operator><=|>=|!=|==|=|<|>)\s*(?P<value>[^\s].*?)\s*", re.DOTALL
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CLOSED: dict[str, frozenset[str]] = {
    "state": frozenset(str(state) for state in TrialState),
    "cause": frozenset(str(cause) for cause in Cause),
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison of a column with a value.

    Attributes:
        column: Name of the column.
        operator: One of ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``.
        value: Number, text, bool, list, mapping, or None for a missing value.
        text: The value as it was written.
        source: The expression as it was written, for errors.
    """

    column: str
    operator: str
    value: Any
    text: str
    source: str

    def matches(self, values: Sequence[Any]) -> list[bool]:
        """Return for each value of the column whether it matches; a missing one matches ``=null`` only.

        Args:
            values: The column, as plain Python values.

        Raises:
            QueryError: If the column holds values that cannot be compared with this one.
        """
        if self.value is None:
            if self.operator not in ("=", "!="):
                raise QueryError(
                    f"'{self.source}': null has no order; use '{self.column}=null' or '{self.column}!=null'"
                )
            return [is_missing(value) == (self.operator == "=") for value in values]
        present = [value for value in values if not is_missing(value)]
        wanted = self._wanted(present)
        kind = _kind(wanted)
        compare = _COMPARE[self.operator]
        return [
            not is_missing(value) and (compare(value, wanted) if _kind(value) == kind else self.operator == "!=")
            for value in values
        ]

    def _wanted(self, present: Sequence[Any]) -> Any:
        """Return the value to compare with, in the type of the column."""
        kinds = {_kind(value) for value in present}
        if kinds == {"a time"}:
            return _time(self.text, self.source)
        wanted = compact(self.value) if isinstance(self.value, (list, dict)) else self.value
        kind = _kind(wanted)
        closed = _CLOSED.get(self.column)
        if closed and isinstance(wanted, str) and self.operator in ("=", "!=") and wanted not in closed:
            raise QueryError(f"'{self.source}': unknown {self.column} '{wanted}'{nearest(wanted, closed)}")
        if kind == "true or false" and self.operator not in ("=", "!="):
            raise QueryError(f"'{self.source}': true and false have no order; use = or !=")
        if kinds and kind not in kinds:
            held = " and ".join(sorted(kinds))
            hint = f'; write {self.column}="{self.text}" to compare as text' if kinds == {"text"} else ""
            raise QueryError(f"'{self.source}': column '{self.column}' holds {held}, '{self.text}' is {kind}{hint}")
        return wanted


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that a row must all meet; no condition: every row.

    Attributes:
        conditions: The conditions.
    """

    conditions: tuple[Condition, ...] = ()

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that meet all conditions.

        A frame without rows is returned as it is: before the first trial the names of parameters are not known.

        Args:
            frame: As returned by `autotune.history.frame`.

        Raises:
            QueryError: For an unknown column (names the nearest), or values that cannot be compared.
        """
        if frame.empty:
            return frame
        keep = [True] * len(frame)
        for condition in self.conditions:
            check_column(condition.column, frame, f"'{condition.source}'")
            matches = condition.matches(frame[condition.column].tolist())
            keep = [before and now for before, now in zip(keep, matches, strict=True)]
        return frame.loc[keep]


def check_column(name: str, frame: pd.DataFrame, source: str) -> None:
    """Raise `QueryError` with the nearest known column where `frame` has no column `name`."""
    if name not in frame.columns:
        raise QueryError(f"{source}: unknown column '{name}'{nearest(name, frame.columns)}")


def parse_where(expressions: Iterable[str]) -> Filter:
    """Parse conditions; rows must meet all of them.

    ``NAME OPERATOR VALUE`` with the operators ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``. The value is a JSON literal
    or a number where it reads as one, else text; ``null`` and ``NaN`` mean a missing value. Columns of times compare
    with ISO-8601 times, UTC unless they say otherwise. Nothing is evaluated.

    Args:
        expressions: For example ``["n_layers=2", "marginal_ll<1200"]``.

    Raises:
        QueryError: For an expression that is not of that form; shows examples.
    """
    return Filter(conditions=tuple(_condition(expression) for expression in expressions))


def _condition(expression: str) -> Condition:
    match = _PATTERN.fullmatch(expression)
    if match is None or match["value"][0] in "<>=!":
        raise QueryError(f"'{expression}' is not a condition; write NAME OPERATOR VALUE, for example {EXAMPLES}")
    text = match["value"]
    return Condition(
        column=match["name"],
        operator="=" if match["operator"] == "==" else match["operator"],
        value=_value(text),
        text=text,
        source=expression.strip(),
    )


def _value(text: str) -> Any:
    """Return the JSON literal or number that `text` is, else `text`."""
    if text.lower() == "nan":
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = float(text) if _NUMBER.fullmatch(text) else text
    return None if isinstance(value, float) and math.isnan(value) else value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if is_number(value):
        return "a number"
    return "a time" if isinstance(value, datetime) else "text"


def _time(text: str, source: str) -> pd.Timestamp:
    try:
        moment = datetime.fromisoformat(text.strip('"'))
    except ValueError:
        raise QueryError(
            f"'{source}': '{text}' is not a time; write one like 2026-01-31 or 2026-01-31T18:00:00"
        ) from None
    return pd.Timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
