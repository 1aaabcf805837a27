"""Properties, sizes, identities and walks of search spaces."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.space import Choice, Const, Float, Int, LogFloat, LogNormal, Space, parse_space

SCVI: dict[str, Any] = {
    "n_latent": {"int": [5, 15]},
    "n_hidden": {"choice": [64, 128, 256]},
    "n_layers": {"int": [1, 5]},
    "dropout_rate": {"choice": [0.1, 0.3, 0.5, 0.7, 0.9]},
    "reconstruction_loss": {"choice": ["zinb", "nb"]},
    "lr": {"choice": [0.01, 0.005, 0.001, 0.0005, 0.0001]},
}
CONDITIONAL: dict[str, Any] = {
    "model": {"choice": [{"kind": "linear"}, {"kind": "mlp", "depth": {"int": [1, 5]}}]},
    "x": {"float": [0, 1], "step": 0.1},
}

steps = st.sampled_from([0.1, 0.25, 0.5, 1, 3])
small = st.integers(-20, 20)


@st.composite
def numeric(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["int", "log_int", "float", "log_float", "normal", "log_normal"]))
    low = draw(small)
    width = draw(st.integers(0, 50))
    if kind in ("normal", "log_normal"):
        definition: dict[str, Any] = {kind: [low / 10, draw(st.floats(0.1, 3))]}
    elif kind.startswith("log"):
        low = abs(low) + 3
        definition = {kind: [low, low + 3 + width]}
    else:
        definition = {kind: [low, low + width]}
    if draw(st.booleans()):
        definition["step"] = draw(st.sampled_from([1, 2, 3])) if kind.endswith("int") else draw(steps)
    return definition


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("ab1", max_size=3)


@st.composite
def choice(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    literals = draw(st.lists(scalars, max_size=3, unique_by=lambda v: json.dumps(v if v != 0 else abs(v))))
    nested = draw(st.lists(inner, min_size=0 if literals else 1, max_size=2))
    options = [*literals, *({"kind": str(i), "parts": [d, {"deep": i}]} for i, d in enumerate(nested))]
    definition: dict[str, Any] = {"choice": options}
    if draw(st.booleans()):
        definition["weights"] = draw(
            st.lists(st.sampled_from([0.5, 1, 2]), min_size=len(options), max_size=len(options))
        )
    return definition


definitions = st.recursive(numeric(), choice, max_leaves=4)
spaces = st.dictionaries(st.sampled_from(["a", "b", "lr", "x y"]), definitions, min_size=1, max_size=4)


@settings(deadline=None)
@given(spaces, st.integers(0, 2**32))
def test_a_sample_survives_encode_and_decode(definition: dict[str, Any], seed: int) -> None:
    space = parse_space(definition)
    params = space.sample(np.random.default_rng(seed))
    space.validate(params)
    assert json.dumps(space.normalise(params)) == json.dumps(params)
    raw = space.encode(params)
    assert json.dumps(space.decode(raw)) == json.dumps(params)
    assert space.identify(params) == (space.hash(params), raw)
    assert raw.keys() <= space.leaves().keys()
    for label, (_, condition) in space.leaves().items():
        assert (label in raw) == (condition is None or raw.get(condition[0]) == condition[1])


@settings(deadline=None)
@given(spaces, st.integers(0, 2**32))
def test_definition_and_pickle_round_trip(definition: dict[str, Any], seed: int) -> None:
    space = parse_space(definition)
    again = parse_space(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert hash(again) == hash(space)
    assert pickle.loads(pickle.dumps(space)) == space
    draws = [s.sample(np.random.default_rng(seed)) for s in (space, again)]
    assert draws[0] == draws[1]


@settings(deadline=None)
@given(spaces, st.integers(0, 2**32))
def test_hash_does_not_see_key_order(definition: dict[str, Any], seed: int) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: turned(v) for k, v in reversed(value.items())}
        return [turned(v) for v in value] if isinstance(value, list) else value

    space = parse_space(definition)
    params = space.sample(np.random.default_rng(seed))
    assert space.hash(turned(params)) == space.hash(params)
    assert parse_space(turned(definition)).hash(params) == space.hash(params)


@settings(deadline=None)
@given(spaces)
def test_a_finite_grid_has_size_distinct_points(definition: dict[str, Any]) -> None:
    space = parse_space(definition)
    if space.size is None:
        with pytest.raises(SpaceError, match="infinitely many values"):
            space.grid()
    elif space.size <= 500:
        points = list(space.grid())
        assert len(points) == len({space.hash(p) for p in points}) == space.size
        assert space.point(space.size - 1) == points[-1]


def test_known_sizes() -> None:
    assert parse_space(SCVI).size == 8250
    assert parse_space({**SCVI, "dropout_rate": {"choice": [0.1, 0.3, 0.5, 0.7]}}).size == 6600
    assert parse_space(CONDITIONAL).size == 66
    assert parse_space({"x": {"float": [0, 1]}}).size is None
    assert parse_space({"x": {"float": [2, 2]}}).size == 1
    assert parse_space({"x": {"normal": [0, 1], "step": 1}}).size is None
    assert parse_space({"x": {"const": [1]}}).size == 1
    assert parse_space({"x": {"log_int": [3, 10], "step": 4}}).size == 2


def test_grid_runs_the_last_parameter_fastest_and_is_lazy() -> None:
    space = parse_space({"a": {"choice": ["u", {"n": {"int": [1, 2]}}]}, "b": {"int": [0, 4], "step": 4}})
    assert [(p["a"], p["b"]) for p in space.grid()] == [
        ("u", 0),
        ("u", 4),
        ({"n": 1}, 0),
        ({"n": 1}, 4),
        ({"n": 2}, 0),
        ({"n": 2}, 4),
    ]
    huge = parse_space({f"p{i}": {"int": [0, 10**6]} for i in range(20)})
    assert next(huge.grid()) == {f"p{i}": 0 for i in range(20)}
    assert huge.point((10**6 + 1) ** 20 - 1) == {f"p{i}": 10**6 for i in range(20)}
    with pytest.raises(SpaceError, match="grid index 66 is not within 0 to 65"):
        parse_space(CONDITIONAL).point(66)


def test_labels_and_conditions() -> None:
    space = parse_space(CONDITIONAL)
    assert {k: v.condition for k, v in space.leaves().items()} == {
        "model": None,
        "model[1].depth": ("model", 1),
        "x": None,
    }
    params = {"model": {"kind": "mlp", "depth": 3}, "x": 0.3}
    assert space.encode(params) == {"model": 1, "model[1].depth": 3, "x": 0.3}
    assert space.decode({"model": 0, "model[1].depth": 99, "x": 0.3}) == {"model": {"kind": "linear"}, "x": 0.3}
    direct = parse_space({"m": {"choice": ["auto", {"int": [1, 3]}, {"choice": [[{"float": [0, 1]}], None]}]}})
    assert set(direct.leaves()) == {"m", "m[1]", "m[2]", "m[2][0].0"}
    assert direct.encode({"m": [0.5]}) == {"m": 2, "m[2]": 0, "m[2][0].0": 0.5}
    assert direct.encode({"m": 2}) == {"m": 1, "m[1]": 2}
    assert parse_space({"c": {"const": {"int": [1, 2]}}, "x": {"int": [1, 1]}}).encode(
        {"c": {"int": [1, 2]}, "x": 1}
    ) == {"x": 1}


def test_grids_are_exact() -> None:
    space = parse_space({"x": {"float": [0, 1], "step": 0.1}})
    assert [p["x"] for p in space.grid()] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert space.normalise({"x": 0.1 * 3}) == {"x": 0.3}
    assert [p["x"] for p in parse_space({"x": {"float": [0, 1], "step": 0.4}}).grid()] == [0.0, 0.4, 0.8]
    assert [p["x"] for p in parse_space({"x": {"log_float": [0.25, 2.2], "step": 0.5}}).grid()] == [0.5, 1, 1.5, 2]
    assert [p["x"] for p in parse_space({"x": {"log_int": [3, 13], "step": 5}}).grid()] == [5, 10]
    assert parse_space({"x": {"normal": [0, 1], "step": 0.1}}).normalise({"x": -0.1 * 3}) == {"x": -0.3}


def test_samples_follow_the_prior() -> None:
    rng = np.random.default_rng(1)
    space = parse_space(
        {
            "log": {"log_float": [1e-4, 1]},
            "n": {"int": [1, 4]},
            "w": {"choice": ["a", "b"], "weights": [1, 3]},
            "g": {"normal": [5, 2]},
            "l": {"log_normal": [1, 0.5]},
            "li": {"log_int": [1, 1000]},
        }
    )
    draws = [space.sample(rng) for _ in range(4000)]
    assert np.mean([d["log"] < 1e-2 for d in draws]) == pytest.approx(0.5, abs=0.03)
    assert np.bincount([d["n"] for d in draws])[1:] / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    assert np.mean([d["w"] == "b" for d in draws]) == pytest.approx(0.75, abs=0.03)
    assert np.mean([d["g"] for d in draws]) == pytest.approx(5, abs=0.15)
    assert np.mean(np.log([d["l"] for d in draws])) == pytest.approx(1, abs=0.05)
    # P(index <= 22) = log(22.5 / 0.5) / log(1000.5 / 0.5)
    assert np.mean([d["li"] <= 22 for d in draws]) == pytest.approx(math.log(45) / math.log(2001), abs=0.03)


def test_extreme_priors_stay_finite() -> None:
    rng = np.random.default_rng(0)
    space = parse_space(
        {
            "a": {"log_normal": [0, 1e6]},
            "b": {"log_normal": [0, 1e6], "step": 0.5},
            "c": {"normal": [0, 1e308]},
            "d": {"log_float": [5e-324, 1.7e308]},
            "e": {"int": [-(2**53), 2**53]},
        }
    )
    for _ in range(200):
        params = space.sample(rng)
        space.validate(params)
        assert all(math.isfinite(v) for v in params.values())


def test_hashes_never_change() -> None:
    # Each is SHA-256 of the JSON text, for example of {"model":{"depth":3,"kind":"mlp"},"x":0.3}.
    scvi = parse_space(SCVI)
    params = {
        "n_latent": 10,
        "n_hidden": 128,
        "n_layers": 1,
        "dropout_rate": 0.1,
        "reconstruction_loss": "zinb",
        "lr": 0.001,
    }
    assert scvi.hash(params) == "f6b6ef5c94ec9efeca066e0193d28cd9"
    mlp = parse_space(CONDITIONAL)
    assert mlp.hash({"model": {"kind": "mlp", "depth": 3}, "x": 0.3}) == "4ddfcb25a72b7ef956288903c3e23762"
    mixed = parse_space({"a": {"choice": [None, True, 1, 1.0, "1", "ü", [1, {"b": -0.5}]]}, "f": {"float": [-1, 1]}})
    assert mixed.hash({"a": [1, {"b": -0.5}], "f": -0.0}) == "e171a70cfc9444f31763dedb87e7171c"
    assert mixed.hash({"a": "ü", "f": 1}) == "fd3fdf26d0950790ab87372421bc8d6b"


def test_which_values_are_the_same() -> None:
    space = parse_space({"n": {"int": [0, 5]}, "f": {"float": [-1, 1]}, "c": {"choice": [1, 1.0, True, "1"]}})

    def h(n: Any, f: Any, c: Any) -> str:
        return space.hash({"n": n, "f": f, "c": c})

    assert h(3, 1, 1) == h(3.0, 1.0, 1) == h(np.int64(3), np.float32(1), np.int8(1))
    assert h(3, -0.0, 1) == h(3, 0.0, 1) == h(3, 0, 1)
    assert len({h(3, 0, c) for c in (1, 1.0, True, "1")}) == 4
    normal = space.normalise({"n": 3.0, "f": 1, "c": True})
    assert [type(normal[k]) for k in "nfc"] == [int, float, bool]


def test_hash_does_not_depend_on_the_process() -> None:
    code = (
        "import json,sys; from autotune.space import parse_space; d,p=json.loads(sys.argv[1]);"
        "sys.stdout.write(parse_space(d).hash(p)); assert not {'hyperopt','ray','scipy','pandas'} & set(sys.modules)"
    )
    params = {"x": 0.3, "model": {"depth": 3, "kind": "mlp"}}
    argument = json.dumps([CONDITIONAL, params])
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == parse_space(CONDITIONAL).hash(params)


def test_flatten_keeps_lists() -> None:
    space = parse_space(CONDITIONAL)
    assert space.flatten({"a": {"b": {"c": 1}, "l": [1, {"d": 2}], "e": {}}, "x": 2}) == {
        "a.b.c": 1,
        "a.l": [1, {"d": 2}],
        "a.e": {},
        "x": 2,
    }


def test_callers_cannot_change_the_space() -> None:
    options: list[Any] = [[1, 2], {"a": [3]}]
    space = parse_space({"c": {"choice": options}, "k": {"const": options}})
    before = json.dumps(space.to_json())
    options[0].append(9)
    for params in [*space.grid(), space.sample(np.random.default_rng(0)), space.decode({"c": 0})]:
        params["k"].append(1)
        params["c"].clear()
    space.normalise({"c": [1, 2], "k": [[1, 2], {"a": [3]}]})["c"].append(5)
    space.to_json()["k"]["const"].append(5)
    assert json.dumps(space.to_json()) == before


def test_parameters_can_be_built_in_python() -> None:
    space = Space(
        parameters={
            "n": Int(low=1, high=3),
            "c": Choice(options=((1, 2), {"lr": LogFloat(low=0.1, high=1)}), weights=(1, 1)),
            "k": Const(value=(1,)),
        }
    )
    assert space == parse_space(space.to_json())
    assert parse_space(space) is space
    assert parse_space({"n": Int(low=1, high=3)}).size == 3
    assert Int(low=1, high=3) != Float(low=1, high=3)
    assert Choice(options=(1,)) != Choice(options=(True,))
    assert len({Int(low=1, high=3), Int(low=1, high=3, step=1)}) == 1
    assert (space == 3) is False
    with pytest.raises(SpaceError, match=r"0\.0 is not positive"):
        LogNormal(mu=0, sigma=1).normalise(0)
