"""Same history, same distribution of proposals as ``hyperopt.tpe.suggest``, by two-sample tests with fixed seeds.

hyperopt's own functions are composed as its posterior does, for many draws at once; one test asks the whole of
``suggest``. Where observations are equal, hyperopt leaves it to NumPy's sort (which differs between processors) which
of them comes first, and so which has the wider component; here its sort is told to keep the order of time, as ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hyperopt import tpe
from scipy import stats

from autotune.search import Observation, make_search
from autotune.search.base import Memory
from autotune.search.candidates import Proposer
from autotune.search.groups import Groups
from autotune.search.hyperopt_tpe import _Model
from autotune.search.sites import Sites
from autotune.search.table import Table
from autotune.space import Numeric, parse_space

DRAWS = 2000
ALPHA = 1e-4  # about 40 comparisons, fixed seeds: a false alarm would be seen once, and forever
SPACE = parse_space(
    {
        "uniform": {"float": [0, 1]},
        "loguniform": {"log_float": [1e-5, 1]},
        "quniform": {"float": [0, 1], "step": 0.05},
        "qloguniform": {"log_int": [1, 200]},
        "int": {"int": [0, 2000]},
        "normal": {"normal": [1, 2]},
        "qnormal": {"normal": [0, 2], "step": 0.5},
        "lognormal": {"log_normal": [0, 1]},
        "qlognormal": {"log_normal": [1, 1], "step": 1},
        "choice": {"choice": list("abcdefgh")},
        "weighted": {"choice": [1, 2, 3, 4], "weights": [8, 4, 2, 1]},
        "model": {"choice": ["none", {"rate": {"float": [0, 1]}}, {"depth": {"int": [1, 12]}}]},
    }
)
Draws = Mapping[str, np.ndarray]


def loss(p: Mapping[str, Any]) -> float:
    model = p["model"]
    nested = 0.3 if model == "none" else abs(model["rate"] - 0.8) if "rate" in model else abs(model["depth"] - 4) / 12
    return float(
        abs(p["uniform"] - 0.3) + abs(math.log10(p["loguniform"]) + 2) / 5 + abs(p["quniform"] - 0.6) + nested
        + abs(math.log(p["qloguniform"]) - 3) / 5 + abs(p["int"] - 1500) / 2000 + abs(p["normal"]) / 5
        + abs(p["lognormal"] - 1) / 5 + ord(p["choice"]) % 5 / 5 + p["weighted"] / 8
    )  # fmt: skip


@cache
def history(count: int) -> tuple[Observation, ...]:
    """Random trials, then half of them near good values; every ninth failed."""
    rng = np.random.default_rng(count)
    told: list[Observation] = []
    for number in range(count):
        drawn = [SPACE.sample(rng) for _ in range(1 if number % 2 else 8)]
        params = min(drawn, key=loss)
        state, value = ("failed", None) if number % 9 == 4 else ("finished", loss(params))
        told.append(Observation(number=number, params=params, state=state, loss=value))
    return tuple(told)


@cache
def ours(count: int, gamma: float = 0.25, prior_weight: float = 1.0, candidates: int = 24) -> Draws:
    table = Table(SPACE, Memory())
    table.sync(list(history(count)))
    losses = table.model_losses("mean")
    assert losses is not None
    groups = Groups(table)
    groups.split(losses, gamma)
    proposer = Proposer(table, groups, prior_weight, Sites(table.columns))
    rng = np.random.default_rng(1)
    drawn = [proposer.propose(candidates, rng) for _ in range(DRAWS)]
    return {label: np.array([raw[label] for raw in drawn]) for label in SPACE.leaves()}


class StableNumpy:
    """NumPy, but equal elements stay in order."""

    argsort = staticmethod(functools.partial(np.argsort, kind="stable"))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@cache
def theirs(count: int) -> Draws:
    """Compose hyperopt's own functions as its ``ap_*_sampler`` and ``build_posterior`` do, many draws at once."""
    domain = _Model(SPACE)._domain
    told = history(count)
    losses = [math.inf if o.loss is None else o.loss for o in told]
    raws = [SPACE.encode(o.params) for o in told]
    rng = np.random.default_rng(2)
    with mock.patch.object(tpe, "np", StableNumpy()):
        return {label: _theirs_of(label, domain.params[label], raws, losses, rng) for label in SPACE.leaves()}


def _theirs_of(label: str, node: Any, raws: Any, losses: list[float], rng: np.random.Generator) -> np.ndarray:
    model = _Model(SPACE)
    rows = [k for k, raw in enumerate(raws) if label in raw]
    values = [model._inner(label, raws[k][label]) for k in rows]
    groups = tpe.ap_split_trials(rows, values, list(range(len(raws))), losses, 0.25)
    size = 24 * DRAWS
    if node.name in ("randint", "categorical"):
        options = len(SPACE.leaves()[label].parameter.options)  # type: ignore[attr-defined]
        prior = SPACE.leaves()[label].parameter.weights or [1 / options] * options  # type: ignore[attr-defined]
        shares = []
        for group in groups:
            counts = np.bincount(group.astype(int), tpe.linear_forgetting_weights(len(group), 25), options)
            shares.append(tpe.tpe_cat_pseudocounts(counts, 1.0, np.array(prior), 1))
        samples = rng.choice(options, size, p=shares[0])
        below, above = (tpe.categorical_lpdf(samples, p) for p in shares)
    else:
        literals = [float(v.obj) for v in node.pos_args]
        log, bounded = "log" in node.name, "uniform" in node.name
        q = literals[2] if node.name.startswith("q") else None
        limits = {"low": literals[0], "high": literals[1]} if bounded else {}
        mu, sigma = (0.5 * (literals[0] + literals[1]), literals[1] - literals[0]) if bounded else literals[:2]
        floor = max(1e-12, math.exp(literals[0])) if log and bounded else 1e-12
        scaled = [np.log(np.maximum(g, floor if q is not None else 0.0)) if log else g for g in groups]
        estimators = [tpe.adaptive_parzen_normal(np.asarray(g, float), 1.0, mu, sigma) for g in scaled]
        draw, lpdf = (tpe.LGMM1, tpe.LGMM1_lpdf) if log else (tpe.GMM1, tpe.GMM1_lpdf)
        samples = draw(*estimators[0], **limits, q=q, rng=rng, size=(size,))
        below, above = (lpdf(samples, *e, **limits, q=q) for e in estimators)
    best = np.argmax((below - above).reshape(DRAWS, 24), axis=1)
    chosen = samples.reshape(DRAWS, 24)[np.arange(DRAWS), best]
    return np.array([model._outer(label, float(v)) for v in chosen])


def p_value(label: str, one: Draws, other: Draws) -> float:
    """Return the p-value of a two-sample test: Kolmogorov-Smirnov, or chi-squared for few values."""
    a, b = one[label], other[label]
    parameter = SPACE.leaves()[label].parameter
    values = np.unique(np.concatenate([a, b]))
    if isinstance(parameter, Numeric) and len(values) > 60:
        return float(stats.ks_2samp(a, b).pvalue)
    counts = np.array([[np.sum(x == v) for v in values] for x in (a, b)])
    rare = counts.sum(axis=0) < 16
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    counts = counts[:, counts.sum(axis=0) > 0]
    return 1.0 if counts.shape[1] < 2 else float(stats.chi2_contingency(counts).pvalue)


@pytest.mark.parametrize("label", list(SPACE.leaves()))
@pytest.mark.parametrize("count", [24, 60, 400])
def test_the_distribution_of_proposals_is_that_of_hyperopt(count: int, label: str) -> None:
    assert p_value(label, ours(count), theirs(count)) > ALPHA


@pytest.mark.parametrize(
    "wrong", [{"gamma": 0.6}, {"prior_weight": 3.0}, {"candidates": 12}], ids=["gamma", "prior", "candidates"]
)
def test_the_comparison_would_notice_a_wrong_setting(wrong: dict[str, Any]) -> None:
    noticed = [label for label in SPACE.leaves() if p_value(label, ours(60, **wrong), theirs(60)) < ALPHA]
    assert len(noticed) >= 3, noticed


def test_whole_proposals_are_distributed_as_those_of_hyperopt() -> None:
    """Through `propose` of both algorithms, with decoding, conditions and refusal of duplicates."""
    told = list(history(60))
    draws = {}
    for algorithm in ("tpe", "hyperopt_tpe"):
        hyperopts = {"multivariate": False, "split": "sqrt", "startup": 20} if algorithm == "tpe" else {}
        search = make_search({"algorithm": algorithm, **hyperopts})
        with mock.patch.object(tpe, "np", StableNumpy()):
            draws[algorithm] = [SPACE.encode(search.propose(SPACE, told, 60 + k) or {}) for k in range(150)]
    for label in SPACE.leaves():
        a, b = ({label: np.array([raw[label] for raw in draws[k] if label in raw])} for k in draws)
        if min(len(a[label]), len(b[label])) > 30:
            assert p_value(label, a, b) > ALPHA, label
    shares = [np.mean(["model[1].rate" in raw for raw in made]) for made in draws.values()]
    assert abs(shares[0] - shares[1]) < 0.25
