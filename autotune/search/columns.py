"""The decisions of a space as columns of numbers, on the scale on which densities are estimated.

A numeric parameter becomes a place ``t = (z - mu) / sigma``, where z is its value, the logarithm of it for the log
kinds, or the index instead of the value where it is quantised, and mu and sigma are those of the component that
stands for the prior: the normal prior itself, or the middle and the length of the range. So the prior component is
N(0, 1) in every column, and a bounded range is -1/2 to 1/2. This follows ``hyperopt.tpe`` (``ap_uniform_sampler`` and
its siblings). A quantised parameter is an interval of half an index to either side of each value. A choice becomes
the index of its option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.space import Choice, LogFloat, LogInt, LogNormal, Normal, Numeric, Space

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SITES = 64  # a quantised parameter with at most so many values is tabulated value by value
_EPS = 1e-12  # stands for the logarithm of an index 0, as in hyperopt


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One numeric parameter.

    Attributes:
        label: Its label in the space.
        parameter: Its definition.
        log: Whether the scale is logarithmic.
        mu: Mean of the prior component, on the scale.
        sigma: Its standard deviation, on the scale.
        low: Lower end of the scale; minus infinity if unbounded.
        high: Upper end, which is no longer part of it.
    """

    label: str
    parameter: Numeric
    log: bool
    mu: float
    sigma: float
    low: float
    high: float

    @property
    def sites(self) -> int:
        """Number of values, if they are few enough to be tabulated one by one, else 0."""
        size = self.parameter.size
        return size if size is not None and size <= SITES else 0

    def values(self) -> list[int | float]:
        """Return all values of a column of sites."""
        first, last = self.parameter.limits or (0, -1)
        return [self.parameter.at(i) for i in range(first, last + 1)]

    def place(self, value: int | float) -> float:
        """Return t of an allowed value."""
        z: float = self.parameter.index(value) if self.parameter.quantised else value
        if self.log:
            z = max(math.log(max(z, _EPS)), self.low)
        return (z - self.mu) / self.sigma


class Columns:
    """All decisions of a space with more than one outcome.

    Attributes:
        numeric: The numeric parameters.
        choices: Label -> definition of the choices.
        fixed: Decisions of the parameters with a single value, by label.
        low: Lower ends of the numeric columns, as t; shape (n_numeric,).
        high: Upper ends.
        sites: Indices of the quantised columns that have few values.
        stepped: Indices of the other quantised ones.
        smooth: Indices of those that are not quantised.
        open: Indices of both.
        open_low: Lower ends of those.
        open_high: Upper ends.
        spots: Number of values of each of `sites`, then of options of each choice.
    """

    def __init__(self, space: Space) -> None:
        leaves = space.leaves()
        self.numeric: list[Column] = []
        self.choices: dict[str, Choice] = {}
        self.fixed: dict[str, int | float] = {}
        for label, leaf in leaves.items():
            parameter = leaf.parameter
            if isinstance(parameter, Choice):
                self.choices[label] = parameter
            elif isinstance(parameter, Numeric) and parameter.size == 1 and parameter.limits is not None:
                self.fixed[label] = parameter.at(parameter.limits[0])
            elif isinstance(parameter, Numeric):
                self.numeric.append(_column(label, parameter))
        self.conditions = {label: leaf.condition for label, leaf in leaves.items()}
        self.mu = np.array([c.mu for c in self.numeric])
        self.sigma = np.array([c.sigma for c in self.numeric])
        self.low = (np.array([c.low for c in self.numeric]) - self.mu) / self.sigma
        self.high = (np.array([c.high for c in self.numeric]) - self.mu) / self.sigma
        few = np.array([c.sites > 0 for c in self.numeric], dtype=bool)
        quantised = np.array([c.parameter.quantised for c in self.numeric], dtype=bool)
        self.sites: Ints = np.flatnonzero(few)
        self.stepped: Ints = np.flatnonzero(quantised & ~few)
        self.open: Ints = np.flatnonzero(~few)
        self.open_low, self.open_high = self.low[self.open], self.high[self.open]
        self.smooth: Ints = np.flatnonzero(~quantised)
        self.spots = [self.numeric[d].sites for d in self.sites] + [len(c.options) for c in self.choices.values()]
        self._site_columns = [self.numeric[d] for d in self.sites]
        self._places = [{value: c.place(value) for value in c.values()} if c.sites else None for c in self.numeric]
        self._site_values = [c.values() for c in self._site_columns]
        self._spots = [{value: i for i, value in enumerate(values)} for values in self._site_values]
        log = np.array([c.log for c in self.numeric], dtype=bool)[:, None]
        self._log = log

    def row(self, raw: Mapping[str, int | float]) -> tuple[list[float], list[int]]:
        """Return places (NaN where inactive) and spots (-1 where inactive) of decisions made by label.

        The spots are the numbers, from 0, of the values of `sites`, and then of the options of the choices.
        """
        places = [
            math.nan if c.label not in raw else c.place(raw[c.label]) if known is None else known[raw[c.label]]
            for c, known in zip(self.numeric, self._places, strict=True)
        ]
        spots = [
            known[raw[c.label]] if c.label in raw else -1
            for c, known in zip(self._site_columns, self._spots, strict=True)
        ]
        return places, spots + [int(raw[label]) if label in raw else -1 for label in self.choices]

    def round(self, places: Array) -> tuple[Array, Array, Array]:
        """Return indices of places in the `stepped` columns and the ends of their intervals, as t.

        Args:
            places: Shape (n_stepped, n_candidates).

        Returns:
            Three arrays of that shape.
        """
        index = self._index(places, self.stepped)
        return index, *self.interval(index, self.stepped)

    def round_one(self, places: Array, column: int) -> tuple[Array, Array]:
        """Return both ends of the intervals that places, shape (n,), of one quantised column lie in."""
        which = np.array([column])
        low, high = self.interval(self._index(places[None], which), which)
        return low[0], high[0]

    def parts(self) -> list[tuple[list[int], list[int]]]:
        """Return numeric columns and choices (their positions) that are active under the same condition, together."""
        found: dict[tuple[str, int] | None, tuple[list[int], list[int]]] = {}
        for d, column in enumerate(self.numeric):
            found.setdefault(self.conditions[column.label], ([], []))[0].append(d)
        for k, label in enumerate(self.choices):
            found.setdefault(self.conditions[label], ([], []))[1].append(k)
        return list(found.values())

    def _index(self, places: Array, columns: Ints) -> Array:
        z = places * self.sigma[columns, None] + self.mu[columns, None]
        return np.asarray(np.rint(np.exp(z, where=self._log[columns], out=z), out=z))

    def interval(self, index: Array, columns: Ints) -> tuple[Array, Array]:
        """Return both ends, as t, of the intervals of indices, shape (len(columns), n), of quantised columns."""
        ends = index + np.array([-0.5, 0.5])[:, None, None]
        np.log(np.maximum(ends, _EPS), where=self._log[columns], out=ends)
        ends -= self.mu[columns, None]
        ends /= self.sigma[columns, None]
        np.clip(ends, self.low[columns, None], self.high[columns, None], out=ends)
        return ends[0], ends[1]

    def decisions(self, places: Array, indices: Array, spots: Ints) -> dict[str, int | float]:
        """Return decisions by label, all of them, also of parameters that are not active.

        Args:
            places: One t per numeric column; that of a quantised one is not read.
            indices: One index per column of `stepped`.
            spots: One spot per column of `sites`, then one option per choice.
        """
        z = (places * self.sigma + self.mu).tolist()
        raw = dict(self.fixed)
        for d, index in zip(self.stepped.tolist(), indices.tolist(), strict=True):
            raw[self.numeric[d].label] = self.numeric[d].parameter.nearest(index)
        for d in self.smooth.tolist():
            column = self.numeric[d]
            raw[column.label] = column.parameter.nearest(math.exp(min(z[d], 709.0)) if column.log else z[d])
        chosen = spots.tolist()
        for column, values, spot in zip(self._site_columns, self._site_values, chosen, strict=False):
            raw[column.label] = values[spot]
        raw.update(zip(self.choices, chosen[len(self._site_columns) :], strict=True))
        return raw


def _column(label: str, parameter: Numeric) -> Column:
    log = isinstance(parameter, LogFloat | LogInt | LogNormal)
    if isinstance(parameter, Normal):
        step = parameter.step or 1.0
        mu, sigma = parameter.mu, parameter.sigma
        if parameter.step is not None:
            mu, sigma = (mu - math.log(step), sigma) if log else (mu / step, sigma / step)
        return Column(label=label, parameter=parameter, log=log, mu=mu, sigma=sigma, low=-math.inf, high=math.inf)
    if parameter.limits is not None:
        low, high = parameter.limits[0] - 0.5, parameter.limits[1] + 0.5
    else:
        low, high = (float(getattr(parameter, end)) for end in ("low", "high"))
    if log:
        low, high = math.log(low), math.log(high)
    middle, length = 0.5 * (high + low), high - low
    return Column(label=label, parameter=parameter, log=log, mu=middle, sigma=length, low=low, high=high)
