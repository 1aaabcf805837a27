"""What all kinds of parameter share, and the checks of numbers.

Every kind is a frozen value. A quantised parameter also has an *index*: a whole number per allowed
value, in order. For `Int` and a stepped `Float` the index counts from 0 at ``low``; for the log and
normal kinds it is the multiple of ``step``, so that index 3 of step 0.5 is the value 1.5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from autotune.errors import SpaceError
from autotune.space.canonical import canonical, show

Number = int | float

_TOLERANCE = 1e-9  # relative to one step: how far off its grid a value may be and still be meant
GRID_LIMIT = 10**9  # values of a stepped real parameter
_LARGEST = 2**63
INT_LIMIT = 2**53  # beyond it a float no longer holds every whole number


def number(value: Any, what: str) -> Number:
    """Return ``value`` as a finite Python number.

    Raises:
        SpaceError: ``value`` is not a number (a bool is none), or is NaN or infinite.
    """
    if type(value) is float and math.isfinite(value):  # as almost always
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        hint = ""
        if isinstance(value, str):
            try:
                hint = f"; it is text, write {float(value)!r} without quotes"
            except ValueError:
                hint = ""
        raise SpaceError(f"{what} {show(value)} is not a number{hint}")
    plain = int(value) if isinstance(value, int | np.integer) else float(value)
    if isinstance(plain, int) and abs(plain) > _LARGEST:
        raise SpaceError(f"{what} is a whole number beyond 64 bits; write a smaller one, or a float")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise SpaceError(f"{what} {plain} is not a finite number")
    return plain


def whole(value: Any, what: str) -> int:
    """Return ``value`` as an int; 3.0 counts as 3.

    Raises:
        SpaceError: ``value`` is not a whole number within 2**53.
    """
    plain = number(value, what)
    if plain != int(plain):
        raise SpaceError(f"{what} {plain} is not a whole number")
    if abs(plain) > INT_LIMIT:
        raise SpaceError(f"{what} {plain} is beyond 2**53, the largest whole number allowed")
    return int(plain)


def round12(value: float) -> float:
    """Round to 12 significant digits, so that 3 * 0.1 is 0.3."""
    return float(f"{value:.12g}") + 0.0


def whole_near(value: float) -> int | None:
    """Return the whole number that ``value`` is, within the tolerance, else None."""
    if not math.isfinite(value):
        return None
    nearest = round(value)
    return nearest if abs(value - nearest) <= _TOLERANCE * min(max(1.0, abs(value)), 1e6) else None


def ceil_index(value: float) -> int:
    """Round up, but not from a hair above a whole number."""
    near = whole_near(value)
    return math.ceil(value) if near is None else near


def floor_index(value: float) -> int:
    """Round down, but not from a hair below a whole number."""
    near = whole_near(value)
    return math.floor(value) if near is None else near


class Parameter(ABC):
    """One parameter definition: what may stand at one place of a configuration."""

    kind: ClassVar[str]

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON definition."""

    def __eq__(self, other: object) -> bool:
        """Compare by definition, with JSON types kept apart (True is not 1)."""
        if not isinstance(other, Parameter):
            return NotImplemented
        return canonical(self.to_json()) == canonical(other.to_json())

    def __hash__(self) -> int:
        return hash(canonical(self.to_json()))


class Numeric(Parameter):
    """A parameter whose values are numbers."""

    @property
    @abstractmethod
    def quantised(self) -> bool:
        """Whether the values lie on a grid, so that each has an index."""

    @property
    @abstractmethod
    def limits(self) -> tuple[int, int] | None:
        """First and last index, inclusive; None if there is no last one or the kind is not quantised."""

    @property
    def size(self) -> int | None:
        """Number of values; None if infinite."""
        limits = self.limits
        return None if limits is None else limits[1] - limits[0] + 1

    @abstractmethod
    def at(self, index: int) -> Number:
        """Return the value of an index (quantised kinds only)."""

    @abstractmethod
    def index(self, value: Number) -> int:
        """Return the index of an allowed value (quantised kinds only)."""

    @abstractmethod
    def nearest(self, raw: float) -> Number:
        """Return the allowed value nearest to ``raw``.

        Args:
            raw: An index for a quantised kind (any real number), else a value.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Number:
        """Draw a value from the prior."""

    @abstractmethod
    def normalise(self, value: Any) -> Number:
        """Return ``value`` in the type of this kind.

        Raises:
            SpaceError: Not a number, out of range, or not on the grid.
        """

    def _clip(self, raw: float) -> int:
        index = round(raw)
        limits = self.limits
        return index if limits is None else min(max(index, limits[0]), limits[1])


def with_step(definition: dict[str, Any], step: Number | None, default: Number | None) -> dict[str, Any]:
    """Add ``step`` to a definition unless it is the default."""
    if step is not None and step != default:
        definition["step"] = step
    return definition


def assign(instance: object, **values: object) -> None:
    """Set checked fields of a frozen instance under construction."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def outside(value: Number, low: Number, high: Number) -> SpaceError:
    """Return the error for a value out of range."""
    return SpaceError(f"{value} is not within {low} to {high}")


def check_log(low: Number, high: Number, step: Number | None) -> None:
    """Refuse bounds and steps that a log kind cannot have."""
    if low <= 0:
        raise SpaceError(f"lower bound {low} is not positive; a log kind takes the values, not their logs")
    if low > high:
        raise SpaceError(f"lower bound {low} is above upper bound {high}; swap them")
    if step is not None and step <= 0:
        raise SpaceError(f"step {step} is not positive")


def check_grid(parameter: Numeric) -> None:
    """Refuse a grid without values."""
    if parameter.size is not None and parameter.size < 1:
        raise SpaceError("no multiple of step lies within the bounds; widen them or use a smaller step")


def log_index(limits: tuple[int, int], rng: np.random.Generator) -> float:
    """Draw an index, still to be rounded, whose logarithm is uniform."""
    return float(np.exp(rng.uniform(math.log(limits[0] - 0.5), math.log(limits[1] + 0.5))))
