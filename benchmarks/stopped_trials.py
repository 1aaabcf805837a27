"""Does it help TPE under Hyperband to know which trials were stopped? One round of all brackets on curves that we know.

    python benchmarks/stopped_trials.py [--seeds 100] [--first-seed 1000]

49 trials, one after another, eta = 3. ``alike`` and ``crossing`` are simulated over the space of scVI, R = 81, minimum
3: in the first the order at 3 epochs is nearly that at 81, in the second low learning rates win, but learn slowly.
``real`` are 270 configurations of scVI trained on cortex cells (`search_tasks.scvi_table`), R = 27, minimum 1; rungs
compare ``elbo_validation_batch``, and a trial's loss is its lowest ``elbo_validation``.

"left out" is our rule, and BOHB's; "bad ones" another one, "directly" takes as bad those only that were stopped one
rung below the modelled one (docs/decisions/016). What counts is the true final loss of the best trial that trained to
the end, less the least there is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import click
import common
import numpy as np
from search_tasks.tables import SCVI_GRID, key_of, read, space_of

from autotune.planning import rung_observations
from autotune.search import History, Observation, make_search
from autotune.space import parse_space
from autotune.trial import Trial, TrialState
from workers.workloads.scvi.space import space

BRACKETS = ((0, 27), (1, 12), (2, 6), (3, 4))
LEAST = 8
ALGORITHMS: dict[str, dict[str, Any]] = {
    "tpe": {"algorithm": "tpe"},
    "tpe, equal weights": {"algorithm": "tpe", "focus": 0},
    "tpe, hyperopt's algorithm": {"algorithm": "tpe", "multivariate": False, "split": "sqrt", "startup": 10},
    "random": {"algorithm": "random"},
}
RATES = {
    "alike": {0.01: 0, 0.005: 8, 0.001: 40, 0.0005: 65, 0.0001: 170},
    "crossing": {0.01: 60, 0.005: 30, 0.001: 0, 0.0005: 5, 0.0001: 40},
}
SLOW = {0.01: 1.0, 0.005: 1.2, 0.001: 2.0, 0.0005: 2.6, 0.0001: 5.0}
KINDS = (*RATES, "real")


class Curves(Protocol):
    """Trainings of which we know how they go on."""

    rungs: tuple[int, ...]
    definition: Mapping[str, Any]

    def after(self, params: Mapping[str, Any], epochs: int) -> float:
        """Return what a rung compares."""
        ...

    def final(self, params: Mapping[str, Any]) -> float:
        """Return the true loss after all epochs, less the least there is."""
        ...


class Simulated:
    """Curves over the space of scVI, with noise."""

    rungs = (3, 9, 27, 81)

    def __init__(self, kind: str, seed: int) -> None:
        self.definition = space()
        self._rates, self._noise = RATES[kind], np.random.default_rng(seed)

    def after(self, params: Mapping[str, Any], epochs: int) -> float:
        """See `Curves`."""
        away = 400 * SLOW[params["lr"]] / epochs
        return self.final(params) + away + self._noise.normal(0, 20 / math.sqrt(epochs)) + self._noise.normal(0, 1)

    def final(self, params: Mapping[str, Any]) -> float:
        """See `Curves`."""
        return (
            self._rates[params["lr"]]
            + 60 * abs(params["dropout_rate"] - 0.3) ** 1.5
            + 2 * abs(params["n_layers"] - 3.5) - 1
            + {64: 2, 128: 0, 256: 3}[params["n_hidden"]]
            + 0.5 * abs(params["n_latent"] - 8)
            + {"zinb": 0, "nb": 6}[params["reconstruction_loss"]]
        )  # fmt: skip


class Real:
    """Curves of the table."""

    rungs = (1, 3, 9, 27)

    def __init__(self) -> None:
        self.definition = space_of(SCVI_GRID)
        table = read("scvi-cortex")
        self._compared, curves = table["curves"][table["rung_metric"]], table["curves"][table["metric"]]
        self._finals = {key: _least(curve[: self.rungs[-1]]) for key, curve in curves.items()}
        self._best = min(self._finals.values())

    def after(self, params: Mapping[str, Any], epochs: int) -> float:
        """See `Curves`."""
        return _least(self._compared[key_of(SCVI_GRID, params)][:epochs])

    def final(self, params: Mapping[str, Any]) -> float:
        """See `Curves`."""
        return self._finals[key_of(SCVI_GRID, params)] - self._best


def _least(curve: list[float | None]) -> float:
    return min((value for value in curve if value is not None), default=1e9)


def as_they_are(observations: list[Observation], trials: list[Trial]) -> list[Observation]:
    """Return the observations as the coordinator has them: stopped trials are left out."""
    return observations


def bad_ones(observations: list[Observation], trials: list[Trial]) -> list[Observation]:
    """Return observations in which what was stopped below the rung is bad, without a value."""
    return [
        Observation(number=o.number, params=o.params, state="failed")
        if t.state is TrialState.PRUNED and o.loss is None
        else o
        for o, t in zip(observations, trials, strict=True)
    ]


def directly(observations: list[Observation], trials: list[Trial]) -> list[Observation]:
    """Return observations in which only what was stopped one rung below is bad."""
    counts = [sum(rung < len(t.rung_scores) for t in trials) for rung in range(len(BRACKETS))]
    modelled = max((r for r, n in enumerate(counts) if n >= LEAST), default=counts.index(max(counts)))
    return [
        bad if len(t.rung_scores) == modelled else o
        for o, bad, t in zip(observations, bad_ones(observations, trials), trials, strict=True)
    ]


RULES = {"left out": as_they_are, "directly": directly, "bad ones": bad_ones}


def run(curves: Curves, algorithm: Mapping[str, Any], rule: Callable[..., list[Observation]], seed: int) -> float:
    """Return what one round of Hyperband found."""
    search, plain = make_search({**algorithm, "seed": seed}), parse_space(dict(curves.definition))
    trials: list[Trial] = []

    def put(number: int, state: TrialState, scores: tuple[float, ...], params: Mapping[str, Any]) -> None:
        trial = Trial(
            campaign="c", number=number, params=params, config_hash=str(number), state=state, rung_scores=scores,
            rung=len(scores) - 1,
        )  # fmt: skip
        trials[number:] = [trial, *trials[number + 1 :]]

    found = math.inf
    for first, size in BRACKETS:
        begin = len(trials)
        for number in range(begin, begin + size):
            history = History(rule(rung_observations(trials, "min", LEAST), trials))
            params = search.propose(plain, history, number)
            assert params is not None
            put(number, TrialState.PAUSED, tuple(curves.after(params, e) for e in curves.rungs[: first + 1]), params)
        alive = list(range(begin, begin + size))
        for rung in range(first, len(curves.rungs) - 1):
            alive.sort(key=lambda number: trials[number].rung_scores[rung] or 0.0)
            for number in alive[len(alive) // 3 :]:
                put(number, TrialState.PRUNED, trials[number].rung_scores, trials[number].params)  # type: ignore[arg-type]
            alive = alive[: len(alive) // 3]
            for number in alive:
                t = trials[number]
                scores = (*t.rung_scores, curves.after(t.params, curves.rungs[rung + 1]))
                put(number, TrialState.PAUSED, scores, t.params)  # type: ignore[arg-type]
        found = min([found, *(curves.final(trials[number].params) for number in alive)])
    return found


@click.command()
@click.option("--seeds", default=100, show_default=True)
@click.option("--first-seed", default=1000, show_default=True)
@click.option("--curves", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS)
@click.option("--save/--no-save", default=True, show_default=True)
def main(seeds: int, first_seed: int, kinds: tuple[str, ...], save: bool) -> None:
    """Measure, print a table, write results/stopped_trials.json."""
    figures: list[dict[str, Any]] = []
    for kind in kinds:
        for name, algorithm in ALGORITHMS.items():
            for label, rule in RULES.items():
                if name == "random" and rule is not as_they_are:
                    continue
                values = [
                    run(Real() if kind == "real" else Simulated(kind, seed), algorithm, rule, seed)
                    for seed in range(first_seed, first_seed + seeds)
                ]
                figures.append({
                    "curves": kind, "search": name, "stopped trials are": label,
                    "mean": round(statistics.mean(values), 2),
                    "se": round(statistics.stdev(values) / math.sqrt(seeds), 2),
                    "median": round(statistics.median(values), 2),
                })  # fmt: skip
    print(common.table(list(figures[0]), [list(row.values()) for row in figures]))
    command = f"python benchmarks/stopped_trials.py --seeds {seeds} --first-seed {first_seed}"
    if save:
        content = {"seeds": [first_seed, first_seed + seeds - 1], "rows": figures}
        print(common.write("stopped_trials", command, content, common.versions("autotune", "numpy")))


if __name__ == "__main__":
    main()
