"""Wall clock to the same held-out score on real cells: ours against ``scvi.autotune.run_autotune``.

Both tune scVI on the same file with the same space, genes, share of validation cells, number of trials and epochs, each
trial on one core, as many at a time as there are slots, and both search by TPE (ours: ``tpe``; theirs: Ray Tune with
HyperOptSearch). Each run is a new process, timed from its start, libraries and servers included. "time to target" is
until a trial has ended whose lowest ``elbo_validation`` is at most the target; the target of a seed is the worse of the
two best values, so that both reach it. Which cells validate is drawn by each system in its own way, so that values of
the two differ by chance as well; both draw 25%.

    python benchmarks/campaign.py /path/to/zeisel_cortex_1464x1000.h5ad [--trials 8] [--epochs 20] [--seeds 3]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import common

SPACE: dict[str, list[Any]] = {
    "n_hidden": [64, 128, 256],
    "n_layers": [1, 2, 3, 4, 5],
    "dropout_rate": [0.1, 0.3, 0.5, 0.7, 0.9],
    "reconstruction_loss": ["zinb", "nb"],
    "lr": [0.01, 0.005, 0.001, 0.0005, 0.0001],
}
LATENT = (5, 15)
GENES = 558
VALIDATION = 0.25
Ends = list[tuple[float, float]]
"""When each trial ended (seconds since 1970), and its score."""


def ours(data: Path, trials: int, epochs: int, seed: int, slots: int) -> Ends:
    """Tune with autotune, embedded MongoDB, one worker."""
    import autotune
    from autotune.store import embedded

    try:
        result = autotune.launch(
            {
                "name": "campaign",
                "objective": "scvi",
                "data": {"path": str(data), "genes": {"top_variance": GENES}},
                "split": {"validation": VALIDATION, "seed": seed},
                "metric": "elbo_validation",
                "space": {**{k: {"choice": v} for k, v in SPACE.items()}, "n_latent": {"int": list(LATENT)}},
                "search": {"algorithm": "tpe", "seed": seed},
                "budget": {"max_trials": trials},
                "fixed": {"max_epochs": epochs, "early_stopping": False},
            },
            workers=1,
            devices="cpu",
            slots_per_device=slots,
        )
    finally:
        embedded.stop()
    return [(t.ended_at.timestamp(), t.score) for t in result.trials if t.ended_at and t.score is not None]


def theirs(data: Path, trials: int, epochs: int, seed: int, slots: int) -> Ends:
    """Tune with scvi-tools' autotune."""
    import logging

    import anndata
    import numpy as np
    import ray
    import scvi
    from ray import tune
    from scvi.autotune import run_autotune

    scvi.settings.verbosity = 40
    cells = anndata.read_h5ad(data)
    counts = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    cells = cells[:, np.sort(np.argsort(-counts.var(axis=0))[:GENES])].copy()
    scvi.model.SCVI.setup_anndata(cells)
    ray.init(num_cpus=slots, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    names = {"reconstruction_loss": "gene_likelihood"}
    model = {names.get(k, k): tune.choice(v) for k, v in SPACE.items() if k != "lr"}
    found = run_autotune(
        scvi.model.SCVI,
        cells,
        metrics=["elbo_validation"],
        mode="min",
        search_space={
            "model_params": {**model, "n_latent": tune.randint(LATENT[0], LATENT[1] + 1)},
            "train_params": {
                "max_epochs": epochs,
                "train_size": 1 - VALIDATION,
                "plan_kwargs": {"lr": tune.choice(SPACE["lr"])},
            },
        },
        num_samples=trials,
        scheduler="fifo",
        searcher="hyperopt",
        seed=seed,
        resources={"cpu": 1},
        ignore_reinit_error=True,
        logging_dir=os.environ["AUTOTUNE_HOME"],
    )
    ends = []
    for result in found.result_grid:
        if result.error is not None:
            raise SystemExit(f"a trial of scvi.autotune failed: {result.error}")
        frame = result.metrics_dataframe
        ends.append((float(frame["timestamp"].max()), float(frame["elbo_validation"].min())))
    ray.shutdown()
    return ends


SYSTEMS = {"autotune": ours, "scvi.autotune": theirs}


def measure(system: str, data: Path, trials: int, epochs: int, seed: int, slots: int) -> dict[str, Any]:
    """Run one system in a process of its own; return its seconds and the ends of its trials since its start."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, str(data), "--trials", str(trials), "--epochs", str(epochs),
                   "--slots", str(slots), "--child", system, "--first-seed", str(seed)]  # fmt: skip
        began_s = time.time()
        done = subprocess.run(command, env={**os.environ, "AUTOTUNE_HOME": home}, capture_output=True, text=True)
        wall_s = time.time() - began_s
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    ends = sorted(json.loads(done.stdout.splitlines()[-1]))
    if len(ends) != trials:
        raise SystemExit(f"{system} ended with {len(ends)} of {trials} trials")
    return {"wall_s": round(wall_s, 1), "ends": [[round(at - began_s, 1), round(score, 2)] for at, score in ends]}


def reached_s(ends: list[list[float]], target: float) -> float:
    """Return when the first trial ended that is at least as good as the target."""
    return next(at for at, score in ends if score <= target)


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trials", default=8, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--slots", default=2, show_default=True)
@click.option("--child", type=click.Choice(list(SYSTEMS)), help="Run this system here and print its trials; internal.")
def main(data: Path, trials: int, epochs: int, seeds: int, first_seed: int, slots: int, child: str | None) -> None:
    """Measure, print a table, write results/campaign.json."""
    if child:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print("\n" + json.dumps(SYSTEMS[child](data.absolute(), trials, epochs, first_seed, slots)), flush=True)
        return
    runs: list[dict[str, Any]] = []
    for seed in range(first_seed, first_seed + seeds):
        run: dict[str, Any] = {"seed": seed}
        for system in SYSTEMS:
            run[system] = measure(system, data.absolute(), trials, epochs, seed, slots)
        bests = {system: min(score for _, score in run[system]["ends"]) for system in SYSTEMS}
        run["target"] = max(bests.values())
        for system in SYSTEMS:
            run[system] |= {"best": bests[system], "to_target_s": reached_s(run[system]["ends"], run["target"])}
        print(run, flush=True)
        runs.append(run)
    rows, summary = [], []
    for system in SYSTEMS:
        spread = {k: common.spread([run[system][k] for run in runs]) for k in ("wall_s", "to_target_s", "best")}
        summary.append({"system": system, **spread})
        rows.append([system, len(runs), *(f"{s['median']:.1f} ({s['min']:.1f} .. {s['max']:.1f})"
                                          for s in spread.values())])  # fmt: skip
    print(common.table(["system", "runs", "whole, s", "time to target, s", "best elbo_validation"], rows))
    content = {"trials": trials, "epochs": epochs, "slots": slots, "summary": summary, "runs": runs}
    packages = common.versions("autotune", "scvi-tools", "torch", "ray", "hyperopt", "scib-metrics")
    command = f"python benchmarks/campaign.py DATA --trials {trials} --epochs {epochs} --seeds {seeds}"
    print(common.write("campaign", command, content, packages))


if __name__ == "__main__":
    main()
