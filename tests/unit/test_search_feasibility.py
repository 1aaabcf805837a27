"""Failures that lie in the configuration teach the search, and teach it no more than they say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import CampaignError
from autotune.search import Observation, make_search, search_settings
from autotune.search.avoidance import Avoidance
from autotune.search.base import Memory
from autotune.search.blends import between, blends
from autotune.search.feasibility import Encoder, fit, place
from autotune.space import Float, Int, LogFloat, LogInt, LogNormal, Normal, Numeric, Space, parse_space

FLOAT = {"float": [0, 1]}
PLANE = parse_space({"x": FLOAT, "y": FLOAT})
CUBE = parse_space({"x": FLOAT, "y": FLOAT, "z": FLOAT})
MIXED = parse_space(
    {
        "layers": {"int": [1, 4]},
        "hidden": {"log_int": [32, 1024]},
        "batch": {"log_int": [64, 2048]},
        "rate": {"log_float": [1e-4, 1e-2]},
        "n": {"normal": [0, 1]},
        "kind": {"choice": ["nb", "zinb", {"mix": {"int": [2, 5]}, "w": {"float": [0, 1], "step": 0.25}}]},
    }
)
Fails = Callable[[Mapping[str, Any]], bool]


def told(number: int, params: Mapping[str, Any], failed: bool, loss: float = 0.0) -> Observation:
    state, value = ("failed", None) if failed else ("finished", loss)
    return Observation(number=number, params=params, state=state, loss=value, infeasible=failed)


def run(
    space: Space, search: Mapping[str, Any], fails: Fails, loss: Callable[[Mapping[str, Any]], float], count: int = 100
) -> list[Observation]:
    algorithm = make_search(search)
    history: list[Observation] = []
    for number in range(count):
        params = algorithm.propose(space, history, number)
        assert params is not None
        failed = fails(params)
        history.append(told(number, params, failed, 0.0 if failed else loss(params)))
    assert len({space.hash(o.params) for o in history}) == count
    return history


def late(history: list[Observation]) -> float:
    return float(np.mean([o.infeasible for o in history[50:]]))


def best(history: list[Observation]) -> float:
    return min(o.loss for o in history if o.loss is not None)


def probabilities(space: Space, history: list[Observation], asked: list[dict[str, Any]]) -> np.ndarray:
    encoder = Encoder(space)
    features = np.array([encoder.features(space.encode(o.params)) for o in history])
    model = fit(features, np.array([o.infeasible for o in history]), encoder.groups)
    return model.probability(np.array([encoder.features(space.encode(p)) for p in asked]))


def accuracy(space: Space, fails: Fails, count: int, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    history = [told(k, p, fails(p)) for k in range(count) for p in [space.sample(rng)]]
    asked = [space.sample(rng) for _ in range(300)]
    found = probabilities(space, history, asked)
    return float(np.mean((found < 0.5) == np.array([fails(p) for p in asked])))


def slab(p: Mapping[str, Any]) -> bool:
    return bool(p["x"] >= 0.6)


def slab_loss(p: Mapping[str, Any]) -> float:
    return float(1 - p["x"] + (p["y"] - 0.3) ** 2 + 0.5 * (p["z"] - 0.7) ** 2)


def test_few_proposals_fail_and_the_best_feasible_corner_is_found() -> None:
    """40% of the space fails, and the best is at the border: 0.4. Half of plain TPE's proposals fail."""
    runs = [run(CUBE, {"seed": seed}, slab, slab_loss) for seed in range(4)]
    assert np.mean([late(history) for history in runs]) < 0.1
    assert np.median([best(history) for history in runs]) < 0.4 + 0.05
    plain = run(CUBE, {"avoid_failures": False}, slab, slab_loss)
    assert late(plain) > 0.3


def test_a_corner_of_a_conditional_space_is_avoided() -> None:
    space = parse_space(
        {
            "m": {"choice": [{"l2": FLOAT}, {"depth": {"int": [1, 8]}, "width": {"log_int": [16, 1024]}}]},
            "r": FLOAT,
        }
    )

    def fails(p: Mapping[str, Any]) -> bool:
        return "depth" in p["m"] and math.log2(p["m"]["depth"]) + math.log2(p["m"]["width"]) > 7.5

    def loss(p: Mapping[str, Any]) -> float:
        m = p["m"]
        return float((p["r"] - 0.5) ** 2 + (1 - math.log2(m["width"]) / 10 if "depth" in m else 0.6))

    histories = [run(space, {"seed": seed}, fails, loss) for seed in range(2)]
    assert np.mean([late(history) for history in histories]) < 0.12
    assert all(
        "depth" in min((o for o in h if o.loss is not None), key=lambda o: o.loss or 0).params["m"] for h in histories
    )


@pytest.mark.parametrize("search", [{"algorithm": "tpe"}, {"algorithm": "random", "avoid_failures": True}])
@pytest.mark.parametrize("state", ["finished", "failed"])
def test_without_deterministic_failures_nothing_changes(search: dict[str, Any], state: str) -> None:
    """Trials that failed for another cause have no effect on the model either."""
    rng = np.random.default_rng(1)
    history = [
        Observation(number=k, params=MIXED.sample(rng), state=s, loss=float(k % 7) if s == "finished" else None)
        for k, s in enumerate(["finished", "finished", state] * 12)
    ]
    plain = make_search({**search, "avoid_failures": False})
    for count in (0, 5, 36):
        for number in range(36, 41):
            assert make_search(search).propose(MIXED, history[:count], number) == plain.propose(
                MIXED, history[:count], number
            )


@pytest.mark.parametrize("search", [{"algorithm": "tpe"}, {"algorithm": "random", "avoid_failures": True}])
def test_a_proposal_is_a_pure_function_of_the_history(search: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    history = [told(k, p, p["hidden"] > 200, float(k % 5)) for k in range(40) for p in [MIXED.sample(rng)]]
    used = make_search(search)
    used.propose(PLANE, [told(0, {"x": 0.5, "y": 0.5}, True)], 1)
    used.propose(MIXED, history[:20], 20)
    for number in range(40, 44):
        fresh = make_search(search).propose(MIXED, history, number)
        assert fresh == used.propose(parse_space(MIXED.to_json()), history[::-1], number)
        assert fresh is not None
        assert MIXED.normalise(fresh) == fresh


def test_random_search_draws_again_where_trials_fail() -> None:
    def share(avoid: bool) -> float:
        settings = {"algorithm": "random", "avoid_failures": avoid}
        return late(run(PLANE, settings, lambda p: p["x"] > 0.6, lambda p: p["y"]))

    assert share(True) < 0.15 < 0.3 < share(False)


def test_failures_without_a_pattern_do_no_harm() -> None:
    def loss(p: Mapping[str, Any]) -> float:
        return float((p["x"] - 0.7) ** 2 + (p["y"] - 0.2) ** 2 + (p["z"] - 0.5) ** 2)

    def median(avoid: bool) -> float:
        found = []
        for seed in range(6):
            chance = np.random.default_rng(seed)

            def fails(_: Mapping[str, Any], chance: np.random.Generator = chance) -> bool:
                return bool(chance.random() < 0.05)

            found.append(best(run(CUBE, {"seed": seed, "avoid_failures": avoid}, fails, loss, 60)))
        return float(np.median(found))

    assert median(True) < 2 * median(False) + 0.01


def test_failures_without_a_pattern_close_almost_nothing() -> None:
    rng = np.random.default_rng(3)
    history = [told(k, CUBE.sample(rng), k % 20 == 0) for k in range(200)]
    asked = [CUBE.sample(rng) for _ in range(300)]
    gate = Avoidance().gate(CUBE, history, 200, 0, Memory())
    assert gate is not None
    assert np.mean([gate.passes(CUBE.encode(p)) for p in asked]) > 0.7


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ended=st.integers(0, 30), seed=st.integers(0, 1000))
def test_a_single_failure_closes_nothing_far_from_it(data: st.DataObject, ended: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = data.draw(st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)))
    history = [told(k, PLANE.sample(rng), False) for k in range(ended)]
    history.append(told(ended, {"x": x, "y": y}, True))
    corner, near = probabilities(PLANE, history, [{"x": 1.0, "y": 1.0}, {"x": x, "y": y}])
    assert corner > near
    gates = (Avoidance().gate(PLANE, history, ended + 1, s, Memory()) for s in range(100))
    gate = next(g for g in gates if g is not None)
    assert all(gate.passes_loosely(PLANE.encode(PLANE.sample(rng))) for _ in range(10))
    assert gate.passes(PLANE.encode({"x": 1.0, "y": 1.0}))


@pytest.mark.parametrize(
    ("fails", "needed"),
    [
        (lambda p: p["hidden"] >= 300, 0.9),
        (lambda p: p["batch"] > 300 and p["hidden"] > 150, 0.85),
        (lambda p: p["batch"] * p["hidden"] > 100_000, 0.85),
        (lambda p: p["kind"] == "zinb", 0.97),
        (lambda p: isinstance(p["kind"], dict) and p["kind"]["mix"] >= 4, 0.9),
        (lambda p: p["kind"] == "zinb" and p["layers"] >= 2, 0.9),
    ],
)
def test_what_the_model_learns(fails: Fails, needed: float) -> None:
    assert np.mean([accuracy(MIXED, fails, 60, seed) for seed in range(4)]) > needed


def test_pruned_trials_speak_for_a_configuration() -> None:
    rng = np.random.default_rng(5)
    failed = [told(k, {"x": 0.9, "y": float(rng.random())}, True) for k in range(5)]
    pruned = [Observation(number=5 + k, params={"x": 0.1, "y": k / 5}, state="pruned") for k in range(5)]
    lost = [Observation(number=5 + k, params={"x": 0.1, "y": k / 5}, state="cancelled") for k in range(5)]

    def odds(history: list[Observation]) -> float:
        gates = (Avoidance().gate(PLANE, history, n, 0, Memory()) for n in range(100))
        gate = next(g for g in gates if g is not None)
        return float(gate.probabilities([{"x": 0.1, "y": 0.5}])[0])

    assert odds(failed + pruned) > odds(failed + lost)


def test_there_are_proposals_without_a_gate() -> None:
    rng = np.random.default_rng(6)
    history = [told(k, p, slab(p)) for k in range(40) for p in [CUBE.sample(rng)]]
    open_ones = sum(Avoidance().gate(CUBE, history, n, 0, Memory()) is None for n in range(40, 400))
    assert 0.01 < open_ones / 360 < 0.2


def test_a_finite_space_that_fails_throughout_is_exhausted() -> None:
    space = parse_space({"a": {"int": [1, 5]}, "c": {"choice": ["u", "v"]}})
    for search in ({"startup": 2}, {"algorithm": "random", "avoid_failures": True}):
        history = run(space, search, lambda p: p["a"] > 1, lambda p: 1.0, 10)
        assert make_search(search).propose(space, history, 10) is None


def test_the_model_is_quick_with_a_thousand_trials() -> None:
    rng = np.random.default_rng(7)
    history = [told(k, p, p["hidden"] > 400) for k in range(1000) for p in [MIXED.sample(rng)]]
    avoidance, memory = Avoidance(), Memory()
    avoidance.gate(MIXED, history, 1000, 0, memory)
    taken_s = []
    for number in range(1001, 1010):
        started_s = time.thread_time()
        avoidance.gate(MIXED, history, number, 0, memory)
        taken_s.append(time.thread_time() - started_s)
    assert min(taken_s) < 0.1


KINDS = [
    Float(low=-1, high=3),
    Float(low=0.1, high=0.9, step=0.2),
    Int(low=5, high=15, step=2),
    LogInt(low=4, high=64, step=4),
    LogFloat(low=1e-4, high=1),
    LogFloat(low=0.1, high=10, step=0.1),
    Normal(mu=1, sigma=2),
    Normal(mu=0, sigma=1, step=0.5),
    LogNormal(mu=0, sigma=1),
    LogNormal(mu=0, sigma=1, step=0.5),
]


@settings(max_examples=100, deadline=None)
@given(parameter=st.sampled_from(KINDS), seed=st.integers(0, 10_000), way=st.floats(0, 1))
def test_between_two_values_are_allowed_values(parameter: Numeric, seed: int, way: float) -> None:
    rng = np.random.default_rng(seed)
    start, end = parameter.sample(rng), parameter.sample(rng)
    value = between(parameter, start, end, way)
    assert parameter.normalise(value) == value
    low, high = sorted((start, end))
    slack = 1e-9 * (1 + abs(low) + abs(high))
    assert low - slack <= value <= high + slack or parameter.quantised
    assert between(parameter, start, end, 0.0) == pytest.approx(start)
    assert between(parameter, start, end, 1.0) == pytest.approx(end)
    assert 0 <= place(parameter, value) <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_blends_are_in_the_space(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, *anchors = [MIXED.encode(MIXED.sample(rng)) for _ in range(4)]
    for raw in blends(MIXED, start, anchors, rng):
        params = MIXED.decode(raw)
        assert MIXED.encode(params) == raw


def test_only_failed_trials_are_infeasible() -> None:
    with pytest.raises(ValueError, match="infeasible, but finished"):
        Observation(number=0, params={}, state="finished", loss=1.0, infeasible=True)


def test_the_setting() -> None:
    assert search_settings({})["avoid_failures"] is True
    assert search_settings({"algorithm": "random"})["avoid_failures"] is False
    assert "avoid_failures" not in search_settings({"algorithm": "hyperopt_tpe"})
    with pytest.raises(CampaignError, match="avoid_failures: 1 is neither true nor false"):
        search_settings({"avoid_failures": 1})
    with pytest.raises(CampaignError, match="unknown setting 'avoid_failures' of search algorithm grid"):
        search_settings({"algorithm": "grid", "avoid_failures": True})
