"""The tally of the bad group: equal to the plain sums, whatever way it came about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.search import History, Observation, make_search
from autotune.search.base import Memory
from autotune.search.densities import BadDensity
from autotune.search.groups import Groups
from autotune.search.sites import Sites
from autotune.search.table import Table
from autotune.space import Space, parse_space

SPACE = parse_space(
    {
        "f": {"float": [0, 1]},
        "lf": {"log_float": [1e-5, 1]},
        "wide": {"int": [0, 100_000]},
        "log_wide": {"log_int": [1, 4000]},
        "few": {"int": [1, 4]},
        "log_few": {"log_int": [1, 100]},
        "step": {"float": [0, 1], "step": 0.01},
        "normal": {"normal": [0, 2]},
        "log_normal": {"log_normal": [0, 1], "step": 0.5},
        "c": {"choice": ["a", "b", {"d": {"int": [1, 9]}, "e": {"float": [0, 1]}}]},
        "w": {"choice": [1, 2, 3], "weights": [1, 2, 5]},
    }
)
SMALL = parse_space({"f": {"float": [0, 1]}, "i": {"int": [1, 6]}, "c": {"choice": ["a", {"g": {"float": [0, 1]}}]}})
STATES = ["finished", "finished", "finished", "failed", "running", "pruned", "cancelled"]


def observation(space: Space, number: int, rng: np.random.Generator, state: str | None = None) -> Observation:
    state = state or STATES[int(rng.integers(len(STATES)))]
    params = space.sample(rng)
    if rng.random() < 0.5:  # crowd some together, so that there are gaps and ties
        params["f"] = float(0.3 + 0.001 * rng.standard_normal())
    return Observation(
        number=number, params=params, state=state, loss=float(rng.random()) if state == "finished" else None
    )


def density(space: Space, history: Any, table: Table | None = None, groups: Groups | None = None) -> tuple[Any, ...]:
    table = table or Table(space, Memory())
    groups = groups or Groups(table)
    table.sync(history)
    losses = table.model_losses("mean")
    assert losses is not None
    groups.split(losses, 0.25)
    return table, groups, BadDensity(table, groups, 1.0, Sites(table.columns))


@pytest.mark.parametrize("count", [90, 150, 700, 2500])
def test_tallied_densities_are_the_direct_ones(count: int) -> None:
    rng = np.random.default_rng(count)
    table, groups, tallied = density(SPACE, [observation(SPACE, k, rng) for k in range(count)])
    direct = BadDensity(table, groups, 1.0, Sites(table.columns))
    direct._direct[:] = True
    columns = table.columns
    places = rng.uniform(-0.4999, 0.4999, (len(columns.numeric), 60))
    places[:, :20] = np.nan_to_num(table.places[rng.integers(0, len(table), 20)].T)
    places = np.clip(places, columns.low[:, None], np.nextafter(columns.high, -np.inf)[:, None])
    _, low, high = columns.round(places[columns.stepped])
    if count > 150:
        assert not tallied._direct[groups.tally.numeric[:5]].any(), "the tally is not in use"
    exact, found = direct.log(places, low, high), tallied.log(places, low, high)
    assert_close(found, exact)
    assert_close(*(np.ma.log(np.ma.masked_equal(d.site_masses(), 0.0)) for d in (tallied, direct)))


def assert_close(found: Any, exact: Any) -> None:
    off = found - exact
    off -= np.ma.median(off, axis=1, keepdims=True)  # a constant of the column does not matter
    assert np.abs(off).max() < 1e-3
    assert np.ma.median(np.abs(off)) < 1e-5


def test_tallied_options_are_the_direct_ones() -> None:
    rng = np.random.default_rng(5)
    table, groups, found = density(SPACE, [observation(SPACE, k, rng) for k in range(400)])
    rows = np.flatnonzero(groups.bad[: len(table)])
    weights_of = np.split(found.option_weights(), np.cumsum(table.columns.spots[len(table.columns.sites) :])[:-1])
    for k, choice in enumerate(table.columns.choices.values()):
        options = table.spots[rows, len(table.columns.sites) + k]
        options = options[options >= 0]
        n = len(options)
        weights = np.concatenate([np.linspace(1 / n, 1, n - 25), np.ones(25)])
        expected = np.bincount(options, weights, len(choice.options))
        assert weights_of[k] == pytest.approx(expected)


def assert_same(one: Groups, other: Groups, n: int) -> None:
    assert np.array_equal(one.good, other.good)
    assert np.array_equal(one.bad[:n], other.bad[:n])
    rows = np.arange(n)
    assert np.array_equal(one.blocks.numbers(rows), other.blocks.numbers(rows))
    assert np.array_equal(one.blocks._sums[: n // 8 + 1], other.blocks._sums[: n // 8 + 1])
    for name in ("count", "ones", "ranks", "first", "last"):
        assert np.array_equal(getattr(one.tally, name), getattr(other.tally, name)), name


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.search.blocks.SIZE", 8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 100_000), steps=st.integers(1, 40))
def test_kept_sums_equal_new_ones(seed: int, steps: int) -> None:
    """Trials come, end well or badly, are retried, in any order; the sums are whole numbers, equal to the last bit."""
    rng = np.random.default_rng(seed)
    history = History(observation(SMALL, k, rng) for k in range(int(rng.integers(1, 150))))
    history.put(observation(SMALL, len(history), rng, "finished"))
    kept: tuple[Any, ...] = (None, None)
    for _ in range(steps):
        if rng.random() < 0.5:
            history.put(observation(SMALL, len(history), rng))
        else:
            old = history[int(rng.integers(len(history)))]
            state = STATES[int(rng.integers(len(STATES)))]
            loss = float(rng.choice([0.0, rng.random(), np.inf])) if state == "finished" else None
            history.put(Observation(number=old.number, params=old.params, state=state, loss=loss))
        if all(o.loss in (None, np.inf) for o in history):
            continue
        kept = density(SMALL, history, *kept[:2])
        fresh = density(SMALL, list(history))
        assert_same(kept[1], fresh[1], len(history))


def test_many_new_trials_at_once_are_counted_like_single_ones() -> None:
    rng = np.random.default_rng(3)
    trials = [observation(SMALL, k, rng) for k in range(900)]
    one_by_one = density(SMALL, trials[:100])
    for n in range(101, 901):
        one_by_one = density(SMALL, trials[:n], *one_by_one[:2])
    assert_same(one_by_one[1], density(SMALL, trials)[1], 900)


@pytest.mark.parametrize("kind", [list, History])
def test_a_cold_start_proposes_the_same(kind: Any) -> None:
    rng = np.random.default_rng(11)
    warm = make_search({"algorithm": "tpe", "seed": 5, "multivariate": False})
    history = kind([observation(SPACE, k, rng) for k in range(130)])
    put = history.put if isinstance(history, History) else history.append
    for number in range(130, 260):
        params = warm.propose(SPACE, history, number)
        if number % 10 == 0:
            cold = make_search({"algorithm": "tpe", "seed": 5, "multivariate": False})
            assert cold.propose(parse_space(SPACE.to_json()), list(history)[::-1], number) == params
        put(Observation(number=number, params=params, state="queued"))
        if number > 134:  # an earlier one ends
            earlier = history[number - 4]
            ended = Observation(
                number=earlier.number, params=earlier.params, state="finished", loss=float(rng.random())
            )
            if isinstance(history, History):
                history.put(ended)
            else:
                history[number - 4] = ended
