"""How often configurations that must fail are proposed, on objectives of which 40% of the space fails.

Each search runs 100 trials, one at a time. "late" is the share of trials 51 to 100 that fail, with a 95% interval over
seeds (normal); "regret" is the best feasible value found minus the best there is. Optuna takes part when it is
installed (requirements.txt); its failed trials are told to it as failed.

    python benchmarks/infeasible.py [--seeds 20] [--processes 2]
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import click
import common
from infeasible_tasks import TASKS, Task
from optuna_space import suggest

TRIALS = 100
LATE = 50
FIRST_SEED = 2000  # apart from the seeds that the settings of the model were chosen with
SEARCHES = {
    "tpe": {"algorithm": "tpe"},
    "tpe without the model": {"algorithm": "tpe", "avoid_failures": False},
    "random": {"algorithm": "random"},
}
OPTUNA = "Optuna TPE"


def ours(task: Task, settings: Mapping[str, Any], seed: int) -> list[float | None]:
    """Run one of our searches; return the losses, None for failures."""
    from autotune.search import Observation, make_search
    from autotune.space import parse_space

    space, search = parse_space(task.space), make_search({**settings, "seed": seed})
    history: list[Observation] = []
    for number in range(TRIALS):
        params = search.propose(space, history, number)
        if params is None:
            raise SystemExit("the space is exhausted")
        failed = task.fails(params)
        state, loss = ("failed", None) if failed else ("finished", task.loss(params))
        history.append(Observation(number=number, params=params, state=state, loss=loss, infeasible=failed))
    return [o.loss for o in history]


def optuna_tpe(task: Task, seed: int) -> list[float | None]:
    """Run Optuna's default sampler; return the losses, None for failures."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    losses: list[float | None] = []
    for _ in range(TRIALS):
        trial = study.ask()
        params = {name: suggest(trial, name, definition) for name, definition in task.space.items()}
        losses.append(None if task.fails(params) else task.loss(params))
        if losses[-1] is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, losses[-1])
    return losses


def run(job: tuple[str, str, int]) -> tuple[str, str, list[float | None], float]:
    """Run one search once; return task, search, losses and seconds."""
    name, search, seed = job
    started_s = time.monotonic()
    losses = optuna_tpe(TASKS[name], seed) if search == OPTUNA else ours(TASKS[name], SEARCHES[search], seed)
    return name, search, losses, time.monotonic() - started_s


def _mean(values: list[float]) -> tuple[float, float]:
    """Return mean and half the width of its 95% interval."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), 1.96 * spread / len(values) ** 0.5


def summary(task: Task, runs: list[list[float | None]]) -> dict[str, Any]:
    """Return the figures of one search on one task."""
    shares = [sum(v is None for v in losses) / TRIALS for losses in runs]
    late = [sum(v is None for v in losses[LATE:]) / (TRIALS - LATE) for losses in runs]
    regrets = [min(v for v in losses if v is not None) - task.best for losses in runs]
    late_mean, late_half = _mean(late)
    regret_mean, regret_half = _mean(regrets)
    return {
        "late_share": round(late_mean, 4),
        "late_half_interval": round(late_half, 4),
        "late_worst_seed": max(late),
        "share": round(statistics.mean(shares), 4),
        "regret_mean": round(regret_mean, 4),
        "regret_half_interval": round(regret_half, 4),
        "regret": common.spread(regrets),
    }


def _searches() -> list[str]:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        return list(SEARCHES)
    return [*SEARCHES, OPTUNA]


@click.command()
@click.option("--seeds", default=20, show_default=True)
@click.option("--processes", default=2, show_default=True)
def main(seeds: int, processes: int) -> None:
    """Measure, print a table, write results/infeasible.json."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    searches = _searches()
    jobs = [
        (task, search, seed) for task in TASKS for search in searches for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
    runs: dict[tuple[str, str], list[list[float | None]]] = {(t, s): [] for t in TASKS for s in searches}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, search, losses, _ in pool.imap(run, jobs):
            runs[name, search].append(losses)
            if len(runs[name, search]) == seeds:
                print(name, search, summary(TASKS[name], runs[name, search]), flush=True)
    figures = {
        name: {"about": task.about, "best": round(task.best, 6)}
        | {search: summary(task, runs[name, search]) for search in searches}
        for name, task in TASKS.items()
    }
    rows = [
        [name, search, _text(f[search], "late_share", "late_half_interval"), f[search]["regret"]["median"]]
        for name, f in figures.items()
        for search in searches
    ]
    print(common.table(["task", "search", "failing among trials 51-100", "median regret"], rows))
    content = {"seeds": [FIRST_SEED, FIRST_SEED + seeds - 1], "trials": TRIALS, "tasks": figures}
    packages = common.versions("autotune", "hyperopt", "numpy", "optuna")
    print(common.write("infeasible", f"python benchmarks/infeasible.py --seeds {seeds}", content, packages))


def _text(figures: Mapping[str, Any], value: str, half: str) -> str:
    return f"{figures[value]:.3f} +- {figures[half]:.3f}"


if __name__ == "__main__":
    main()
