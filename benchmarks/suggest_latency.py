"""What a proposal costs, by the number of finished trials and of parameters: ours, hyperopt, Optuna, random search.

Each space has as many parameters as said: 2 in 5 uniform, 1 in 5 each logarithmic, whole-number and choice. The
finished trials are random configurations with a noisy quadratic loss; then trials are proposed one at a time, and the
loss of each is told before the next. A proposal is everything between the question and the configuration, what a
search does with the newest result included. Proposals are timed by wall clock and by the CPU time of their thread;
on a machine that does other work at the same time only the latter says something. "cold" is the first proposal of a
search that has read nothing yet.

A cell of a peer is left out where it would take longer than ``--limit`` seconds per proposal, guessed from the cell
with a tenth of the trials.

    OMP_NUM_THREADS=1 python benchmarks/suggest_latency.py [--rounds 200] [--peer-rounds 10] [--limit 3]
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import click
import common
import numpy as np

from autotune.search import History, Observation, Search, make_search
from autotune.space import Space, parse_space

TRIALS = (100, 1_000, 3_000, 10_000, 100_000)
PARAMETERS = (6, 20, 60)
OPTIONS = ["a", "b", "c", "d"]
KINDS: list[Mapping[str, Any]] = [
    {"float": [0, 1]},
    {"log_float": [1e-5, 1]},
    {"int": [1, 10]},
    {"choice": OPTIONS},
    {"float": [0, 1]},
]
Ask = Callable[[int], tuple[Mapping[str, Any], Callable[[float], None]]]
"""Takes the number of a proposal; returns the configuration and what takes its loss."""
Times = list[tuple[float, float]]


def space_of(parameters: int) -> dict[str, Any]:
    """Return the definition of a space."""
    return {f"p{i}": KINDS[i % len(KINDS)] for i in range(parameters)}


def loss_of(params: Mapping[str, Any], rng: np.random.Generator) -> float:
    """Return a quadratic with noise."""
    total = 0.0
    for i, value in enumerate(params.values()):
        kind = KINDS[i % len(KINDS)]
        if "choice" in kind:
            total += OPTIONS.index(value) / 3
        elif "log_float" in kind:
            total += (math.log10(value) / 5 + 0.6) ** 2
        else:
            total += (value / (10 if "int" in kind else 1) - 0.6) ** 2
    return total / len(params) + 0.05 * float(rng.standard_normal())


def told(space: Space, trials: int, rng: np.random.Generator) -> list[Observation]:
    """Return finished random trials."""
    drawn = (space.sample(rng) for _ in range(trials))
    return [
        Observation(number=k, params=params, state="finished", loss=loss_of(params, rng))
        for k, params in enumerate(drawn)
    ]


def ours(algorithm: str, space: Space, observations: list[Observation], **settings: Any) -> Ask:
    """Return our search with a history that grows."""
    search: Search = make_search({"algorithm": algorithm, **settings})
    history = History(observations)

    def ask(number: int) -> tuple[Mapping[str, Any], Callable[[float], None]]:
        params = search.propose(space, history, number)
        if params is None:
            raise SystemExit("the space is exhausted")

        def tell(loss: float) -> None:
            history.put(Observation(number=number, params=params, state="finished", loss=loss))

        return params, tell

    return ask


def hyperopt_tpe(space: Space, observations: list[Observation]) -> Ask:
    """Return ``hyperopt.tpe.suggest`` with its own trials object, as its loop has it."""
    from hyperopt import base, hp, tpe

    expression = {}
    for name, definition in space.to_json().items():
        if "choice" in definition:
            expression[name] = hp.choice(name, definition["choice"])
        elif "log_float" in definition:
            low, high = definition["log_float"]
            expression[name] = hp.loguniform(name, math.log(low), math.log(high))
        elif "int" in definition:
            expression[name] = hp.quniform(name, definition["int"][0] - 0.5, definition["int"][1] + 0.5, 1)
        else:
            expression[name] = hp.uniform(name, *definition["float"])
    domain = base.Domain(lambda _: 0.0, expression)
    trials = base.Trials()

    def doc(number: int, params: Mapping[str, Any], loss: float) -> dict[str, Any]:
        values = {k: [OPTIONS.index(v) if isinstance(v, str) else v] for k, v in params.items()}
        misc = {"tid": number, "cmd": None, "workdir": None, "idxs": {k: [number] for k in values}, "vals": values}
        return {
            "tid": number, "state": base.JOB_STATE_DONE, "spec": None, "result": {"status": "ok", "loss": loss},
            "misc": misc, "exp_key": None, "owner": None, "version": 0, "book_time": None, "refresh_time": None,
        }  # fmt: skip

    trials._dynamic_trials.extend(doc(o.number, o.params, o.loss or 0.0) for o in observations)
    trials.refresh()

    def ask(number: int) -> tuple[Mapping[str, Any], Callable[[float], None]]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            (made,) = tpe.suggest([number], domain, trials, number, verbose=False)
        params = {k: v[0] for k, v in made["misc"]["vals"].items()}
        params = {k: OPTIONS[int(v)] if "choice" in KINDS[int(k[1:]) % len(KINDS)] else v for k, v in params.items()}
        params = {k: params[k] for k in space.parameters}

        def tell(loss: float) -> None:
            trials._dynamic_trials.append(doc(number, params, loss))
            trials.refresh()

        return params, tell

    return ask


def optuna_tpe(multivariate: bool, space: Space, observations: list[Observation]) -> Ask:
    """Return Optuna's sampler on a study in memory."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    distributions: dict[str, BaseDistribution] = {}
    for name, definition in space.to_json().items():
        if "choice" in definition:
            distributions[name] = CategoricalDistribution(definition["choice"])
        elif "int" in definition:
            distributions[name] = IntDistribution(*definition["int"])
        else:
            ((kind, (low, high)),) = definition.items()
            distributions[name] = FloatDistribution(low, high, log=kind == "log_float")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=0, multivariate=multivariate)
    study = optuna.create_study(sampler=sampler)
    study.add_trials(
        optuna.trial.create_trial(params=dict(o.params), distributions=distributions, value=o.loss)
        for o in observations
    )

    def ask(number: int) -> tuple[Mapping[str, Any], Callable[[float], None]]:
        trial = study.ask(distributions)
        return trial.params, lambda loss: study.tell(trial, loss)

    return ask


SYSTEMS: dict[str, Callable[[Space, list[Observation]], Ask]] = {
    "tpe": lambda space, seen: ours("tpe", space, seen),
    "tpe, hyperopt's algorithm": lambda space, seen: ours("tpe", space, seen, multivariate=False, split="sqrt"),
    "random": lambda space, seen: ours("random", space, seen),
    "hyperopt": hyperopt_tpe,
    "Optuna, univariate": lambda space, seen: optuna_tpe(False, space, seen),
    "Optuna, multivariate": lambda space, seen: optuna_tpe(True, space, seen),
}
OURS = ("tpe", "tpe, hyperopt's algorithm", "random")


def timed(ask: Ask, first: int, rounds: int, rng: np.random.Generator) -> Times:
    """Return wall and CPU seconds of each of some proposals, the losses told in between."""
    taken: Times = []
    for number in range(first, first + rounds):
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        params, tell = ask(number)
        taken.append((time.perf_counter() - began_s, time.thread_time() - began_cpu_s))
        tell(loss_of(params, rng))
    return taken


def figures(taken: Times) -> dict[str, Any]:
    """Return the figures of a cell, in ms."""
    found: dict[str, Any] = {"proposals": len(taken)}
    for name, values in zip(("wall", "cpu"), zip(*taken, strict=True), strict=True):
        ms = 1e3 * np.array(values)
        found |= {f"{name}_{k}_ms": round(float(np.percentile(ms, q)), 4) for k, q in
                  (("min", 0), ("p50", 50), ("p95", 95), ("max", 100))}  # fmt: skip
    return found


def cell(system: str, space: Space, observations: list[Observation], rounds: int) -> dict[str, Any]:
    """Measure one system on one history."""
    rng = np.random.default_rng(1)
    ask = SYSTEMS[system](space, observations)
    ((cold_s, cold_cpu_s),) = timed(ask, len(observations), 1, rng)
    if system not in OURS:
        return figures(timed(ask, len(observations) + 1, rounds, rng))
    timed(ask, len(observations) + 1, 20, rng)
    cold = {"cold_wall_ms": round(1e3 * cold_s, 2), "cold_cpu_ms": round(1e3 * cold_cpu_s, 2)}
    return figures(timed(ask, len(observations) + 21, rounds, rng)) | cold


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Proposals of ours per cell.")
@click.option("--peer-rounds", default=10, show_default=True, help="Proposals of a peer per cell.")
@click.option("--limit", default=3.0, show_default=True, help="Seconds per proposal beyond which a peer is left out.")
@click.option("--most", default=TRIALS[-1], show_default=True, help="Most finished trials.")
@click.option("--parameters", "counts", multiple=True, type=int, default=PARAMETERS, show_default=True)
@click.option("--peers-most", default=TRIALS[-1], show_default=True, help="Most finished trials for peers.")
def main(rounds: int, peer_rounds: int, limit: float, most: int, counts: tuple[int, ...], peers_most: int) -> None:
    """Measure, print a table, write results/suggest_latency.json."""
    cells, rows = [], []
    for parameters in counts:
        space = parse_space(space_of(parameters))
        guess_s = dict.fromkeys(SYSTEMS, 0.0)
        for trials in (n for n in TRIALS if n <= most):
            observations = told(space, trials, np.random.default_rng(trials))
            for system in SYSTEMS:
                key = {"parameters": parameters, "trials": trials, "system": system}
                if system not in OURS and (guess_s[system] > limit or trials > peers_most):
                    why = f"would take about {guess_s[system]:.0f} s each" if guess_s[system] > limit else "not asked"
                    cells.append(key | {"left_out": why})
                    rows.append([parameters, trials, system, "", "", why])
                    continue
                found = cell(system, space, observations, rounds if system in OURS else peer_rounds)
                later = [n for n in TRIALS if n > trials]
                guess_s[system] = found["cpu_p50_ms"] / 1e3 * (later[0] / trials if later else 1)
                cells.append(key | found)
                rows.append([parameters, trials, system, found["cpu_p50_ms"], found["cpu_p95_ms"],
                             found["wall_p95_ms"]])  # fmt: skip
                print(parameters, trials, system, found, flush=True)
    columns = ["parameters", "finished trials", "system", "CPU ms, median", "CPU ms, p95", "wall ms, p95"]
    print(common.table(columns, rows))
    content = {"seeds": "histories: number of trials; losses: 1; searches: 0", "load_average": os.getloadavg(),
               "cells": cells}  # fmt: skip
    packages = common.versions("autotune", "hyperopt", "numpy", "optuna")
    print(common.write("suggest_latency", f"python benchmarks/suggest_latency.py --rounds {rounds}", content, packages))


if __name__ == "__main__":
    main()
