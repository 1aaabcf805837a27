"""Known answers of hyperopt's estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hyperopt import tpe as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.search.groups import good_count
from autotune.search.parzen import Mixture, draw, forgetting, log_density, log_mass, mixtures, normal_cdf, ramp


def on_0_to_10(observed: list[float], prior_weight: float = 1.0) -> tuple[list[float], list[float], list[float]]:
    """Return means, widths and weights of the estimator of a parameter that is uniform on 0 to 10."""
    places = (np.array([observed], dtype=float).reshape(1, -1) - 5.0) / 10.0
    found = mixtures(places, prior_weight)
    return [(10 * v).tolist() for v in (found.means[0] + 0.5, found.sigmas[0])] + [found.weights[0].tolist()]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("observed", "means", "sigmas"),
    [
        ([], [5], [10]),
        ([2], [2, 5], [5, 10]),
        ([1, 2, 9], [1, 2, 5, 9], [2, 3, 10, 4]),
        ([9, 1, 2], [1, 2, 5, 9], [2, 3, 10, 4]),
        ([0, 4.9, 5, 5.1], [0, 4.9, 5, 5, 5.1], [4.9, 4.9, 10, 5 / 3, 5 / 3]),
    ],
)
def test_known_answers(observed: list[float], means: list[float], sigmas: list[float]) -> None:
    found = on_0_to_10(observed)
    assert found[0] == pytest.approx(means)
    assert found[1] == pytest.approx(sigmas)
    assert found[2] == pytest.approx([1 / len(means)] * len(means))


def test_known_forgetting_weights() -> None:
    weights = forgetting(np.array([30.0, 25.0, 27.0, 3.0]), 30)
    assert weights[0, :5] == pytest.approx([1 / 30, 0.275, 0.5167, 0.7583, 1], abs=1e-4)
    assert weights[1].tolist() == [1.0] * 25 + [0.0] * 5
    assert weights[2, :3] == pytest.approx([1 / 27, 1, 1])
    assert weights[3].sum() == 3
    assert ramp(np.array([0.0]))[0] == 1.0


@pytest.mark.parametrize(("model", "good"), [(20, 2), (25, 2), (50, 2), (100, 3), (400, 5), (10_000, 25), (10**6, 25)])
def test_known_numbers_of_good_trials(model: int, good: int) -> None:
    assert good_count(model, 0.25) == good


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 130), min_size=1, max_size=4),
    weight=st.sampled_from([0.3, 1.0, 2.5]),
    grid=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_estimators_are_those_of_hyperopt(counts: list[int], weight: float, grid: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    observed = [rng.uniform(-0.5, 0.5, n) for n in counts]
    if grid:  # ties; hyperopt's sort leaves their order open, so only what does not depend on it is compared
        observed = [np.round(o, 1) for o in observed]
    padded = np.full((len(counts), max(counts)), np.nan)
    for row, o in zip(padded, observed, strict=True):
        row[: len(o)] = o
    found = mixtures(padded, weight)
    for k, o in enumerate(observed):
        weights, means, sigmas = reference.adaptive_parzen_normal(o, weight, 0.0, 1.0)
        n = len(o) + 1
        assert found.means[k, :n] == pytest.approx(means)
        assert np.sort(found.weights[k, :n]) == pytest.approx(np.sort(weights))
        assert not found.weights[k, n:].any()
        if not grid:
            assert found.weights[k, :n] == pytest.approx(weights)
            assert found.sigmas[k, :n] == pytest.approx(sigmas)
            x = rng.uniform(-0.5, 0.5, (1, 7))
            one = Mixture(*(part[k : k + 1, :n] for part in found))
            shift = log_density(one, x)[0] - reference.GMM1_lpdf(x[0], weights, means, sigmas, low=-0.5, high=0.5)
            assert np.ptp(shift) < 1e-9
            low, high = x[0] - 0.02, x[0] + 0.02
            expected = [
                np.sum(weights * (reference.normal_cdf(b, means, sigmas) - reference.normal_cdf(a, means, sigmas)))
                for a, b in zip(low, high, strict=True)
            ]
            assert np.exp(log_mass(one, low[None], high[None])[0]) == pytest.approx(expected, rel=1e-6)


def test_draws_are_truncated_and_follow_the_mixture() -> None:
    mixture = mixtures(np.array([[0.49, 0.48, -0.3], [0.0, np.nan, np.nan]]), 1.0)
    x = draw(mixture, np.full(2, -0.5), np.full(2, 0.5), 20_000, np.random.default_rng(0))
    assert x.shape == (2, 20_000)
    assert x.min() >= -0.5
    assert x.max() < 0.5
    for k in range(2):
        edges = np.linspace(-0.5, 0.5, 11)
        mass = np.exp(log_mass(Mixture(*(p[k : k + 1] for p in mixture)), edges[None, :-1], edges[None, 1:])[0])
        share = np.histogram(x[k], edges)[0] / 20_000
        assert share == pytest.approx(mass / mass.sum(), abs=0.012)


def test_unbounded_draws() -> None:
    x = draw(
        mixtures(np.full((1, 0), np.nan), 1.0), np.array([-np.inf]), np.array([np.inf]), 5000, np.random.default_rng(1)
    )
    assert x.std() == pytest.approx(1.0, abs=0.05)


def test_the_normal_distribution_function() -> None:
    x = np.linspace(-12, 12, 5001)
    assert normal_cdf(x) == pytest.approx([0.5 * math.erfc(-v / math.sqrt(2)) for v in x], abs=1e-12)
