"""What every search algorithm has to do, and the quality of TPE."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from autotune.errors import CampaignError, SpaceError
from autotune.search import Observation, make_search, search_settings, stored_settings, warm_up
from autotune.search.hyperopt_tpe import HyperoptTpe
from autotune.space import Space, parse_space

ALGORITHMS = ["tpe", "hyperopt_tpe", "random", "grid"]
TWELVE = {"a": {"choice": ["u", {"n": {"int": [1, 2]}}]}, "b": {"float": [0, 1.5], "step": 0.5}}
PLANE = {"x": {"float": [-5, 5]}, "y": {"float": [-5, 5]}}
EVERYTHING = {
    "i": {"int": [5, 15]},
    "is": {"int": [0, 100], "step": 10},
    "li": {"log_int": [1, 512]},
    "lis": {"log_int": [4, 64], "step": 4},
    "f": {"float": [0, 1]},
    "fs": {"float": [0.1, 0.9], "step": 0.2},
    "lf": {"log_float": [1e-5, 1]},
    "lfs": {"log_float": [0.1, 10], "step": 0.1},
    "n": {"normal": [0, 1]},
    "ns": {"normal": [0, 1], "step": 0.5},
    "ln": {"log_normal": [0, 1]},
    "lns": {"log_normal": [0, 1], "step": 0.5},
    "c": {"choice": ["a", {"k": "b", "d": {"int": [1, 3]}, "p": {"choice": [1, 2], "weights": [1, 3]}}]},
    "w": {"choice": [1, 1.0, True], "weights": [1, 2, 3]},
    "one": {"int": [3, 3]},
    "single": {"choice": [{"z": {"float": [0, 1]}}]},
    "k": {"const": {"a": [1]}},
}


def run(
    search: Any, space: Space, loss: Callable[[dict[str, Any]], float], count: int, state: str = "finished"
) -> list[Observation]:
    history: list[Observation] = []
    for number in range(count):
        params = search.propose(space, history, number)
        assert params is not None
        value = loss(params) if state == "finished" else None
        history.append(Observation(number=number, params=params, state=state, loss=value))
    return history


def quadratic(params: dict[str, Any]) -> float:
    return float((params["x"] - 2) ** 2 + (params["y"] + 1) ** 2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("state", ["finished", "failed", "running", "cancelled"])
def test_a_finite_space_is_exhausted_without_duplicates(algorithm: str, state: str) -> None:
    space = parse_space(TWELVE)
    settings = {"algorithm": algorithm} | ({"startup": 3} if "tpe" in algorithm else {})
    search = make_search(settings)
    search.check(space)
    history = run(search, space, lambda p: p["b"], 12, state)
    assert len({space.hash(o.params) for o in history}) == 12
    assert search.propose(space, history, 12) is None


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_a_space_dominated_by_one_option_is_exhausted(algorithm: str) -> None:
    space = parse_space({"a": {"choice": list(range(40)), "weights": [1e9] + [1] * 39}})
    history = run(make_search({"algorithm": algorithm}), space, lambda p: p["a"], 40)
    assert len({space.hash(o.params) for o in history}) == 40


def test_an_infinite_space_with_almost_one_value_ends() -> None:
    space = parse_space({"a": {"normal": [0, 1], "step": 1e6}})
    search = make_search({"algorithm": "random"})
    assert search.propose(space, [Observation(number=0, params={"a": 0.0}, state="failed")], 1) is None


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_proposals_of_every_kind_are_in_the_space_and_new(algorithm: str) -> None:
    space = parse_space(EVERYTHING)
    settings = {"algorithm": algorithm} | ({"startup": 5} if algorithm == "tpe" else {})
    history = run(make_search(settings), space, lambda p: p["f"] + p["i"] + p["n"] ** 2, 30)
    for observation in history:
        assert space.normalise(observation.params) == observation.params
    assert len({space.hash(o.params) for o in history}) == 30


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_a_proposal_is_a_pure_function(algorithm: str) -> None:
    space = parse_space(EVERYTHING)
    states = ["finished", "failed", "running", "pruned", "queued", "cancelled", "paused"]
    rng = np.random.default_rng(0)
    history = [
        Observation(number=k, params=space.sample(rng), state=s, loss=float(k % 11) if s == "finished" else None)
        for k, s in enumerate(states[0] if k % 3 else states[k // 3 % 7] for k in range(60))
    ]
    used = make_search({"algorithm": algorithm, "seed": 3})
    used.propose(parse_space(PLANE), [], 0)
    used.propose(space, history[:30], 7)
    shuffled = random.Random(1).sample(history, len(history))
    first = used.propose(space, history, 60)
    assert first == make_search({"algorithm": algorithm, "seed": 3}).propose(space, history, 60)
    assert first == used.propose(parse_space(space.to_json()), shuffled, 60)
    assert first != used.propose(space, history, 61)
    assert first != make_search({"algorithm": algorithm, "seed": 4}).propose(space, history, 60)


def test_startup_is_random_search() -> None:
    space = parse_space(PLANE)
    tpe = run(make_search({"algorithm": "tpe", "startup": 10}), space, quadratic, 12)
    rand = run(make_search({"algorithm": "random"}), space, quadratic, 12)
    assert [o.params for o in tpe[:10]] == [o.params for o in rand[:10]]
    assert tpe[10].params != rand[10].params


@pytest.mark.parametrize("state", ["failed", "running", "pruned", "finished"])
def test_without_a_finite_loss_the_search_stays_random(state: str) -> None:
    space = parse_space(PLANE)
    tpe = run(make_search({"algorithm": "tpe", "startup": 2}), space, lambda _: math.inf, 8, state)
    rand = run(make_search({"algorithm": "random"}), space, quadratic, 8)
    assert [o.params for o in tpe] == [o.params for o in rand]


def test_tpe_beats_random_on_a_quadratic() -> None:
    space = parse_space({"x": {"float": [-5, 5]}})

    def loss(params: dict[str, Any]) -> float:
        return float((params["x"] - 2) ** 2)

    def best(algorithm: str) -> float:
        runs = [run(make_search({"algorithm": algorithm, "seed": s}), space, loss, 60) for s in range(9)]
        return float(np.median([min(o.loss for o in history if o.loss is not None) for history in runs]))

    assert best("tpe") < 0.5 * best("random")


def test_pending_points_give_distinct_proposals() -> None:
    space = parse_space(PLANE)
    search = make_search({"algorithm": "tpe"})
    history = run(search, space, quadratic, 25)
    for number in range(25, 41):
        params = search.propose(space, history, number)
        assert params is not None
        history.append(Observation(number=number, params=params, state="running"))
    points = np.array([[o.params["x"], o.params["y"]] for o in history[25:]])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(16, 1)]
    assert distances.min() > 0
    assert np.median(distances) > 0.1


def test_a_failing_region_gets_fewer_proposals() -> None:
    space = parse_space({"c": {"choice": ["good", "bad"]}, "x": {"float": [0, 1]}})

    def bad_share(bad_state: str) -> float:
        shares = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            history = []
            for k in range(40):
                x = float(rng.random())
                params: dict[str, Any] = {"c": "bad" if k % 2 else "good", "x": x}
                state = bad_state if k % 2 else "finished"
                history.append(Observation(number=k, params=params, state=state, loss=None if k % 2 else x))
            search = make_search({"algorithm": "tpe", "seed": seed})
            proposals = [search.propose(space, history, number) for number in range(40, 60)]
            shares.append(np.mean([p is not None and p["c"] == "bad" for p in proposals]))
        return float(np.mean(shares))

    assert bad_share("failed") < 0.1
    assert bad_share("failed") <= bad_share("pruned")


def observed(tmp: list[Any]) -> dict[int, Any]:
    return {doc["tid"]: (doc["result"].get("loss"), doc["result"]["status"]) for doc in tmp}


def test_what_hyperopt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperopt import tpe

    told: list[Any] = []
    original = tpe.suggest

    def spy(new_ids: Any, domain: Any, trials: Any, seed: int, **options: Any) -> Any:
        told[:] = trials.trials
        assert options == {
            "n_startup_jobs": 0,
            "gamma": 0.5,
            "n_EI_candidates": 7,
            "prior_weight": 2.0,
            "verbose": False,
        }
        return original(new_ids, domain, trials, seed, **options)

    monkeypatch.setattr(tpe, "suggest", spy)
    space = parse_space({"n": {"int": [5, 25], "step": 2}, "c": {"choice": ["a", {"d": {"int": [1, 3]}}]}})
    states: Sequence[tuple[str, float | None]] = [
        ("finished", 1.0),
        ("finished", 4.0),
        ("running", None),
        ("failed", None),
        ("pruned", None),
        ("cancelled", None),
        ("paused", None),
        ("queued", None),
        ("finished", math.inf),
    ]
    history = [
        Observation(number=k, params={"n": 5 + 2 * k, "c": {"d": 2} if k == 1 else "a"}, state=s, loss=loss)
        for k, (s, loss) in enumerate(states)
    ]
    search = HyperoptTpe(startup=4, gamma=0.5, candidates=7, prior_weight=2.0)
    assert search.propose(space, history, 9) is not None
    assert observed(told) == {
        0: (1.0, "ok"),
        1: (4.0, "ok"),
        2: (2.5, "ok"),
        3: (None, "fail"),
        6: (2.5, "ok"),
        7: (2.5, "ok"),
        8: (None, "fail"),
    }
    assert told[1]["misc"]["vals"] == {"n": [1], "c": [1], "c[1].d": [1]}
    assert told[0]["misc"]["vals"] == {"n": [0], "c": [0], "c[1].d": []}


def test_hyperopt_is_quiet(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    run(make_search({"algorithm": "hyperopt_tpe", "startup": 2}), parse_space(EVERYTHING), lambda p: p["f"], 6)
    assert not [r for r in caplog.records if r.name.startswith("hyperopt")]
    assert capsys.readouterr() == ("", "")


def test_grid_goes_in_order_and_refuses_infinite_spaces() -> None:
    space = parse_space(TWELVE)
    search = make_search({"algorithm": "grid"})
    assert [o.params for o in run(search, space, lambda p: 0.0, 12)] == list(space.grid())
    later = Observation(number=0, params=space.point(1), state="queued")
    assert search.propose(space, [later], 1) == space.point(0)
    message = "parameter 'x' has infinitely many values; give it a step"
    with pytest.raises(SpaceError, match=message):
        search.check(parse_space(PLANE))
    with pytest.raises(SpaceError, match=message):
        search.propose(parse_space(PLANE), [], 0)


def test_a_history_outside_the_space_is_refused() -> None:
    stray = Observation(number=0, params={"x": 1.0}, state="finished", loss=1.0)
    for algorithm in ("tpe", "random"):
        with pytest.raises(SpaceError, match="parameter 'y' is missing"):
            make_search({"algorithm": algorithm}).propose(parse_space(PLANE), [stray], 1)


def test_observations_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown state 'done'"):
        Observation(number=0, params={}, state="done")
    with pytest.raises(ValueError, match="loss nan"):
        Observation(number=0, params={}, state="finished", loss=math.nan)
    with pytest.raises(ValueError, match=r"loss 1.0 of a trial that is running"):
        Observation(number=0, params={}, state="running", loss=1.0)


def test_settings_are_filled_in() -> None:
    full = {"algorithm": "tpe", "seed": 0, "startup": 10, "gamma": 0.1, "candidates": 24, "prior_weight": 1.0}
    more = {"split": "linear", "liar": "mean", "multivariate": True, "independent": 0.0,
            "focus": 2.0, "avoid_failures": True}  # fmt: skip
    assert search_settings({}) == full | more
    assert search_settings({"split": "sqrt"}) == full | more | {"split": "sqrt", "gamma": 0.25}
    assert search_settings({"algorithm": "hyperopt_tpe", "gamma": 1}) == full | {
        "startup": 20,
        "algorithm": "hyperopt_tpe",
        "gamma": 1.0,
    }
    assert search_settings({"algorithm": "random"}) == {"algorithm": "random", "seed": 0, "avoid_failures": False}
    assert search_settings(search_settings({})) == search_settings({})
    assert stored_settings(search_settings({})) == search_settings({})


def test_a_stored_campaign_keeps_its_algorithm() -> None:
    """Settings that its release did not have are off, whatever the defaults are now."""
    old = {"algorithm": "tpe", "seed": 0, "startup": 20, "gamma": 0.25, "candidates": 24, "prior_weight": 1.0}
    hyperopt = {"multivariate": False, "split": "sqrt", "independent": 0.0, "focus": 0.0}
    assert search_settings(stored_settings(old)) == search_settings({**old, **hyperopt})
    joint = {**old, "split": "linear", "multivariate": True, "liar": "mean"}
    assert search_settings(stored_settings(joint))["independent"] == 0.0
    assert search_settings(stored_settings({**joint, "independent": 0.3}))["focus"] == 0.0
    assert stored_settings({"algorithm": "random", "seed": 1}) == {"algorithm": "random", "seed": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "tpee"}, "unknown search algorithm 'tpee'; did you mean 'tpe'?"),
        ({"algorithm": 3}, "search algorithm 3 is not a name"),
        ({"algoritm": "tpe"}, "unknown setting 'algoritm' of search algorithm tpe; did you mean 'algorithm'?"),
        ({"starup": 3}, "unknown setting 'starup' of search algorithm tpe; did you mean 'startup'?"),
        ({"algorithm": "random", "startup": 3}, "unknown setting 'startup' of search algorithm random"),
        ({"seed": -1}, "search setting seed: -1 is not a whole number from 0 on"),
        ({"seed": True}, "search setting seed: True is not a whole number"),
        ({"seed": 1.0}, "search setting seed: 1.0 is not a whole number"),
        ({"startup": 0}, "search setting startup: 0 is not a whole number from 1 on"),
        ({"candidates": 0}, "search setting candidates: 0 is not a whole number from 1 on"),
        ({"gamma": 0}, "search setting gamma: 0 is not a positive number"),
        ({"gamma": math.nan}, "search setting gamma: nan is not a positive number"),
        ({"prior_weight": "1"}, "search setting prior_weight: '1' is not a positive number"),
        ({"independent": 1.5}, "search setting independent: 1.5 is not a share from 0 to 1"),
        ({"focus": -1}, "search setting focus: -1 is not a number from 0 to 10"),
        ({"focus": "2"}, "search setting focus: '2' is not a number from 0 to 10"),
        ({"independent": True}, "search setting independent: True is not a share from 0 to 1"),
        ({"liar": "median"}, "search setting liar: 'median' is none of mean, worst, best"),
        ({"liar": 1}, "search setting liar: 1 is none of mean, worst, best"),
        ([], "search settings are a mapping"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    for call in (search_settings, make_search):
        with pytest.raises(CampaignError, match=message):
            call(settings)


def own_search(settings: dict[str, Any]) -> Any:
    return make_search({"algorithm": "random", "seed": settings["seed"] + settings["shift"]})


def test_further_algorithms_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(name="own", value=f"{__name__}:own_search", group="autotune.search")
    monkeypatch.setattr("autotune.search.settings.entry_points", lambda group: [point])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert search_settings({"algorithm": "own", "shift": 2}) == {"algorithm": "own", "shift": 2, "seed": 0}
    assert make_search({"algorithm": "own", "shift": 2}) == make_search({"algorithm": "random", "seed": 2})
    with pytest.raises(CampaignError, match=r"unknown search algorithm 'ownn'; did you mean 'own'\?"):
        make_search({"algorithm": "ownn"})


def test_hyperopt_is_imported_late() -> None:
    code = (
        "import sys, autotune.search as s; assert not {'hyperopt', 'scipy', 'ray', 'pymongo'} & set(sys.modules);"
        "s.make_search({}); assert 'hyperopt' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    warm_up()
    assert "hyperopt" in sys.modules
