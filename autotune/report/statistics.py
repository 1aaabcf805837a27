"""Statistics of a benchmark: standard errors, a paired test, and how optimistic a search's best score was. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import InputError

ALPHA = 0.05
DRAWS = 10_000
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired comparison over seeds.

    Attributes:
        difference: Mean of the differences, first minus second.
        low: Lower end of the 95% confidence interval of the difference.
        high: Upper end.
        t: The statistic; infinite where all differences are one and the same number that is not 0.
        p: Two-sided p-value of "no difference".
        n: Number of pairs.
        verdict: `BETTER`, `WORSE` or `SAME`: the first against the second.
    """

    difference: float
    low: float
    high: float
    t: float
    p: float
    n: int
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one configuration on one part of the data.

    Attributes:
        values: One per seed.
        se: Standard error of the score over the cells of that part, the same for all seeds: they share the cells. None:
            not known, taken as 0.
        groups: Per seed, group -> (number of cells, mean over them), all seeds with the same groups; None: the cells
            are taken as independent.
    """

    values: Sequence[float]
    se: float | None = None
    groups: Sequence[Mapping[str, tuple[float, float]]] | None = None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference with its interval.

    Attributes:
        value: The difference.
        low: Lower end of the 95% interval; NaN where there is nothing to resample.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, sd / sqrt(n) with n - 1 in the sd; NaN for fewer than two values."""
    if not len(values):
        return math.nan, math.nan
    array = np.asarray(values, dtype=float)
    se = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), se


def paired(first: Sequence[float], second: Sequence[float], mode: str) -> Comparison | None:
    """Compare two configurations seed by seed with Student's paired t-test, two-sided; None for fewer than two pairs.

    Args:
        first: Scores of one configuration, one per seed.
        second: Scores of the other with the same seeds, in the same order.
        mode: ``min`` or ``max``: what is better.

    Raises:
        ValueError: If the lengths differ.
        InputError: If SciPy is not installed.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}: a paired test needs pairs")
    n = len(first)
    if n < 2:
        return None
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, se = mean_and_se(differences.tolist())
    scale = float(np.max(np.abs([*first, *second])))
    if se <= 1e-14 * scale:  # rounding: all differences are one number
        t = 0.0 if mean == 0 else math.copysign(math.inf, mean)
        p, reach = (1.0, 0.0) if mean == 0 else (0.0, 0.0)
    else:
        student = _student()
        t = mean / se
        p = float(2 * student.sf(abs(t), n - 1))
        reach = float(student.ppf(1 - ALPHA / 2, n - 1)) * se
    verdict = SAME
    if p < ALPHA:
        verdict = BETTER if (mean < 0) == (mode == "min") else WORSE
    return Comparison(difference=mean, low=mean - reach, high=mean + reach, t=t, p=p, n=n, verdict=verdict)


def optimism(search: Scored, test: Scored, *, draws: int = DRAWS, seed: int = 0) -> Gap:
    """Return the score that the search chose by minus the score on the test part, with a 95% bootstrap interval.

    Seeds are resampled with replacement. Cells are resampled by the normal approximation, from the standard errors, of
    each part; with groups the test part's whole groups instead. A resampled mean of n values is too narrow by
    sqrt((n - 1) / n) and knows nothing of Student's t, so its distance from the mean is stretched by
    sqrt(n / (n - 1)) t(n - 1) / z: after the expanded percentile interval of Hesterberg, "What teachers should know
    about the bootstrap" (2015). Seeds and groups are resampled apart, and their distances added.

    Args:
        search: The winner's score in the search: one value (its own seed is not resampled).
        test: Its scores on the test part.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap: the same table each time.

    Raises:
        InputError: If SciPy is not installed.
    """
    generator = np.random.default_rng(seed)
    found = float(np.mean(search.values)) - float(np.mean(test.values))
    values = np.asarray(test.values, dtype=float)
    noise = generator.normal(0.0, search.se or 0.0, draws)
    can = bool(search.se)
    if len(values) > 1:
        picked = generator.integers(len(values), size=(draws, len(values)))
        noise -= (values[picked].mean(axis=1) - values.mean()) * _stretch(len(values))
        can = True
    groups = _groups(test)
    if groups is not None:
        noise -= _group_noise(*groups, generator, draws)
        can = True
    elif test.se:
        noise -= generator.normal(0.0, test.se, draws)
        can = True
    if not can or not np.isfinite(noise).all():
        return Gap(value=found, low=math.nan, high=math.nan)
    low, high = np.quantile(noise, [ALPHA / 2, 1 - ALPHA / 2])
    # a draw's noise is where the estimate could as well have been; the truth lies on the other side by as much
    return Gap(value=found, low=found - float(high), high=found - float(low))


def _groups(test: Scored) -> tuple[_Floats, _Floats] | None:
    """Return (cells per group, mean per group over seeds), or None where there are not two groups common to all."""
    if not test.groups:
        return None
    names = set.intersection(*(set(groups) for groups in test.groups))
    if len(names) < 2 or any(len(groups) != len(names) for groups in test.groups):
        return None
    ordered = sorted(names)
    sizes = np.array([float(test.groups[0][name][0]) for name in ordered])
    means = np.array([[float(groups[name][1]) for name in ordered] for groups in test.groups]).mean(axis=0)
    return sizes, means


def _group_noise(sizes: _Floats, means: _Floats, generator: np.random.Generator, draws: int) -> _Floats:
    """Return the stretched distances of resampled means over cells, whole groups drawn with replacement."""
    picked = generator.integers(len(sizes), size=(draws, len(sizes)))
    drawn = (sizes * means)[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    distances: _Floats = (drawn - np.average(means, weights=sizes)) * _stretch(len(sizes))
    return distances


def _stretch(n: int) -> float:
    """Return by how much a resampled mean of n values is to be stretched so that its interval covers as it says."""
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    return math.sqrt(n / (n - 1)) * float(_student().ppf(1 - ALPHA / 2, n - 1)) / z


def _student() -> Any:
    """Return Student's t-distribution.

    Raises:
        InputError: If SciPy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise InputError("the statistics of a benchmark need SciPy: pip install 'autotune[cells]'") from None
    return t
