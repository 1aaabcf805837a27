"""Queries over the trials of a campaign: a pandas frame, filters, order, and plain JSON records.

Pure: takes `autotune.trial.Trial` values, never a store. Imports pandas, so programs import it when they need it.
"""

from autotune.history.columns import flatten, storable, typed
from autotune.history.frames import frame, metric_column
from autotune.history.queries import query
from autotune.history.records import records
from autotune.history.where import Condition, Filter, parse_where

__all__ = [
    "Condition",
    "Filter",
    "flatten",
    "frame",
    "metric_column",
    "parse_where",
    "query",
    "records",
    "storable",
    "typed",
]
