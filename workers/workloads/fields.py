"""Parameters and settings of a workload as data: one table gives defaults, checks and error messages."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autotune.errors import CampaignError, nearest


@dataclass(frozen=True, kw_only=True)
class Field:
    """One parameter or setting.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``text`` or ``choice``.
        default: Value when the campaign gives none.
        low: Smallest allowed value, or None.
        high: Largest allowed value, or None.
        above: Largest value that is too small (exclusive bound), or None.
        below: Smallest value that is too large (exclusive bound), or None.
        choices: Allowed values of a ``choice``.
        optional: Whether None (``null``) is allowed.
        searchable: Whether it may stand in a search space.
    """

    kind: Literal["int", "float", "bool", "text", "choice"]
    default: Any
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False
    searchable: bool = False

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value` (``must be ...``), or None if nothing is."""
        if value is None:
            return None if self.optional else f"must be {self._wanted()}, not null"
        if self.kind == "choice":
            return None if value in self.choices else f"must be {self._wanted()}, not {value!r}"
        if self.kind == "bool":
            return None if isinstance(value, bool) else f"must be true or false, not {value!r}"
        if self.kind == "text":
            return None if isinstance(value, str) and value else f"must be {self._wanted()}, not {value!r}"
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.kind == "int" else numbers.Real):
            hint = " (text: write a number, without quotes)" if _is_number_text(value) else ""
            return f"must be {self._wanted()}, not {value!r}{hint}"
        number = float(value)
        good = (
            math.isfinite(number)
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )
        return None if good else f"must be {self._wanted()}, not {value!r}"

    def _wanted(self) -> str:
        """Return the allowed values in words."""
        if self.kind == "choice":
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            words = {"int": "a whole number", "float": "a number", "bool": "true or false", "text": "text"}[self.kind]
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
            if bound is not None
        ]
        return words + (" " + " and ".join(bounds) if bounds else "") + (" or null" if self.optional else "")


def check_values(owner: str, fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """Check names and values against a table of fields.

    Args:
        owner: What the fields belong to, for the message.
        fields: Name -> field.
        values: Name -> value given by the user.

    Raises:
        CampaignError: On the first unknown name or wrong value.
    """
    for name, value in values.items():
        if name not in fields:
            raise CampaignError(f"{owner} has no parameter or setting {name!r}{nearest(name, fields)}")
        complaint = fields[name].complaint(value)
        if complaint:
            raise CampaignError(f"{owner}: {name} {complaint}")


def check_searchable(owner: str, fields: Mapping[str, Field], names: Iterable[str]) -> None:
    """Check that every name is one that a search may vary.

    Raises:
        CampaignError: On a name that the model never reads, or a setting that changes what the metric means.
    """
    searchable = [name for name, field in fields.items() if field.searchable]
    for name in names:
        if name in fields and not fields[name].searchable:
            raise CampaignError(f"{owner}: {name} is a setting, not one to search: move it from space to fixed")
        if name not in fields:
            raise CampaignError(f"{owner} never reads a parameter {name!r}{nearest(name, searchable)}")


def defaults(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return name -> default value."""
    return {name: field.default for name, field in fields.items()}


def _is_number_text(value: Any) -> bool:
    """Return whether `value` is text that looks like a number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
