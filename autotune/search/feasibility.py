"""Which configurations will fail: a probability learned from the trials that ended and those that failed.

The model is an additive logistic regression. Each parameter adds its own curve to the log-odds (a cosine series on
the unit interval; one weight per option for a choice), and a configuration fails where the sum is high. A sum of
curves with a threshold covers what makes trainings fail: one parameter beyond a limit, products such as
``batch_size * n_hidden ** 2`` on their log scales, corners of several parameters, options of a choice, and unions
of these. The weights are found by Newton's method under normal priors (Laplace's approximation). Each parameter has
one prior variance, re-estimated from the evidence (MacKay, "The evidence framework applied to classification
networks", Neural Computation 4, 1992), so that parameters that do not matter drop out.

It knows nothing of the algorithm that proposes, and needs NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.space import Choice, Leaf, LogFloat, LogInt, LogNormal, Normal, Numeric, Space

Array = NDArray[np.float64]
Raw = Mapping[str, int | float]

PRIOR = 0.85  # feasible share that is assumed before anything is known
_WAVES = (10, 80)  # most cosines for one parameter, and for all together
_STEPS = 9  # Newton steps, each with new prior variances
_VARIANCE = (1e-3, 200.0)  # bounds of a prior variance, in squared log-odds
_SHAPE, _START = 1.0, 1.0  # hyperprior of a variance: observations it is worth, and its value
_PRODUCT = 200_000  # multiplications in one matrix product
_INTERCEPT = 1.0  # prior variance of the intercept


class Encoder:
    """Turns decisions (see `Space.encode`) into the features of the model.

    Features: the intercept, then per parameter the values ``cos(k pi u) / k`` of its place u in the prior's unit
    interval, or for a choice an indicator per option. Inactive parameters have zeros.
    """

    def __init__(self, space: Space) -> None:
        self._leaves = {k: leaf for k, leaf in space.leaves().items() if _width(leaf, 1) > 0}
        numeric = sum(isinstance(leaf.parameter, Numeric) for leaf in self._leaves.values())
        waves = max(1, min(_WAVES[0], _WAVES[1] // max(1, numeric)))
        self._waves = np.arange(1, waves + 1) * math.pi
        widths = [1] + [_width(leaf, waves) for leaf in self._leaves.values()]
        self._starts = dict(zip(self._leaves, np.cumsum(widths).tolist(), strict=False))
        self.groups: NDArray[np.int64] = np.repeat(np.arange(len(widths)), widths)
        """Number of the parameter that each feature belongs to; 0 is the intercept."""

    def features(self, raw: Raw) -> Array:
        """Return the features of one configuration, shape (n_features,)."""
        row = np.zeros(len(self.groups))
        row[0] = 1.0
        for label, leaf in self._leaves.items():
            if label not in raw:
                continue
            start = self._starts[label]
            if isinstance(leaf.parameter, Numeric):
                count = len(self._waves)
                row[start : start + count] = np.cos(self._waves * place(leaf.parameter, raw[label])) / (
                    self._waves / math.pi
                )
            else:
                row[start + int(raw[label])] = 1.0
        return row


@dataclass(frozen=True, kw_only=True, eq=False)
class Feasibility:
    """Fitted model.

    Attributes:
        weights: Mean of the weights, shape (n_features,).
        covariance: Their covariance, shape (n_features, n_features).
    """

    weights: Array
    covariance: Array

    def probability(self, features: Array) -> Array:
        """Return the probability that configurations end without failure.

        Args:
            features: Shape (n_configurations, n_features).

        Returns:
            Probabilities, rounded to 6 digits so that the last bits of a sum decide nothing; (n_configurations,).
        """
        mean = features @ self.weights + _offset()
        variance = np.concatenate([((rows @ self.covariance) * rows).sum(axis=1) for rows in _slices(features)])
        odds = mean / np.sqrt(1.0 + math.pi / 8.0 * np.maximum(variance, 0.0))
        return np.asarray(np.round(1.0 - _sigmoid(odds), 6))


def fit(features: Array, infeasible: NDArray[np.bool_], groups: NDArray[np.int64]) -> Feasibility:
    """Fit the model.

    Args:
        features: Of trials that ended and trials that failed, shape (n_trials, n_features).
        infeasible: Which of them failed, shape (n_trials,).
        groups: `Encoder.groups`.
    """
    width = len(groups)
    sizes = np.bincount(groups).astype(float)
    variances = np.full(len(sizes), _START)
    variances[0] = _INTERCEPT
    weights = np.zeros(width)
    covariance: Array = np.eye(width)
    for step in range(_STEPS):
        p = _sigmoid(features @ weights + _offset())
        curvature = np.maximum(p * (1.0 - p), 1e-6)
        precision = _gram(features, curvature)
        gradient = features.T @ (infeasible - p) + precision @ weights
        precision[np.diag_indices(width)] += 1.0 / variances[groups]
        covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        weights = covariance @ gradient
        if step == _STEPS - 1:
            break
        known = sizes - np.bincount(groups, np.diag(covariance)) / variances
        squares = np.bincount(groups, weights**2)
        updated = (squares + _SHAPE * _START) / (np.maximum(known, 0.0) + _SHAPE)
        variances[1:] = np.clip(updated[1:], *_VARIANCE)
    return Feasibility(weights=weights, covariance=covariance)


def place(parameter: Numeric, value: float) -> float:
    """Return where a value stands in the prior of its parameter, from 0 to 1."""
    if isinstance(parameter, LogNormal):
        return _normal_cdf((math.log(value) - parameter.mu) / parameter.sigma) if value > 0 else 0.0
    if isinstance(parameter, Normal):
        return _normal_cdf((value - parameter.mu) / parameter.sigma)
    low, high = (float(getattr(parameter, end)) for end in ("low", "high"))
    if isinstance(parameter, LogFloat | LogInt):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _gram(features: Array, scale: Array) -> Array:
    """Return ``features.T @ diag(scale) @ features``."""
    total: Array = np.zeros((features.shape[1], features.shape[1]))
    for rows, weights in zip(_slices(features), _slices(scale, features.shape[1]), strict=True):
        total += (rows * weights[:, None]).T @ rows
    return total


def _slices(rows: Array, width: int | None = None) -> list[Array]:
    """Split into products small enough that the linear algebra library starts no threads.

    They would gain nothing at this size and wait for each other on a busy machine.
    """
    count = max(1, _PRODUCT // (width or rows.shape[1]) ** 2)
    return [rows[i : i + count] for i in range(0, len(rows), count)]


def _width(leaf: Leaf, waves: int) -> int:
    """Return the number of features of a decision; none for one that has a single outcome."""
    if isinstance(leaf.parameter, Choice):
        return len(leaf.parameter.options) if len(leaf.parameter.options) > 1 else 0
    return 0 if isinstance(leaf.parameter, Numeric) and leaf.parameter.size == 1 else waves


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _offset() -> float:
    return math.log((1.0 - PRIOR) / PRIOR)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))
