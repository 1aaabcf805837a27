"""The names of the kinds and their options, and what counts as a definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPTIONS: dict[str, tuple[str, ...]] = {
    "int": ("step",),
    "log_int": ("step",),
    "float": ("step",),
    "log_float": ("step",),
    "normal": ("step",),
    "log_normal": ("step",),
    "choice": ("weights",),
    "const": (),
    "nested": (),
}
"""Known option keys by kind."""


def is_definition(value: Any, nested: bool = True) -> bool:
    """Whether a mapping has exactly one kind key and else only option keys of that kind.

    Args:
        value: Any value.
        nested: Whether ``nested`` counts as a kind; it does at the top level of a space only.
    """
    if not isinstance(value, Mapping):
        return False
    kinds = [k for k in value if k in OPTIONS and (nested or k != "nested")]
    return len(kinds) == 1 and all(k == kinds[0] or k in OPTIONS[kinds[0]] for k in value)


def looks_defined(value: Any) -> bool:
    """Whether a plain value would be read as, or holds, a definition."""
    if is_definition(value, nested=False):
        return True
    if isinstance(value, Mapping):
        return any(looks_defined(v) for v in value.values()) or any(k in OPTIONS for k in value)
    return isinstance(value, list | tuple) and any(looks_defined(v) for v in value)


def escape(value: Any) -> Any:
    """Return a literal in a form that is not read as a definition."""
    return {"const": value} if looks_defined(value) else value
