"""What our TPE does beyond hyperopt's: histories, batches, liars, joint densities; and without importing hyperopt."""

from __future__ import annotations

import math
import subprocess
import sys
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from autotune.errors import SpaceError
from autotune.search import History, Observation, make_search
from autotune.search.base import Memory
from autotune.search.columns import Array, Ints
from autotune.search.joint import JointProposer
from autotune.search.kernels import Kernels
from autotune.search.parzen import forgetting
from autotune.search.sites import Sites
from autotune.search.table import Table
from autotune.search.tpe import Tpe, _State
from autotune.space import Space, parse_space

MIXED = parse_space(
    {
        "f": {"float": [0, 1]},
        "rate": {"log_float": [1e-5, 1]},
        "units": {"log_int": [1, 1024]},
        "layers": {"int": [1, 5]},
        "noise": {"normal": [0, 1]},
        "c": {"choice": ["a", [1, 2], {"d": {"int": [1, 9]}, "e": {"float": [0, 1]}}]},
        "one": {"int": [3, 3]},
        "k": {"const": {"a": [1]}},
    }
)
PLANE = parse_space({"x": {"float": [-5, 5]}, "y": {"float": [-5, 5]}})
HYPEROPT: dict[str, Any] = {"multivariate": False, "split": "sqrt", "startup": 20, "independent": 0.0, "gamma": 0.25}
JOINT: dict[str, Any] = {"multivariate": True, "split": "linear", "startup": 10, "gamma": 0.1}
KINDS: list[dict[str, Any]] = [
    HYPEROPT,
    {**JOINT, "independent": 0.0},
    {**JOINT, "focus": 2.0},
    {**JOINT, "independent": 0.3, "focus": 1.0},
    {**HYPEROPT, "liar": "worst"},
    {**JOINT, "multivariate": False},
]


def told(space: Space, count: int, seed: int = 0, pending: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        params = space.sample(rng)
        waiting = number >= count - pending
        made.append(
            Observation(
                number=number,
                params=params,
                state="running" if waiting else "finished",
                loss=None if waiting else float(rng.random()),
            )
        )
    return made


@pytest.mark.parametrize("settings", KINDS)
def test_a_batch_is_what_single_proposals_would_be(settings: dict[str, Any]) -> None:
    search = make_search({"algorithm": "tpe", **settings})
    assert isinstance(search, Tpe)
    history = told(MIXED, 60)
    batch = search.propose_many(MIXED, history, range(60, 68))
    assert len({MIXED.hash(params) for params in batch}) == 8
    single = make_search({"algorithm": "tpe", **settings})
    for number, params in enumerate(batch, start=60):
        assert single.propose(MIXED, history, number) == params
        history.append(Observation(number=number, params=params, state="queued"))
    assert len(history) == 68


def test_a_batch_ends_with_the_space() -> None:
    space = parse_space({"a": {"int": [1, 5]}})
    search = Tpe(startup=2)
    assert len(search.propose_many(space, told(space, 1), range(1, 20))) == 4


@pytest.mark.parametrize("settings", KINDS)
def test_proposals_are_as_the_space_reads_them(settings: dict[str, Any]) -> None:
    """Configurations are made from decisions by a short way; it leads to the same place as the long one."""
    memory = Memory()
    search = Tpe(**{**settings, "startup": 5})
    for space in (MIXED, parse_space({k: p.to_json() for k, p in MIXED.parameters.items() if k != "c"})):
        history = History(told(space, 40))
        for number in range(40, 70):
            params = search.propose(space, history, number)
            assert params is not None
            assert space.normalise(params) == params
            assert search._memory.look_up(space, params) == memory.look_up(space, params)
            history.put(Observation(number=number, params=params, state="finished", loss=params["f"]))


@pytest.mark.parametrize("settings", KINDS)
def test_a_cold_start_proposes_the_same(settings: dict[str, Any]) -> None:
    warm = make_search({"algorithm": "tpe", "seed": 2, **settings})
    history = History(told(MIXED, 120, pending=3))
    for number in range(120, 150):
        params = warm.propose(MIXED, history, number)
        cold = make_search({"algorithm": "tpe", "seed": 2, **settings})
        assert cold.propose(MIXED, list(history)[::-1], number) == params
        history.put(Observation(number=number, params=params or {}, state="finished", loss=number % 7 / 7))


def test_a_history_keeps_the_latest_of_each_number() -> None:
    first, *rest = told(PLANE, 3)
    history = History([first, *rest])
    better = Observation(number=0, params=first.params, state="finished", loss=-1.0)
    history.put(rest[0])
    assert history.changed == 3, "nothing new"
    history.put(better)
    assert list(history) == [better, *rest]
    assert (len(history), history[0], history[1:], history.changes(3)) == (3, better, rest, [better])


def test_a_search_follows_histories_that_shrink_change_and_begin_anew() -> None:
    warm = make_search({"algorithm": "tpe"})
    one, other = told(PLANE, 60, seed=1), told(PLANE, 60, seed=2)
    retold = [*one[:10], Observation(number=10, params=other[10].params, state="failed"), *one[11:]]
    for history in (one, one[:40], other, History(other), History(one), one[::-1], retold, one[5:]):
        cold = make_search({"algorithm": "tpe"}).propose(PLANE, list(history), 60)
        assert warm.propose(PLANE, history, 60) == cold


def test_a_history_outside_the_space_is_refused_and_forgotten() -> None:
    warm = make_search({"algorithm": "tpe"})
    good = told(PLANE, 40)
    first = warm.propose(PLANE, good, 40)
    with pytest.raises(SpaceError, match="parameter 'y' is missing"):
        warm.propose(PLANE, [*good, Observation(number=40, params={"x": 1.0}, state="queued")], 41)
    assert warm.propose(PLANE, good, 40) == first


def test_the_liars() -> None:
    table = Table(PLANE, Memory())
    history = [
        *(Observation(number=k, params={"x": float(k), "y": 0.0}, state="finished", loss=float(v))
          for k, v in enumerate([3, 1, 8])),
        Observation(number=3, params={"x": 0.5, "y": 0.0}, state="running"),
        Observation(number=4, params={"x": 1.5, "y": 0.0}, state="failed"),
        Observation(number=5, params={"x": 2.5, "y": 0.0}, state="pruned"),
    ]  # fmt: skip
    table.sync(history)
    for liar, lie in (("mean", 4.0), ("worst", 8.0), ("best", 1.0)):
        losses = table.model_losses(liar)
        assert losses is not None
        assert losses[:5].tolist() == [3, 1, 8, lie, np.inf]
        assert np.isnan(losses[5])


def test_sixteen_pending_points_differ() -> None:
    for settings in KINDS:
        search = Tpe(**settings)
        batch = search.propose_many(PLANE, told(PLANE, 30), range(30, 46))
        points = np.array([list(p.values()) for p in batch])
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(16, 1)]
        assert distances.min() > 0
        assert np.median(distances) > 0.1


def test_joint_densities_see_how_parameters_go_together() -> None:
    """Good where x = y: the marginals say nothing of it."""
    rng = np.random.default_rng(4)
    history = History()
    for number in range(200):
        params = PLANE.sample(rng)
        loss = abs(params["x"] - params["y"])
        history.put(Observation(number=number, params=params, state="finished", loss=loss))

    def correlation(multivariate: bool) -> float:
        search = Tpe(multivariate=multivariate, split="linear")
        made = [search.propose(PLANE, history, number) or {} for number in range(200, 300)]
        return float(np.corrcoef([[p["x"], p["y"]] for p in made], rowvar=False)[0, 1])

    assert correlation(True) > 0.6
    assert abs(correlation(False)) < 0.4


def test_the_share_of_independent_proposals() -> None:
    history = told(MIXED, 60)

    def proposals(**settings: Any) -> list[dict[str, Any] | None]:
        search = Tpe(**settings)
        return [search.propose(MIXED, history, number) for number in range(60, 160)]

    alone, joint = proposals(), proposals(multivariate=True)
    assert proposals(multivariate=True, independent=1.0) == alone
    assert proposals(independent=0.5) == alone
    mixed = proposals(multivariate=True, independent=0.3)
    assert all(m in (a, j) for m, a, j in zip(mixed, alone, joint, strict=True))
    assert 15 <= sum(m == a for m, a in zip(mixed, alone, strict=True)) <= 45


def test_a_trial_that_changed_twice_since_the_last_look_is_one_new_row() -> None:
    """A coordinator proposes, and hears that the trial runs, before the search looks again: nothing is read anew."""
    history = History(told(PLANE, 30))
    table = Table(PLANE, Memory())
    table.sync(history)
    epoch, added = table.epoch, []
    add = table._add
    table._add = lambda observation: (added.append(observation.number), add(observation))[1]  # type: ignore[method-assign]
    params = told(PLANE, 31)[-1].params
    for number in (30, 31):
        for state, loss in (("queued", None), ("running", None), ("finished", 0.5)):
            history.put(Observation(number=number, params=params, state=state, loss=loss))
    table.sync(history)
    assert (added, table.epoch, len(table)) == ([30, 31], epoch, 32)
    assert table.losses[30:32].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("liar", ["mean", "worst", "best"])
def test_waiting_trials_neither_enlarge_the_good_group_nor_are_in_it(liar: str) -> None:
    """Older, newer and in between, and whatever they are said to be worth."""
    rng = np.random.default_rng(7)
    for waiting in (0, 16, 60):
        state, of_all = _State(PLANE, Memory()), told(PLANE, 40 + waiting)
        which = set(rng.permutation(40 + waiting)[:waiting].tolist())
        state.table.sync([
            Observation(number=o.number, params=o.params, state="running") if o.number in which else o for o in of_all
        ])  # fmt: skip
        losses = state.table.model_losses(liar)
        assert losses is not None
        state.groups.split(losses, 0.1, "linear")
        best = sorted((o.loss or 0.0, o.number) for o in of_all if o.number not in which)[:4]
        assert state.groups.good.tolist() == sorted(number for _, number in best)
        assert int(state.groups.bad[: 40 + waiting].sum()) == 36 + waiting


def test_a_joint_density_is_one() -> None:
    """Over the values of a small space the masses sum to 1."""
    space = parse_space(
        {"a": {"int": [1, 4]}, "b": {"log_int": [1, 9]}, "c": {"choice": ["u", "v"], "weights": [1, 3]}}
    )
    state = _State(space, Memory())
    state.table.sync(told(space, 30))
    losses = state.table.model_losses("mean")
    assert losses is not None
    state.groups.split(losses, 0.25)
    proposer = JointProposer(state.table, 1.0, Sites(state.table.columns))
    proposer.update(state.groups)
    rows = [state.table.columns.row(space.encode(space.point(i))) for i in range(72)]
    places, options = np.array([r[0] for r in rows]), np.array([r[1][2:] for r in rows])
    for density in proposer._parts[0][2:]:
        assert np.exp(density.log(places, options)).sum() == pytest.approx(1.0)  # type: ignore[attr-defined]
        drawn, chosen = density.draw(4000, np.random.default_rng(0))  # type: ignore[attr-defined]
        assert np.mean(chosen[:, 0] == 1) == pytest.approx(
            np.exp(density.log(places, options))[options[:, 0] == 1].sum(), abs=0.04  # type: ignore[attr-defined]
        )  # fmt: skip
        assert np.all((drawn >= -0.5) & (drawn < 0.5))


KERNEL_SPACE: dict[str, Any] = {
    "a": {"float": [0, 1]}, "b": {"log_float": [1e-4, 1]}, "i": {"int": [1, 4]}, "w": {"log_int": [16, 1024]},
    "n": {"normal": [0, 1]}, "c": {"choice": ["u", "v", "w"], "weights": [1, 3, 2]}, "d": {"choice": [1, 2]},
}  # fmt: skip


def kernel_state(count: int) -> _State:
    """Return the state of `KERNEL_SPACE` with so many trials told."""
    space = parse_space(KERNEL_SPACE)
    state = _State(space, Memory())
    state.table.sync(told(space, count))
    return state


def kernels_of(state: _State) -> Kernels:
    """Return kernels over all parameters of `KERNEL_SPACE`, without trials."""
    return Kernels(state.table, [0, 1, 2, 3, 4], [0, 1], 1.0, state.sites)


def assert_as_new(kept: Kernels, state: _State, rows: Ints) -> None:
    """Compare what was kept with a new start, to the last bit, and with the plain formula."""
    kept.update(rows)
    new = kernels_of(state)
    new.update(rows)
    x, options = kept.draw(24, np.random.default_rng(1))
    for p, q in zip((x, options), new.draw(24, np.random.default_rng(1)), strict=True):
        assert np.array_equal(p, q)
    assert np.array_equal(kept.log(x, options), new.log(x, options))
    assert np.array_equal(kept.log(x, options), kept.log(x, options, new.features(x, options)))
    assert kept.log(x, options) == pytest.approx(plain_log(state, rows, x, options), abs=1e-6)


@pytest.mark.parametrize("begin", [0, 62, 100])
@pytest.mark.parametrize("seed", range(6))
def test_kernels_that_follow_a_group_equal_new_ones(seed: int, begin: int) -> None:
    """Trials come, go and come back in the middle; what is kept is, to the last bit, what a new start computes.

    Few trials are put in order anew each time, and of more than 98 the smallest width no longer changes.
    """
    rng = np.random.default_rng(seed)
    state = kernel_state(160)
    kept = kernels_of(state)
    group = set(rng.permutation(160)[:begin].tolist())
    for _ in range(40):
        asked = rng.integers(0, 160, rng.integers(1, 5)).tolist()
        group = group ^ set(asked) if rng.random() < 0.5 else group | {max(group, default=-1) + 1}
        assert_as_new(kept, state, np.array(sorted(r for r in group if r < 160), dtype=np.int64))


@pytest.mark.parametrize("most", [30, 110])
@pytest.mark.parametrize("seed", range(6))
def test_kernels_of_the_latest_trials_equal_new_ones(seed: int, most: int) -> None:
    """The oldest leave as younger ones come, one or many; now and then one in the middle goes or is back, or all go."""
    rng = np.random.default_rng(seed)
    state = kernel_state(400)
    kept = kernels_of(state)
    end, out = 3, set[int]()
    while end < 400:
        rows = np.array([r for r in range(end) if r not in out], dtype=np.int64)[-most:]
        assert_as_new(kept, state, rows)
        chance = rng.random()
        end += int(rng.integers(2, 9)) if chance < 0.1 else 40 if chance < 0.13 else int(chance < 0.9)
        if chance > 0.95 and out:
            out.discard(max(out))
        elif chance > 0.9:
            out.add(int(rng.choice(rows)))


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.5])
def test_better_ones_of_the_good_trials_weigh_more(focus: float) -> None:
    """Of n in order of loss the i-th weighs (n - i) ** focus, 1 in the mean; also of those under one condition."""
    choice = {"choice": ["none", {"y": {"float": [0, 1]}}]}
    space = parse_space({"x": {"float": [0, 1]}, "c": choice})
    state, history = _State(space, Memory()), told(space, 120)
    state.table.sync(history)
    losses = state.table.model_losses("mean")
    assert losses is not None
    state.groups.split(losses, 0.1, "linear")
    best = sorted((o for o in history), key=lambda o: (o.loss, o.number))[:12]
    proposer = JointProposer(state.table, 1.0, state.sites, focus)
    proposer.update(state.groups)
    for numeric, _, good, _ in proposer._parts:
        here = [o.number for o in best if numeric == [0] or o.params["c"] != "none"]
        weights = {number: float(len(here) - i) ** focus for i, number in enumerate(here)}
        mean = sum(weights.values()) / len(weights)
        expected = np.array([weights[number] / mean for number in sorted(here)] + [1.0])
        assert good._weights == pytest.approx(expected / expected.sum())


def test_what_trials_weigh_is_followed_when_it_alone_changes() -> None:
    """A waiting trial may be good (``split: sqrt``), and what it is worth changes with the others."""
    state = kernel_state(12)
    kernels = kernels_of(state)
    rows = np.arange(3, 7)
    for shares in ([2.0, 1.0, 0.5, 0.5], [0.5, 0.5, 1.0, 2.0]):
        kernels.update(rows, np.array(shares))
        assert kernels._weights == pytest.approx(np.array([*shares, 1.0]) / 5.0)
    new = kernels_of(state)
    new.update(rows, np.array(shares))
    x, options = kernels.draw(24, np.random.default_rng(0))
    assert np.array_equal(x, new.draw(24, np.random.default_rng(0))[0])
    assert np.array_equal(kernels.log(x, options), new.log(x, options))


@pytest.mark.parametrize("settings", [{"gamma": 1.5, "split": "linear"}, {"gamma": 4.0, "split": "sqrt"}])
@pytest.mark.parametrize("failed", [0, 11])
def test_what_failed_is_never_good_however_many_should_be(settings: dict[str, Any], failed: int) -> None:
    state = _State(PLANE, Memory())
    made = [
        Observation(number=o.number, params=o.params, state="failed") if o.number < failed else o
        for o in told(PLANE, 12)
    ]
    state.table.sync(made)
    losses = state.table.model_losses("mean")
    assert losses is not None
    state.groups.split(losses, settings["gamma"], settings["split"])
    assert state.groups.good.tolist() == list(range(failed, 12))
    assert Tpe(startup=1, multivariate=True, focus=2.0, **settings).propose(PLANE, made, 12) is not None


def plain_log(state: _State, rows: Ints, x: Array, options: Ints) -> Array:
    """Return the log density, without the constants of the normal law, a kernel and a parameter at a time."""
    columns, table, n = state.table.columns, state.table, len(rows)
    weights = np.append(forgetting(np.array([float(n)]), n)[0], 1.0)
    total = np.zeros(len(x))
    for k in range(n + 1):
        part = np.ones(len(x))
        for d in range(len(columns.numeric)):
            places = np.sort(table.places[rows, d])
            mean, sigma = 0.0, 1.0
            if k < n:
                mean = table.places[rows[k], d]
                equal = np.flatnonzero(table.places[rows, d] == mean)
                at = int(np.searchsorted(places, mean)) + int(np.searchsorted(equal, k))
                gaps = [abs(mean - places[j]) for j in (at - 1, at + 1) if 0 <= j < n]
                sigma = min(max([*gaps, 1.0 / min(100, n + 2)]), 1.0) if n > 1 else min(abs(mean) + 0.5, 1.0)
            law = NormalDist(mean, sigma)
            ends = [0.0 if math.isinf(end) and end < 0 else 1.0 if math.isinf(end) else law.cdf(end)
                    for end in (columns.low[d], columns.high[d])]  # fmt: skip
            if d in columns.smooth:
                part *= [law.pdf(v) * math.sqrt(2 * math.pi) for v in x[:, d]]
            else:
                low, high = columns.round_one(x[:, d], d)
                part *= [law.cdf(b) - law.cdf(a) for a, b in zip(low, high, strict=True)]
            part /= ends[1] - ends[0]
        for c, prior in enumerate((np.array([1, 3, 2]) / 6, np.array([0.5, 0.5]))):
            share = prior
            if k < n:
                share = prior * len(prior) / (n + 1)
                share[table.spots[rows[k], len(columns.sites) + c]] += 1
            part *= (share / share.sum())[options[:, c]]
        total += weights[k] * part
    return np.asarray(np.log(total / weights.sum()))


def test_proposing_needs_neither_hyperopt_nor_scipy() -> None:
    code = (
        "import sys; from autotune.search import make_search, Observation; from autotune.space import parse_space;"
        "s = parse_space({'x': {'float': [0, 1]}, 'i': {'int': [1, 9]}});"
        "h = [Observation(number=k, params={'x': k / 150, 'i': k % 9 + 1}, state='finished', loss=k)"
        " for k in range(150)];"
        "[make_search(a).propose(s, h, 150) for a in ({'independent': 0}, {'independent': 1})];"
        "assert not {'hyperopt', 'scipy'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
