"""What a trial costs beside its training: trials of sin(x), end to end, with 2 and 16 slots, against other systems.

Ours goes through the embedded MongoDB, a coordinator process and one worker process, each trial in a child process of
its own, or in the worker's process (`isolation: none`). "after start-up" is from the first claim to the end of the last
trial, on the database's clock; "whole" is the call from cold: a new store, coordinator and worker included. Optuna runs
as many processes as there are slots. Other systems run when they are installed (requirements.txt); hyperopt's
MongoTrials does not run with pymongo 4 and needs an environment of its own (requirements-mongotrials.txt,
orchestration_mongotrials.py); its mongod is the one that ours uses.

    python benchmarks/orchestration.py [--trials 1000] [--slow-trials 100] [--repeats 3] [--slots 2 --slots 16]
        [--mongotrials .venv-mongotrials/bin/python]
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import common


def campaign_of(trials: int, folder: Path, slots: int, isolation: str) -> tuple[list[Any], float]:
    """Run our campaign in a home of its own; return its trials and the seconds that it took from cold."""
    import autotune
    from autotune.store import embedded

    os.environ["AUTOTUNE_HOME"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    try:
        started_s = time.monotonic()
        result = autotune.launch(
            {
                "name": "sine",
                "objective": "objectives:sine",
                "metric": {"name": "loss", "mode": "min"},
                "space": {"x": {"float": [-2, 2]}},
                "search": {"algorithm": "tpe", "seed": 0},
                "isolation": isolation,
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
    return list(result.trials), whole_s


def ours(trials: int, folder: Path, slots: int, isolation: str = "process") -> dict[str, float]:
    """Run our campaign."""
    made, whole_s = campaign_of(trials, folder, slots, isolation)
    starts, ends = [t.started_at for t in made], [t.ended_at for t in made]
    return {"after_start_up_s": (max(ends) - min(starts)).total_seconds(), "whole_s": whole_s}


def ours_in_process(trials: int, folder: Path, slots: int) -> dict[str, float]:
    """Run our campaign without a process for each trial."""
    return ours(trials, folder, slots, isolation="none")


def _import_optuna(seconds: float) -> None:
    """Load what the workers need, long enough that each process of the pool takes one of these."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    time.sleep(seconds)


def _optuna_storage(kind: str, place: str) -> Any:
    import optuna

    if kind == "sqlite":
        return place
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(place))
    host, _, port = place.partition(":")
    return optuna.storages.GrpcStorageProxy(host=host, port=int(port))


def _optuna_worker(arguments: tuple[str, str, int]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kind, place, trials = arguments
    study = optuna.load_study(study_name="s", storage=_optuna_storage(kind, place))
    study.optimize(lambda trial: math.sin(trial.suggest_float("x", -2, 2)), n_trials=trials)


def _optuna_server(place: str, port: int) -> None:
    import optuna

    optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage(place), host="127.0.0.1", port=port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def optuna_(kind: str, trials: int, folder: Path, slots: int) -> dict[str, float]:
    """Run Optuna with TPE, a process for each slot."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    context = multiprocessing.get_context("spawn")
    whole_s, server = time.monotonic(), None
    place = str(folder / "study.log") if kind == "journal" else f"sqlite:///{folder}/study.db"
    if kind == "grpc":
        port = _free_port()
        server = context.Process(target=_optuna_server, args=(place, port), daemon=True)
        server.start()
        place = f"127.0.0.1:{port}"
        for _ in range(100):
            time.sleep(0.1)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
    try:
        sampler = optuna.samplers.TPESampler(seed=0)
        optuna.create_study(study_name="s", storage=_optuna_storage(kind, place), sampler=sampler)
        parts = [trials // slots + (i < trials % slots) for i in range(slots)]
        with context.Pool(slots) as pool:
            pool.map(_import_optuna, [2.0] * slots, chunksize=1)
            started_s = time.monotonic()
            pool.map(_optuna_worker, [(kind, place, part) for part in parts], chunksize=1)
            ended_s = time.monotonic()
    finally:
        if server is not None:
            server.terminate()
            server.join()
    return {"after_start_up_s": ended_s - started_s, "whole_s": ended_s - whole_s}


def ray_tune(trials: int, folder: Path, slots: int) -> dict[str, float]:
    """Run Ray Tune with HyperOptSearch, as many trials at a time as slots; Ray starts before the clock."""
    import ray
    from ray import tune
    from ray.tune.search.hyperopt import HyperOptSearch

    whole_s = time.monotonic()
    ray.init(num_cpus=slots, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    started_s = time.monotonic()
    results = tune.Tuner(
        lambda config: {"loss": math.sin(config["x"])},
        param_space={"x": tune.uniform(-2, 2)},
        tune_config=tune.TuneConfig(
            num_samples=trials, metric="loss", mode="min", search_alg=HyperOptSearch(), max_concurrent_trials=slots
        ),
        run_config=tune.RunConfig(verbose=0, storage_path=str(folder)),
    ).fit()
    ended_s = time.monotonic()
    ray.shutdown()
    if len(results) != trials:
        raise SystemExit(f"Ray Tune ended with {len(results)} trials")
    return {"after_start_up_s": ended_s - started_s, "whole_s": ended_s - whole_s}


def mongo_trials(flags: tuple[str, ...], trials: int, folder: Path, slots: int) -> dict[str, float]:
    """Run hyperopt's MongoTrials in its own environment on a new mongod."""
    from autotune.store import embedded

    python = os.environ.get("MONGOTRIALS_PYTHON", "")
    if not python:
        raise ModuleNotFoundError("hyperopt with pymongo<4", name="hyperopt with pymongo<4")
    os.environ["AUTOTUNE_HOME"] = str(folder)
    try:
        place = embedded.start().removeprefix("mongodb://").partition("/")[0]
        script = str(Path(__file__).resolve().with_name("orchestration_mongotrials.py"))
        done = subprocess.run(
            [python, script, place, str(trials), str(slots), *flags],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        embedded.stop()
    if done.returncode:
        raise SystemExit(f"MongoTrials failed: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


SYSTEMS: dict[str, Callable[[int, Path, int], dict[str, float]]] = {
    "autotune, in the worker's process": ours_in_process,
    "autotune, a process for each trial": ours,
    "Optuna, SQLite": partial(optuna_, "sqlite"),
    "Optuna, journal file": partial(optuna_, "journal"),
    "Optuna, gRPC proxy on SQLite": partial(optuna_, "grpc"),
    "Ray Tune, HyperOptSearch": ray_tune,
    "hyperopt MongoTrials, a process for each trial": partial(mongo_trials, ()),
    "hyperopt MongoTrials, in the worker's process": partial(mongo_trials, ("--no-subprocesses",)),
}
SLOW = frozenset(name for name in SYSTEMS if name.startswith(("Ray", "hyperopt", "Optuna, gRPC")))


@click.command()
@click.option("--trials", default=1000, show_default=True)
@click.option("--slow-trials", default=100, show_default=True, help="Trials of systems that take long for each.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each system; the slow ones run once.")
@click.option("--slots", "counts", multiple=True, type=int, default=(2, 16), show_default=True)
@click.option("--only", multiple=True, help="Part of a name; default: all systems.")
@click.option(
    "--mongotrials", default="", help="The Python that has hyperopt and pymongo<4; without it that is left out."
)
def main(
    trials: int, slow_trials: int, repeats: int, counts: tuple[int, ...], only: tuple[str, ...], mongotrials: str
) -> None:
    """Measure, print a table, write results/orchestration.json."""
    os.environ["MONGOTRIALS_PYTHON"] = str(Path(mongotrials).absolute()) if mongotrials else ""
    chosen = {n: f for n, f in SYSTEMS.items() if not only or any(part in n for part in only)}
    runs: dict[tuple[int, str], list[dict[str, float]]] = {(c, n): [] for c in counts for n in chosen}
    lacking: dict[str, str] = {}
    for index in range(repeats):
        for (slots, name), measured in runs.items():
            if name in lacking or (index > 0 and name in SLOW):
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    measured.append(chosen[name](slow_trials if name in SLOW else trials, Path(folder), slots))
                except ModuleNotFoundError as error:
                    lacking[name] = f"{error.name} is not installed"
                    continue
            print(slots, name, measured[-1], flush=True)
    rows, figures = [], []
    for (slots, name), measured in runs.items():
        if not measured:
            continue
        count = slow_trials if name in SLOW else trials
        each = common.spread([1000 * m["after_start_up_s"] / count for m in measured])
        whole = common.spread([m["whole_s"] for m in measured])
        figures.append({"slots": slots, "system": name, "trials": count, "runs": len(measured),
                        "ms_per_trial": each, "whole_s": whole})  # fmt: skip
        rows.append([slots, name, count, len(measured), round(each["median"], 1),
                     f"{each['min']:.1f} .. {each['max']:.1f}", round(whole["median"], 1)])  # fmt: skip
    columns = ["slots", "system", "trials", "runs", "ms per trial", "spread", "whole, from cold, s"]
    print(common.table(columns, rows))
    packages = common.versions("autotune", "hyperopt", "pymongo", "optuna", "ray")
    command = f"python benchmarks/orchestration.py --trials {trials} --slow-trials {slow_trials} --repeats {repeats}"
    if not only:
        print(common.write("orchestration", command, {"rows": figures, "not measured": lacking}, packages))


if __name__ == "__main__":
    main()
