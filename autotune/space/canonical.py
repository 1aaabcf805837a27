"""Plain JSON values: checking, copying, and one text per value.

A configuration is stored, hashed and compared as plain JSON. JSON types are kept apart
(``1``, ``1.0``, ``true`` and ``"1"`` are four values); only ``-0.0`` and ``0.0`` are one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from autotune.errors import SpaceError

_INT_LIMIT = 2**63
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def check_key(key: object, where: str) -> str:
    """Return ``key`` if it can be a key of a document and of a dotted column name.

    Args:
        key: The name of a parameter or the key of a mapping inside a value.
        where: What the key belongs to, for the message.

    Raises:
        SpaceError: ``key`` is no text, is empty, holds ``.``, ``$`` or a control character,
            or starts or ends with whitespace.
    """
    if not isinstance(key, str):
        raise SpaceError(f"{where}: the name {key!r} is not text; quote it")
    if not key:
        raise SpaceError(f"{where}: a name is empty; give it at least one character")
    if key != key.strip():
        raise SpaceError(f"{where}: the name {key!r} starts or ends with whitespace; remove it")
    if "." in key or "$" in key:
        raise SpaceError(f"{where}: the name {key!r} contains '.' or '$'; use '_' instead")
    if not _is_text(key) or any(ord(c) < 32 for c in key):
        raise SpaceError(f"{where}: the name {key!r} contains a character that cannot be stored")
    return str(key)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any, where: str) -> Any:
    """Return a deep copy of ``value`` made of JSON types only.

    NumPy scalars become Python numbers, tuples become lists, ``-0.0`` becomes ``0.0``.

    Args:
        value: Any value.
        where: What the value belongs to, for the message.

    Raises:
        SpaceError: The value is not JSON: another type, NaN or an infinity, a whole number beyond
            64 bits, text that is not valid Unicode, or a mapping key that `check_key` refuses.
    """
    if type(value) is float and math.isfinite(value):  # as almost always
        return value + 0.0
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not _is_text(value):
            raise SpaceError(f"{where}: the text {value!r} is not valid Unicode")
        return str(value)
    if isinstance(value, int):
        if not -_INT_LIMIT <= value < _INT_LIMIT:
            raise SpaceError(f"{where}: {value} does not fit into 64 bits; use a float or text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpaceError(f"{where}: {value} is not a JSON value; use a finite number or null")
        return float(value) + 0.0
    if isinstance(value, Mapping):
        return {check_key(k, where): plain(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, where) for v in value]
    raise SpaceError(
        f"{where}: {value!r} ({type(value).__name__}) is not a JSON value; use text, numbers, true, false, "
        "null, lists and mappings"
    )


def canonical(value: Any) -> str:
    """Return the one JSON text of a plain value: sorted keys, no spaces, shortest exact floats."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """Return the first 32 hex digits of the SHA-256 of `canonical` text of a plain value."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()[:32]


def show(value: Any, limit: int = 60) -> str:
    """Return ``value`` as short text for a message, at most ``limit`` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
