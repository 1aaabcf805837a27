"""What a trial costs beside its training: 100 trials of sin(x), end to end, two at a time, against other systems.

Ours goes through the embedded MongoDB, a coordinator process and one worker process with two slots, each trial in a
child process of its own. "after start-up" is from the first claim to the end of the last trial, on the database's
clock; "whole" is the call from cold: a new store, coordinator and worker included. Other systems run when they are
installed (requirements.txt).

    python benchmarks/orchestration.py [--trials 100] [--repeats 5]
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import common


def ours(trials: int, folder: Path, slots: int = 2) -> dict[str, float]:
    """Run our campaign in a home of its own."""
    import autotune
    from autotune.store import embedded

    os.environ["AUTOTUNE_HOME"] = str(folder)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    try:
        started_s = time.monotonic()
        result = autotune.launch(
            {
                "name": "sine",
                "objective": "objectives:sine",
                "metric": {"name": "loss", "mode": "min"},
                "space": {"x": {"float": [-2, 2]}},
                "search": {"algorithm": "tpe", "seed": 0},
                "budget": {"max_trials": trials},
            },
            workers=1,
            devices="cpu",
            slots_per_device=slots,
        )
        whole_s = time.monotonic() - started_s
    finally:
        embedded.stop()
    if [t.number for t in result.trials] != list(range(trials)) or any(t.state != "finished" for t in result.trials):
        raise SystemExit("the campaign did not end with all its trials finished")
    starts = [t.started_at for t in result.trials if t.started_at]
    ends = [t.ended_at for t in result.trials if t.ended_at]
    return {"after_start_up_s": (max(ends) - min(starts)).total_seconds(), "whole_s": whole_s}


def ours_one_slot(trials: int, folder: Path) -> dict[str, float]:
    """Run our campaign with one slot: every proposal has seen every result."""
    return ours(trials, folder, slots=1)


def _import_optuna(seconds: float) -> None:
    """Load what the workers need, long enough that each process of the pool takes one of these."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    time.sleep(seconds)


def _optuna_worker(arguments: tuple[str, int]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, trials = arguments
    study = optuna.load_study(study_name="s", storage=url)
    study.optimize(lambda trial: math.sin(trial.suggest_float("x", -2, 2)), n_trials=trials)


def optuna_sqlite(trials: int, folder: Path) -> dict[str, float]:
    """Run Optuna with TPE on SQLite, two processes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{folder}/study.db"
    whole_s = time.monotonic()
    optuna.create_study(study_name="s", storage=url, sampler=optuna.samplers.TPESampler(seed=0))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_import_optuna, [1.0, 1.0], chunksize=1)
        started_s = time.monotonic()
        pool.map(_optuna_worker, [(url, trials // 2), (url, trials - trials // 2)], chunksize=1)
        ended_s = time.monotonic()
    return {"after_start_up_s": ended_s - started_s, "whole_s": ended_s - whole_s}


def ray_tune(trials: int, folder: Path) -> dict[str, float]:
    """Run Ray Tune with HyperOptSearch, two trials at a time; Ray is started before the clock of "after start-up"."""
    import ray
    from ray import tune
    from ray.tune.search.hyperopt import HyperOptSearch

    whole_s = time.monotonic()
    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    started_s = time.monotonic()
    results = tune.Tuner(
        lambda config: {"loss": math.sin(config["x"])},
        param_space={"x": tune.uniform(-2, 2)},
        tune_config=tune.TuneConfig(
            num_samples=trials, metric="loss", mode="min", search_alg=HyperOptSearch(), max_concurrent_trials=2
        ),
        run_config=tune.RunConfig(verbose=0, storage_path=str(folder)),
    ).fit()
    ended_s = time.monotonic()
    ray.shutdown()
    if len(results) != trials:
        raise SystemExit(f"Ray Tune ended with {len(results)} trials")
    return {"after_start_up_s": ended_s - started_s, "whole_s": ended_s - whole_s}


SYSTEMS: dict[str, Callable[[int, Path], dict[str, float]]] = {
    "autotune (embedded MongoDB, child processes)": ours,
    "autotune, one slot": ours_one_slot,
    "Optuna (SQLite, 2 processes)": optuna_sqlite,
    "Ray Tune (HyperOptSearch)": ray_tune,
}


@click.command()
@click.option("--trials", default=100, show_default=True)
@click.option(
    "--repeats", default=5, show_default=True, help="Runs of each system; Ray Tune, which is slow, runs once."
)
def main(trials: int, repeats: int) -> None:
    """Measure, print a table, write results/orchestration.json."""
    figures: dict[str, Any] = {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for index in range(repeats):
        for name, run in SYSTEMS.items():
            if index > 0 and run is ray_tune:
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    runs[name].append(run(trials, Path(folder)))
                except ModuleNotFoundError as error:
                    figures[name] = {"not measured": f"{error.name} is not installed"}
                    continue
            print(name, runs[name][-1], flush=True)
    rows = []
    for name, measured in runs.items():
        if not measured:
            continue
        after = common.spread([m["after_start_up_s"] for m in measured])
        figures[name] = {
            "runs": len(measured),
            "after_start_up_s": after,
            "whole_s": common.spread([m["whole_s"] for m in measured]),
            "ms_per_trial": round(1000 * after["median"] / trials, 1),
        }
        rows.append([name, len(measured), after["median"], f"{after['min']} .. {after['max']}",
                     figures[name]["whole_s"]["median"], figures[name]["ms_per_trial"]])  # fmt: skip
    print(common.table(["system", "runs", "after start-up, s", "spread", "whole, s", "ms per trial"], rows))
    packages = common.versions("autotune", "hyperopt", "pymongo", "optuna", "ray")
    command = f"python benchmarks/orchestration.py --trials {trials} --repeats {repeats}"
    print(common.write("orchestration", command, {"trials": trials, "systems": figures}, packages))


if __name__ == "__main__":
    main()
