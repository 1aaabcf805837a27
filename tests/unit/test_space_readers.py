"""Spaces written for hyperopt and for Ray Tune."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import as_apply, scope, stochastic

from autotune.errors import SpaceError
from autotune.space import parse_space


def definition(value: Any) -> Any:
    return parse_space({"x": value}).to_json()["x"]


HYPEROPT: list[tuple[Any, dict[str, Any]]] = [
    (hp.uniform("l", 0, 2), {"float": [0.0, 2.0]}),
    (hp.uniform("l", low=0, high=2), {"float": [0.0, 2.0]}),
    (hp.quniform("l", 1, 10, 2), {"float": [2.0, 10.0], "step": 2.0}),
    (hp.quniform("l", 0, 1, 0.1), {"float": [0.0, 1.0], "step": 0.1}),
    (hp.quniform("l", 0.5, 10.4, 1), {"float": [1.0, 10.0], "step": 1.0}),
    (hp.loguniform("l", 0, 0), {"log_float": [1.0, 1.0]}),
    (hp.loguniform("l", -3, 1), {"log_float": [math.exp(-3), math.exp(1)]}),
    (hp.qloguniform("l", math.log(0.2), math.log(7.4), 1), {"log_float": [1.0, 7.0], "step": 1.0}),
    (hp.normal("l", 1, 2), {"normal": [1.0, 2.0]}),
    (hp.qnormal("l", 1, 2, 0.5), {"normal": [1.0, 2.0], "step": 0.5}),
    (hp.lognormal("l", 1, 2), {"log_normal": [1.0, 2.0]}),
    (hp.qlognormal("l", 1, 2, 3), {"log_normal": [1.0, 2.0], "step": 3.0}),
    (hp.randint("l", 5), {"int": [0, 4]}),
    (hp.randint("l", 2, 5), {"int": [2, 4]}),
    (hp.uniformint("l", 2, 5), {"int": [2, 5]}),
    (5 + hp.randint("l", 11), {"int": [5, 15]}),
    (hp.randint("l", 5) + 1, {"int": [1, 5]}),
    (scope.int(hp.quniform("l", 5, 50, 5)), {"int": [5, 50], "step": 5}),
    (scope.int(hp.qloguniform("l", 0, 3, 1)), {"log_int": [1, 20]}),
    (hp.choice("l", ["a", 1, None]), {"choice": ["a", 1, None]}),
    (hp.pchoice("l", [(0.25, "a"), (0.75, "b")]), {"choice": ["a", "b"], "weights": [0.25, 0.75]}),
    (hp.choice("l", [{"int": [1, 2]}, 3]), {"choice": [{"const": {"int": [1, 2]}}, 3]}),
    (
        hp.choice("l", [1, {"k": "b", "d": hp.randint("d", 3), "c": hp.choice("c", [[hp.normal("n", 0, 1)], 0])}]),
        {"choice": [1, {"c": {"choice": [[{"normal": [0.0, 1.0]}], 0]}, "d": {"int": [0, 2]}, "k": "b"}]},
    ),
]


@pytest.mark.parametrize(("expression", "expected"), HYPEROPT, ids=range(len(HYPEROPT)))
def test_hyperopt_kinds(expression: Any, expected: dict[str, Any]) -> None:
    assert definition(expression) == expected
    assert parse_space(as_apply({"x": expression})).to_json() == {"x": expected}


@pytest.mark.parametrize("expression", [e for e, _ in HYPEROPT], ids=range(len(HYPEROPT)))
def test_what_hyperopt_draws_is_in_the_space(expression: Any) -> None:
    space = parse_space({"x": expression})
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = stochastic.sample(expression, rng)
        # hyperopt's quantised log-uniform can round down to 0, which a log scale does not have.
        if not (isinstance(drawn, float) and drawn == 0 and "log_float" in space.to_json()["x"]):
            space.validate({"x": list(drawn) if isinstance(drawn, tuple) else _lists(drawn)})


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def test_the_published_scvi_space() -> None:
    published = {
        "model_tunable_kwargs": {
            "n_latent": 5 + hp.randint("n_latent", 11),
            "n_hidden": hp.choice("n_hidden", [64, 128, 256]),
            "n_layers": 1 + hp.randint("n_layers", 5),
            "dropout_rate": hp.choice("dropout_rate", [0.1, 0.3, 0.5, 0.7, 0.9]),
            "reconstruction_loss": hp.choice("reconstruction_loss", ["zinb", "nb"]),
        },
        "train_func_tunable_kwargs": {"lr": hp.choice("lr", [0.01, 0.005, 0.001, 0.0005, 0.0001])},
    }
    for expression in (published, as_apply(published)):
        space = parse_space(expression)
        assert space.size == 8250
        assert "model_tunable_kwargs.n_latent" in space.leaves()
        assert space.sample(np.random.default_rng(0)).keys() == published.keys()
        assert parse_space(space.to_json()) == space


def test_constants_beside_expressions() -> None:
    space = parse_space({"n": hp.randint("n", 3), "k": 3, "l": [1, 2], "d": {"a": 1}, "e": {"int": [1, 2]}})
    assert space.to_json() == {
        "n": {"int": [0, 2]},
        "k": {"const": 3},
        "l": {"const": [1, 2]},
        "d": {"const": {"a": 1}},
        "e": {"int": [1, 2]},
    }
    graph = as_apply({"n": hp.randint("n", 3), "k": 3, "d": {"a": 1}})
    assert parse_space(graph).to_json() == {"d": {"const": {"a": 1}}, "k": {"const": 3}, "n": {"int": [0, 2]}}


def test_a_choice_as_root_keeps_its_label() -> None:
    space = parse_space(hp.choice("model", [{"kind": "svm", "c": hp.lognormal("c", 0, 1)}, {"kind": "tree"}]))
    assert set(space.leaves()) == {"model", "model[0].c"}


def test_one_hyperopt_label_at_two_places() -> None:
    shared = hp.uniform("u", 0, 1)
    with pytest.raises(SpaceError, match="parameter 'b': hyperopt label 'u' is used at two places"):
        parse_space({"a": shared, "b": shared})
    apart = parse_space({"a": hp.choice("c", [{"k": 0, "v": shared}, {"k": 1, "v": shared}])})
    assert set(apart.leaves()) == {"a", "a[0].v", "a[1].v"}


UNSUPPORTED: list[tuple[Any, str]] = [
    (2 * hp.uniform("l", 0, 1), "parameter 'x': hyperopt node 'mul' is not supported"),
    (3 - hp.randint("l", 3), "hyperopt node 'sub' is not supported"),
    (1.5 + hp.randint("l", 3), "hyperopt node 'add' is only supported for a whole number and randint"),
    (1 + hp.uniform("l", 0, 1), "hyperopt node 'add' is only supported"),
    (scope.int(hp.uniform("l", 0, 9)), "hyperopt node 'int' is only supported around randint"),
    (scope.int(hp.quniform("l", 0, 9, 0.5)), "hyperopt node 'int' is only supported around randint"),
    (hp.uniform("l", 0, hp.uniform("m", 1, 2)), "hyperopt node 'float' is not supported"),
    (scope.switch(scope.randint(2), 1, 2), "hyperopt node 'randint' is not supported"),
    (hp.choice("l", [{"int": hp.uniform("u", 0, 1)}, 1]), "the key 'int' is a kind of ours; rename it"),
]


@pytest.mark.parametrize(("expression", "message"), UNSUPPORTED, ids=range(len(UNSUPPORTED)))
def test_unsupported_hyperopt_nodes_are_named(expression: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        parse_space({"x": expression})


def test_a_hyperopt_root_must_be_a_mapping() -> None:
    with pytest.raises(SpaceError, match="the hyperopt expression is a 'float' node; give a dict"):
        parse_space(hp.uniform("l", 0, 1))


@pytest.fixture(scope="module")
def tune() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray import tune as module
    return module


def test_ray_kinds(tune: Any) -> None:
    cases: list[tuple[Any, dict[str, Any]]] = [
        (tune.uniform(0, 2), {"float": [0.0, 2.0]}),
        (tune.quniform(0.2, 1.0, 0.2), {"float": [0.2, 1.0], "step": 0.2}),
        (tune.loguniform(1e-4, 1e-1), {"log_float": [1e-4, 1e-1]}),
        (tune.qloguniform(0.5, 8, 0.5), {"log_float": [0.5, 8.0], "step": 0.5}),
        (tune.randn(1, 2), {"normal": [1.0, 2.0]}),
        (tune.qrandn(1, 2, 0.5), {"normal": [1.0, 2.0], "step": 0.5}),
        (tune.randint(2, 9), {"int": [2, 8]}),
        (tune.qrandint(2, 9, 3), {"int": [3, 9], "step": 3}),
        (tune.qrandint(2, 9, 1), {"int": [2, 8]}),
        (tune.lograndint(2, 9), {"log_int": [2, 8]}),
        (tune.qlograndint(2, 9, 3), {"log_int": [3, 9], "step": 3}),
        (tune.qlograndint(2, 9, 1), {"log_int": [2, 8]}),
        (tune.choice(["a", 1, None]), {"choice": ["a", 1, None]}),
        (tune.grid_search([1, 2]), {"choice": [1, 2]}),
    ]
    for domain, expected in cases:
        space = parse_space({"x": domain})
        assert space.to_json() == {"x": expected}
        if not isinstance(domain, dict):
            for seed in range(50):
                space.validate({"x": domain.sample(random_state=seed)})


def test_ray_spaces_mix_with_definitions_and_constants(tune: Any) -> None:
    space = parse_space(
        {
            "lr": tune.loguniform(1e-4, 1e-1),
            "n": {"int": [1, 4]},
            "epochs": 3,
            "args": {"p": tune.uniform(0, 1), "fixed": "a"},
            "m": tune.choice([{"k": "a", "d": tune.randint(0, 3)}, {"int": [1, 2]}]),
        }
    )
    assert space.to_json() == {
        "lr": {"log_float": [1e-4, 1e-1]},
        "n": {"int": [1, 4]},
        "epochs": {"const": 3},
        "args": {"nested": {"p": {"float": [0.0, 1.0]}, "fixed": "a"}},
        "m": {"choice": [{"k": "a", "d": {"int": [0, 2]}}, {"const": {"int": [1, 2]}}]},
    }
    assert set(space.leaves()) == {"lr", "n", "args.p", "m", "m[0].d"}
    params = space.sample(np.random.default_rng(0))
    assert space.decode(space.encode(params)) == params


def test_unsupported_ray_domains_are_named(tune: Any) -> None:
    with pytest.raises(SpaceError, match=r"parameter 'x': Ray Tune Function with sampler .* is not supported"):
        parse_space({"x": tune.sample_from(lambda config: 1)})
    with pytest.raises(SpaceError, match="parameter 'x': grid_search takes a list, not int"):
        parse_space({"x": {"grid_search": 3}})
