"""The whole-number kinds of parameter: `Int` and `LogInt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from autotune.errors import SpaceError
from autotune.space.numeric import (
    Number,
    Numeric,
    assign,
    check_grid,
    check_log,
    log_index,
    outside,
    whole,
    with_step,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Int(Numeric):
    """Whole numbers ``low, low + step, ...`` up to and including ``high``, all equally likely.

    Raises:
        SpaceError: A bound or step is not a whole number, low > high, or step < 1.
    """

    kind: ClassVar[str] = "int"
    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        low, high = whole(self.low, "lower bound"), whole(self.high, "upper bound")
        step = whole(self.step, "step")
        if low > high:
            raise SpaceError(f"lower bound {low} is above upper bound {high}; swap them")
        if step < 1:
            raise SpaceError(f"step {step} is not positive; use 1 or more")
        assign(self, low=low, high=high, step=step)

    def to_json(self) -> dict[str, Any]:
        """Return ``{int: [low, high]}`` with ``step`` if it is not 1."""
        return with_step({"int": [self.low, self.high]}, self.step, 1)

    @property
    def quantised(self) -> bool:
        """Always true."""
        return True

    @property
    def limits(self) -> tuple[int, int]:
        """0 and the index of the last value."""
        return 0, (self.high - self.low) // self.step

    def at(self, index: int) -> int:
        """Return ``low + index * step``."""
        return self.low + index * self.step

    def index(self, value: Number) -> int:
        """Return ``(value - low) / step``."""
        return (int(value) - self.low) // self.step

    def nearest(self, raw: float) -> int:
        """Return the value of the nearest index in bounds."""
        return self.at(self._clip(raw))

    def sample(self, rng: np.random.Generator) -> int:
        """Draw uniformly."""
        return self.at(int(rng.integers(0, self.limits[1], endpoint=True)))

    def normalise(self, value: Any) -> int:
        """Return the value as int; 3.0 counts as 3."""
        plain = whole(value, "the value")
        if not self.low <= plain <= self.high:
            raise outside(plain, self.low, self.high)
        if (plain - self.low) % self.step:
            raise SpaceError(f"{plain} is not on the grid {self.low}, {self.low + self.step}, ...")
        return plain


@dataclass(frozen=True, kw_only=True, eq=False)
class LogInt(Numeric):
    """Multiples of ``step`` from ``low`` to ``high``, inclusive, with a uniform logarithm.

    The prior mass of index m (value ``m * step``) is that of the interval m - 1/2 to m + 1/2.

    Raises:
        SpaceError: A bound or step is not a whole number, low < 1, low > high, step < 1, or no
            multiple of step lies within the bounds.
    """

    kind: ClassVar[str] = "log_int"
    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        low, high = whole(self.low, "lower bound"), whole(self.high, "upper bound")
        step = whole(self.step, "step")
        check_log(low, high, step)
        assign(self, low=low, high=high, step=step)
        check_grid(self)

    def to_json(self) -> dict[str, Any]:
        """Return ``{log_int: [low, high]}`` with ``step`` if it is not 1."""
        return with_step({"log_int": [self.low, self.high]}, self.step, 1)

    @property
    def quantised(self) -> bool:
        """Always true."""
        return True

    @property
    def limits(self) -> tuple[int, int]:
        """First and last multiple of step within the bounds."""
        return -(-self.low // self.step), self.high // self.step

    def at(self, index: int) -> int:
        """Return ``index * step``."""
        return index * self.step

    def index(self, value: Number) -> int:
        """Return ``value / step``."""
        return int(value) // self.step

    def nearest(self, raw: float) -> int:
        """Return the value of the nearest index in bounds."""
        return self.at(self._clip(raw))

    def sample(self, rng: np.random.Generator) -> int:
        """Draw with a uniform logarithm of the index."""
        return self.nearest(log_index(self.limits, rng))

    def normalise(self, value: Any) -> int:
        """Return the value as int; 3.0 counts as 3."""
        plain = whole(value, "the value")
        if not self.low <= plain <= self.high:
            raise outside(plain, self.low, self.high)
        if plain % self.step:
            raise SpaceError(f"{plain} is not a multiple of {self.step}")
        return plain
