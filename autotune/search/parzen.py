"""Adaptive Parzen estimators and their mixtures, many columns at once.

After ``adaptive_parzen_normal`` and ``linear_forgetting_weights`` of hyperopt (`tpe.py`; Bergstra et al., "Algorithms
for Hyper-Parameter Optimization", NIPS 2011). All places are on the scale of `columns`: the prior component is N(0, 1).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

RECENT = 25  # so many latest observations keep their full weight
FINEST = 100.0  # no component is narrower than this part of the prior component
_PER_UNIT, _REACH = 256, 9  # table of the normal distribution function
_TINY = 1e-300


class Mixture(NamedTuple):
    """Normal mixtures, one per column; components without weight are padding. Shapes (n_columns, n_components)."""

    weights: Array
    means: Array
    sigmas: Array


def ramp(count: Array) -> tuple[Array, Array]:
    """Return start and slope of the forgetting weights of ``count`` observations, except for the latest 25.

    Observation number i, the oldest being 0, weighs ``start + slope * i``, but each of the latest 25 weighs 1.
    """
    steps = count - RECENT - 1.0
    forgets = count > RECENT
    start = np.where(forgets, 1.0 / np.maximum(count, 1.0), 1.0)
    slope = np.where(forgets & (steps > 0), (1.0 - start) / np.maximum(steps, 1.0), 0.0)
    return start, slope


def forgetting(count: Array, width: int) -> Array:
    """Return the forgetting weights of ``count`` observations, oldest first, 0 beyond; shape (n_columns, width)."""
    start, slope = ramp(count)
    i = np.arange(width)
    weights = start[:, None] + slope[:, None] * i
    weights[i >= count[:, None] - RECENT] = 1.0
    weights[i >= count[:, None]] = 0.0
    return weights


def mixtures(places: Array, prior_weight: float) -> Mixture:
    """Return the adaptive Parzen estimator of each column.

    The component of the prior is sorted in among the observations. A component's width is the larger distance to its
    neighbours, not below 1 / min(100, n + 2) and not above 1; a single observation's is 1/2.

    Args:
        places: Observations in order of time, shape (n_columns, n), those of a column before its NaNs.
        prior_weight: Weight of the prior relative to one observation.
    """
    columns, width = places.shape
    count = np.sum(~np.isnan(places), axis=1).astype(np.float64)
    means = np.zeros((columns, width + 1))
    means[:, 1:] = places
    weights = np.full((columns, width + 1), prior_weight)
    weights[:, 1:] = forgetting(count, width)
    order = np.argsort(means, axis=1, kind="stable")  # NaN last; the prior comes before what lies on it
    rows = np.arange(columns)[:, None]
    means, weights = means[rows, order], weights[rows, order]
    gaps = np.zeros((columns, width + 2))
    np.subtract(means[:, 1:], means[:, :-1], out=gaps[:, 1:-1])
    beyond = np.isnan(means)
    gaps[:, :-1][beyond] = 0.0  # gaps to padding
    sigmas = np.maximum(gaps[:, :-1], gaps[:, 1:])
    sigmas[count == 1.0] = 0.5
    finest = 1.0 / np.minimum(FINEST, count + 2.0)
    sigmas = np.clip(sigmas, finest[:, None], 1.0)
    sigmas[order == 0] = 1.0
    means[beyond] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return Mixture(weights, means, sigmas)


def draw(mixture: Mixture, low: Array, high: Array, count: int, rng: np.random.Generator) -> Array:
    """Draw from truncated mixtures: a draw of the whole mixture that lies outside is drawn again.

    Returns:
        Shape (n_columns, count), within low (included) and high (excluded).
    """
    columns = len(low)
    cumulative = np.cumsum(mixture.weights, axis=1)
    cumulative /= cumulative[:, -1:]
    offsets = np.arange(columns)[:, None]
    last = (offsets + 1) * cumulative.shape[1] - 1
    flat = (cumulative + offsets).ravel()
    drawn: Array | None = None
    accepted: NDArray[np.bool_] | None = None
    size = (columns, 3 * count)
    while True:
        at = np.searchsorted(flat, rng.random(size) + offsets, side="right")
        np.minimum(at, last, out=at)
        new = mixture.means.ravel()[at] + mixture.sigmas.ravel()[at] * rng.standard_normal(size)
        inside = (new >= low[:, None]) & (new < high[:, None])
        drawn = new if drawn is None else np.concatenate([drawn, new], axis=1)
        accepted = inside if accepted is None else np.concatenate([accepted, inside], axis=1)
        if int(accepted.sum(axis=1).min(initial=count)) >= count:
            break
    order = np.argsort(~accepted, axis=1, kind="stable")[:, :count]
    return np.asarray(drawn[offsets, order])


def log_density(mixture: Mixture, x: Array) -> Array:
    """Return the log density of places, not truncated and but for a constant; x: shape (n_columns, n)."""
    u = (x[:, :, None] - mixture.means[:, None, :]) / mixture.sigmas[:, None, :]
    np.multiply(u, u, out=u)
    np.multiply(u, -0.5, out=u)
    np.exp(u, out=u)
    return np.asarray(np.log(np.einsum("dcm,dm->dc", u, mixture.weights / mixture.sigmas) + _TINY))


def log_mass(mixture: Mixture, low: Array, high: Array) -> Array:
    """Return the log mass of intervals, not truncated; ends: shape (n_columns, n)."""
    ends = np.concatenate([high, low], axis=1)
    cdf = normal_cdf((ends[:, :, None] - mixture.means[:, None, :]) / mixture.sigmas[:, None, :])
    n = high.shape[1]
    mass = np.einsum("dcm,dm->dc", cdf[:, :n] - cdf[:, n:], mixture.weights)
    return np.asarray(np.log(np.maximum(mass, _TINY)))


def normal_cdf(x: Array) -> Array:
    """Return the standard normal distribution function, to about 1e-12."""
    u = np.maximum(x, -_REACH)
    np.minimum(u, _REACH, out=u)
    u += _REACH
    u *= _PER_UNIT
    i = u.astype(np.int64)
    u -= i
    c = _cubics().take(i, axis=0)
    found = c[..., 3] * u
    for power in (2, 1):
        found += c[..., power]
        found *= u
    found += c[..., 0]
    return np.asarray(found)


@functools.cache
def _cubics() -> Array:
    """Return the cubics, lowest power first, that go through values and slopes at both ends of each cell.

    The last of them is for the upper end itself. Shape (n_cells + 1, 4): what is looked up together lies together.
    """
    x = np.arange(-_REACH * _PER_UNIT, _REACH * _PER_UNIT + 1) / _PER_UNIT
    y = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x])
    slope = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi) / _PER_UNIT
    rise, left, right = np.diff(y), slope[:-1], slope[1:]
    cubics = np.stack([y[:-1], left, 3.0 * rise - 2.0 * left - right, left + right - 2.0 * rise], axis=1)
    return np.concatenate([cubics, [[y[-1], 0.0, 0.0, 0.0]]])
