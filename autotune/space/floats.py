"""The real-number kinds of parameter: `Float`, `LogFloat`, `Normal` and `LogNormal`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from autotune.errors import SpaceError
from autotune.space.numeric import (
    GRID_LIMIT,
    INT_LIMIT,
    Number,
    Numeric,
    assign,
    ceil_index,
    check_grid,
    check_log,
    floor_index,
    log_index,
    number,
    outside,
    round12,
    whole_near,
    with_step,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Float(Numeric):
    """Real numbers from ``low`` to ``high``, uniform; with ``step`` the grid ``low + k * step``.

    Grid values are rounded to 12 significant digits; ``high`` belongs to the grid when it lies on it.

    Raises:
        SpaceError: A bound or step is not a finite number, low > high, or step <= 0.
    """

    kind: ClassVar[str] = "float"
    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        low, high = float(number(self.low, "lower bound")), float(number(self.high, "upper bound"))
        step = None if self.step is None else float(number(self.step, "step"))
        if low > high:
            raise SpaceError(f"lower bound {low} is above upper bound {high}; swap them")
        if step is not None and step <= 0:
            raise SpaceError(f"step {step} is not positive")
        if high - low > sys.float_info.max:
            raise SpaceError(f"the range {low} to {high} is too wide for a float; narrow it")
        if step is not None and (high - low) / step > GRID_LIMIT:
            raise SpaceError(f"step {step} gives more than {GRID_LIMIT} values; use a larger one, or none")
        assign(self, low=low + 0.0, high=high + 0.0, step=step)

    def to_json(self) -> dict[str, Any]:
        """Return ``{float: [low, high]}`` with ``step`` if there is one."""
        return with_step({"float": [self.low, self.high]}, self.step, None)

    @property
    def quantised(self) -> bool:
        """Whether there is a step, or a single value."""
        return self.step is not None or self.low == self.high

    @property
    def limits(self) -> tuple[int, int] | None:
        """0 and the index of the last value; None without a step."""
        if self.low == self.high:
            return 0, 0
        return None if self.step is None else (0, floor_index((self.high - self.low) / self.step))

    def at(self, index: int) -> float:
        """Return ``low + index * step``, rounded to 12 significant digits."""
        return self.low if self.step is None or index == 0 else round12(self.low + index * self.step)

    def index(self, value: Number) -> int:
        """Return ``(value - low) / step`` as a whole number."""
        return 0 if self.step is None else round((value - self.low) / self.step)

    def nearest(self, raw: float) -> float:
        """Return the value of the nearest index in bounds, or ``raw`` clipped into the bounds."""
        if self.quantised:
            return self.at(self._clip(raw))
        return min(max(float(raw), self.low), self.high) + 0.0

    def sample(self, rng: np.random.Generator) -> float:
        """Draw uniformly."""
        if self.limits is not None:
            return self.at(int(rng.integers(0, self.limits[1], endpoint=True)))
        return self.nearest(self.low + (self.high - self.low) * rng.random())

    def normalise(self, value: Any) -> float:
        """Return the value as float, exactly on the grid."""
        plain = float(number(value, "the value")) + 0.0
        if self.limits is not None and self.step is not None:
            index = whole_near((plain - self.low) / self.step)
            if index is not None and self.limits[0] <= index <= self.limits[1]:
                return self.at(index)
        if not self.low <= plain <= self.high:
            raise outside(plain, self.low, self.high)
        if self.limits is not None and plain != self.low:
            raise SpaceError(f"{plain} is not on the grid {self.at(0)}, {self.at(1)}, ...")
        return plain


class _Multiples(Numeric):
    """Shared by the kinds whose ``step`` means: rounded to a multiple of it."""

    step: float | None
    floor: ClassVar[float]  # smallest unquantised value

    @property
    def quantised(self) -> bool:
        """Whether there is a step."""
        return self.step is not None

    @property
    def limits(self) -> tuple[int, int] | None:
        """None: unbounded."""
        return None

    def at(self, index: int) -> float:
        """Return ``index * step``, rounded to 12 significant digits."""
        return round12(index * (self.step or 1.0))

    def index(self, value: Number) -> int:
        """Return ``value / step`` as a whole number."""
        return round(value / (self.step or 1.0))

    def nearest(self, raw: float) -> float:
        """Return the value of the nearest index, or ``raw`` made finite and within the kind's limits."""
        if self.step is not None:
            top = INT_LIMIT
            return self.at(self._clip(min(max(float(raw), max(self.floor, -top)), top)))
        return min(max(float(raw), self.floor), sys.float_info.max) + 0.0

    def normalise(self, value: Any) -> float:
        """Return the value as float, exactly on the grid."""
        plain = float(number(value, "the value")) + 0.0
        if self.step is None:
            return plain
        index = whole_near(plain / self.step)
        if index is None:
            raise SpaceError(f"{plain} is not a multiple of {self.step}")
        return self.at(index)


@dataclass(frozen=True, kw_only=True, eq=False)
class LogFloat(_Multiples):
    """Real numbers from ``low`` to ``high`` with a uniform logarithm; the bounds are values, not logs.

    With ``step`` only the multiples of it that lie within the bounds.

    Raises:
        SpaceError: A bound or step is not a finite positive number, low > high, or no multiple of
            step lies within the bounds.
    """

    kind: ClassVar[str] = "log_float"
    floor: ClassVar[float] = 0.0
    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        low, high = float(number(self.low, "lower bound")), float(number(self.high, "upper bound"))
        step = None if self.step is None else float(number(self.step, "step"))
        check_log(low, high, step)
        if step is not None and high / step > GRID_LIMIT:
            raise SpaceError(f"step {step} gives more than {GRID_LIMIT} values; use a larger one, or none")
        assign(self, low=low, high=high, step=step)
        check_grid(self)

    def to_json(self) -> dict[str, Any]:
        """Return ``{log_float: [low, high]}`` with ``step`` if there is one."""
        return with_step({"log_float": [self.low, self.high]}, self.step, None)

    @property
    def limits(self) -> tuple[int, int] | None:
        """First and last multiple of step within the bounds; None without a step."""
        if self.step is not None:
            return max(1, ceil_index(self.low / self.step)), floor_index(self.high / self.step)
        return (0, 0) if self.low == self.high else None

    @property
    def quantised(self) -> bool:
        """Whether there is a step, or a single value."""
        return self.step is not None or self.low == self.high

    def at(self, index: int) -> float:
        """Return ``index * step``, rounded to 12 significant digits."""
        return self.low if self.step is None else round12(index * self.step)

    def nearest(self, raw: float) -> float:
        """Return the value of the nearest index in bounds, or ``raw`` clipped into the bounds."""
        if self.quantised:
            return self.at(self._clip(raw))
        return min(max(float(raw), self.low), self.high)

    def index(self, value: Number) -> int:
        """Return ``value / step`` as a whole number."""
        return 0 if self.step is None else round(value / self.step)

    def sample(self, rng: np.random.Generator) -> float:
        """Draw with a uniform logarithm."""
        if self.limits is not None:
            return self.nearest(0.0 if self.step is None else log_index(self.limits, rng))
        return self.nearest(float(np.exp(rng.uniform(math.log(self.low), math.log(self.high)))))

    def normalise(self, value: Any) -> float:
        """Return the value as float, exactly on the grid."""
        plain = super().normalise(value)
        limits = self.limits
        if self.step is not None and limits is not None:
            if not limits[0] <= self.index(plain) <= limits[1]:
                raise outside(plain, self.at(limits[0]), self.at(limits[1]))
        elif not self.low <= plain <= self.high:
            raise outside(plain, self.low, self.high)
        return plain


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal(_Multiples):
    """Real numbers with a normal prior, unbounded; with ``step`` rounded to multiples of it.

    Raises:
        SpaceError: mu, sigma or step is not a finite number, or sigma or step is not positive.
    """

    kind: ClassVar[str] = "normal"
    floor: ClassVar[float] = -sys.float_info.max
    mu: float
    sigma: float
    step: float | None = None

    def __post_init__(self) -> None:
        mu, sigma = float(number(self.mu, "mu")), float(number(self.sigma, "sigma"))
        step = None if self.step is None else float(number(self.step, "step"))
        if sigma <= 0:
            raise SpaceError(f"sigma {sigma} is not positive")
        if step is not None and step <= 0:
            raise SpaceError(f"step {step} is not positive")
        if step is not None and self.kind == "normal" and (abs(mu) + 10 * sigma) / step > INT_LIMIT:
            raise SpaceError(f"step {step} is too small for this mu and sigma; use a larger one, or none")
        assign(self, mu=mu + 0.0, sigma=sigma, step=step)

    def to_json(self) -> dict[str, Any]:
        """Return ``{normal: [mu, sigma]}`` with ``step`` if there is one."""
        return with_step({self.kind: [self.mu, self.sigma]}, self.step, None)

    def sample(self, rng: np.random.Generator) -> float:
        """Draw from the normal distribution."""
        return self.nearest(rng.normal(self.mu, self.sigma) / (self.step or 1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class LogNormal(Normal):
    """Positive numbers whose natural logarithm is normal with mean ``mu`` and deviation ``sigma``.

    With ``step`` rounded to multiples of it, among which is 0.
    """

    kind: ClassVar[str] = "log_normal"
    floor: ClassVar[float] = 0.0

    def nearest(self, raw: float) -> float:
        """Return the value of the nearest index from 0 on, or ``raw`` made finite and positive."""
        if self.step is not None:
            return super().nearest(raw)
        return max(super().nearest(raw), sys.float_info.min)

    def sample(self, rng: np.random.Generator) -> float:
        """Draw the exponential of a normal number."""
        log = rng.normal(self.mu, self.sigma)
        return self.nearest(math.exp(min(log, 709.0)) / (self.step or 1.0))

    def normalise(self, value: Any) -> float:
        """Return the value as float, exactly on the grid."""
        plain = super().normalise(value)
        if plain < 0 or (plain == 0 and self.step is None):
            raise SpaceError(f"{plain} is not positive")
        return plain
