"""Hyperband with TPE against TPE that trains every trial to the end: scVI on real cells, best ELBO over epochs spent.

    python -m benchmarks.hyperband_scvi /path/to/zeisel_cortex_1464x1000.h5ad [--seeds 3] [--slots 2] [--reuse]

Per seed two campaigns with the same space, data and split: ``tpe`` with 40 trials of 81 epochs, and ``tpe`` under
``hyperband`` with minimum 3, maximum 81, eta 3, and as many trials as whole brackets fit into a third of those epochs:
one round of all four brackets, 49 trials and 1,071 of 3,240 epochs. After one epoch nothing can be said of a training
yet, so the first rung is at 3.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

EPOCHS = 81
FULL_TRIALS = 40
METRIC = "elbo_validation"
HYPERBAND = {"algorithm": "hyperband", "minimum": 3, "maximum": EPOCHS, "eta": 3}


def campaign(name: str, data: Path, seed: int, trials: int, schedule: dict[str, Any]) -> dict[str, Any]:
    """Return a campaign file."""
    return {
        "name": name,
        "objective": "scvi",
        "data": {"path": str(data)},
        "split": {"validation": 0.25, "seed": 0},
        "metric": {"name": METRIC, "mode": "min"},
        "space": "default",
        "search": {"algorithm": "tpe", "seed": seed, "startup": 10},
        "schedule": schedule,
        "budget": {"max_trials": trials},
        "fixed": {"max_epochs": EPOCHS, "early_stopping": False},
    }


def hyperband_trials(epochs: int) -> int:
    """Return the number of trials of the whole brackets that fit into so many epochs."""
    from autotune.schedule import make_schedule

    schedule = make_schedule(HYPERBAND)
    trials = 0
    for bracket in schedule.preview(10_000).brackets:
        epochs -= bracket.epochs
        if epochs < 0:
            return trials
        trials += bracket.rungs[0][0]
    return trials


def run(content: dict[str, Any], slots: int) -> dict[str, Any]:
    """Run a campaign; return its best score, the epochs it spent, and the best score over the epochs spent."""
    import autotune

    result = autotune.launch(content, workers=1, slots_per_device=slots)
    with autotune.open_store() as store:
        spent, best, curve = 0, float("inf"), []
        ended = sorted((t for t in result.trials if t.ended_at is not None), key=lambda t: t.ended_at)
        for trial in ended:
            spent += len(store.reports.curve(content["name"], trial.number))
            if trial.score is not None and trial.score < best:
                best = trial.score
                curve.append([spent, round(best, 3)])
    wall_s = (result.campaign.ended_at - result.campaign.created_at).total_seconds()
    return {"best": round(best, 3), "epochs": spent, "trials": len(result.trials), "wall_s": round(wall_s, 1),
            "best_over_epochs": curve}  # fmt: skip


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the best score over the epochs spent, a line per campaign."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for row in rows:
        for kind, colour in (("tpe", "tab:blue"), ("hyperband", "tab:orange")):
            found = row[kind]
            points = [*found["best_over_epochs"], [found["epochs"], found["best"]]]
            label = {"tpe": "TPE, every trial to the end", "hyperband": "TPE under Hyperband"}[kind]
            axes.step([p[0] for p in points], [p[1] for p in points], where="post", color=colour, alpha=0.8,
                      label=label if row is rows[0] else None)  # fmt: skip
    axes.set(xlabel="epochs spent by trials that have ended", ylabel=f"best {METRIC}, nats per cell", xscale="log")
    axes.legend(frameon=False)
    fig.savefig(path, dpi=150)


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--slots", default=2, show_default=True)
@click.option("--reuse", is_flag=True, help="Take the full campaigns from results/hyperband_scvi.json.")
def main(data: Path, seeds: int, slots: int, reuse: bool) -> None:
    """Run both campaigns with each seed; print and write what came of it."""
    earlier = json.loads((common.RESULTS / "hyperband_scvi.json").read_text())["runs"] if reuse else []
    known = {row["seed"]: row["tpe"] for row in earlier}
    trials = hyperband_trials(FULL_TRIALS * EPOCHS // 3)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["AUTOTUNE_HOME"] = home
        from autotune.store import embedded

        try:
            for seed in range(seeds):
                full = known.get(seed) or run(
                    campaign(f"tpe-{seed}", data.absolute(), seed, FULL_TRIALS, {"algorithm": "none"}), slots
                )
                short = run(campaign(f"hyperband-{seed}", data.absolute(), seed, trials, HYPERBAND), slots)
                gap = (short["best"] - full["best"]) / full["best"]
                rows.append({"seed": seed, "tpe": full, "hyperband": short, "gap": round(gap, 5)})
                print(
                    rows[-1]["seed"],
                    full["best"],
                    full["epochs"],
                    short["best"],
                    short["epochs"],
                    f"{gap:+.2%}",
                    flush=True,
                )
                packages = common.versions("autotune", "scvi-tools", "torch")
                command = f"python -m benchmarks.hyperband_scvi DATA --seeds {seeds} --slots {slots}"
                common.write("hyperband_scvi", command, {"runs": rows}, packages)
        finally:
            embedded.stop()
    figure(rows, common.RESULTS / "hyperband_scvi.png")
    columns = ["seed", "TPE: best", "epochs", "Hyperband: best", "epochs", "share of epochs", "gap"]
    print(common.table(columns, [
        [r["seed"], r["tpe"]["best"], r["tpe"]["epochs"], r["hyperband"]["best"], r["hyperband"]["epochs"],
         f"{r['hyperband']['epochs'] / r['tpe']['epochs']:.0%}", f"{r['gap']:+.2%}"] for r in rows
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
