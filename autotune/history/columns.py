"""Columns of a frame: nested parameters made flat, and pandas types that keep whole numbers whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

_INT64 = range(-(2**63), 2**63)


def compact(value: Any) -> str:
    """Return `value` as JSON text without spaces; keys keep their order."""
    return json.dumps(value, separators=(",", ":"), default=str, ensure_ascii=False)


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted names; lists and empty mappings as compact JSON text.

    A name that is already taken (``{"a.b": 1, "a": {"b": 2}}``) gets a ``'`` at its end, so that nothing is lost.

    Args:
        values: Name -> plain JSON value.
    """
    flat: dict[str, Any] = {}
    for name, value in _leaves(values, ""):
        while name in flat:
            name += "'"
        flat[name] = value
    return flat


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, (Mapping, list, tuple)):
            yield name, compact(value)
        else:
            yield name, value


def names_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all names in `rows`, in order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def is_number(value: object) -> bool:
    """Return whether `value` is an int or a float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_missing(value: object) -> bool:
    """Return whether `value` is None, NaN, NaT or pandas' NA."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def typed(values: Sequence[Any]) -> pd.Series[Any]:
    """Return `values` as a series: whole numbers stay whole beside missing ones, mixed types stay as they are."""
    present = [value for value in values if not is_missing(value)]
    if len(present) < len(values) and present and all(type(v) is int and v in _INT64 for v in present):
        return pd.Series([None if is_missing(v) else v for v in values], dtype="Int64")
    if present and all(is_number(v) for v in present) and any(isinstance(v, float) for v in present):
        return pd.Series([float("nan") if is_missing(v) else float(v) for v in values], dtype="float64")
    if present and all(type(v) is int and v in _INT64 for v in present):
        return pd.Series(list(values), dtype="int64")
    if present and len(present) == len(values) and all(isinstance(v, bool) for v in present):
        return pd.Series(list(values), dtype="bool")
    return pd.Series([None if is_missing(v) else v for v in values], dtype="object")


def storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a copy whose columns each hold one type, for formats that need that (parquet).

    Columns that mix types, for example ``"auto"`` and ``0.5``, become JSON text.

    Args:
        frame: As returned by `autotune.history.frame` or `autotune.history.query`.
    """
    result = frame.copy()
    for name in result.columns:
        if result[name].dtype != object:
            continue
        present = [value for value in result[name].tolist() if not is_missing(value)]
        if len({type(value) for value in present}) > 1 or any(type(value) is int for value in present):
            texts = [None if is_missing(value) else compact(value) for value in result[name].tolist()]
            result[name] = pd.Series(texts, index=result.index, dtype="object")
    return result
