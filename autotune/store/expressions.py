"""Small builders of update pipelines. Values that came from people go in as ``$literal``, never evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Expression = dict[str, Any]

NOW = "$$NOW"
"""The database's clock."""


def literal(value: Any) -> Expression:
    """Return an expression for `value` itself, even if it holds text that starts with ``$``."""
    return {"$literal": value}


def in_seconds(duration_s: float) -> Expression:
    """Return an expression for the time `duration_s` seconds from now on the database's clock."""
    return {"$add": [NOW, round(duration_s * 1000)]}


def expired(field: str) -> Expression:
    """Return a filter for documents whose time in `field` has passed on the database's clock."""
    return {"$expr": {"$lt": [f"${field}", NOW]}}


def insert_only(document: Mapping[str, Any], times: Mapping[str, Any]) -> list[Expression]:
    """Return the pipeline of an upsert that creates a document and never changes one that is there.

    Args:
        document: The new document; taken literally.
        times: Field -> expression, for fields that come from the database's clock.
    """
    created = {"$mergeObjects": ["$$ROOT", literal(dict(document)), dict(times)]}
    is_new = {"$eq": [{"$type": "$schema_version"}, "missing"]}
    return [{"$replaceWith": {"$cond": [is_new, created, "$$ROOT"]}}]
