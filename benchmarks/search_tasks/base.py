"""What a task is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """An objective to be minimised.

    Attributes:
        name: Its name in tables.
        family: ``function``, ``table`` or ``bbob-mixint``.
        space: Definition of its space.
        loss: Value of a configuration.
    """

    name: str
    family: str
    space: Mapping[str, Any]
    loss: Callable[[Mapping[str, Any]], float]
