"""The table of scVI: 270 configurations on the cortex cells, 30 epochs each, trained once by our own workers.

    cd benchmarks && python -m search_tasks.scvi_table /path/to/zeisel_cortex_1464x1000.h5ad [--slots 2]

A campaign with ``algorithm: grid`` trains them all; its validation curves are read from the trial store. The loss of a
configuration is its lowest ``elbo_validation`` within the 30 epochs; the whole curves are in the file as well, a number
per epoch (null: not finite), and those of ``elbo_validation_batch``, which rungs compare.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from search_tasks.tables import FOLDER, SCVI_GRID, key_of

EPOCHS = 30
NAME = "scvi-cortex"
METRIC = "elbo_validation"
RUNG_METRIC = "elbo_validation_batch"


def campaign(data: Path) -> dict[str, Any]:
    """Return the campaign file."""
    return {
        "name": NAME,
        "objective": "scvi",
        "data": {"path": str(data), "genes": {"top_variance": 558}},
        "split": {"validation": 0.25, "seed": 0},
        "metric": METRIC,
        "space": {name: {"choice": values} for name, values in SCVI_GRID.items()},
        "search": {"algorithm": "grid"},
        "budget": {"max_trials": 1000},
        "fixed": {"max_epochs": EPOCHS, "early_stopping": False, "n_latent": 10},
    }


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--slots", default=2, show_default=True)
@click.option("--home", type=click.Path(path_type=Path), help="Keep the trial store here, to go on after a stop.")
def main(data: Path, slots: int, home: Path | None) -> None:
    """Train all configurations and write the table."""
    import common

    import autotune
    from autotune.store import embedded

    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOTUNE_HOME"] = str(home or folder)
        try:
            result = autotune.launch(campaign(data.absolute()), workers=1, slots_per_device=slots)
            losses: dict[str, float] = {}
            curves: dict[str, dict[str, list[float | None]]] = {METRIC: {}, RUNG_METRIC: {}}
            with autotune.open_store() as store:
                for trial in result.trials:
                    if trial.state != "finished" or trial.score is None:
                        raise SystemExit(f"trial {trial.number} did not finish: {trial.state}")
                    places = {
                        k: trial.params[k] if isinstance(values[0], str) else values.index(trial.params[k])
                        for k, values in SCVI_GRID.items()
                    }
                    key = key_of(SCVI_GRID, places)
                    reports = list(store.reports.curve(NAME, trial.number))
                    for metric, known in curves.items():
                        seen = [report.metrics.get(metric) for report in reports]
                        known[key] = [round(v, 3) if v is not None and math.isfinite(v) else None for v in seen]
                    losses[key] = round(trial.score, 3)
        finally:
            embedded.stop()
    content = {
        "grid": SCVI_GRID, "epochs": EPOCHS, "metric": METRIC, "rung_metric": RUNG_METRIC,
        "genes": 558, "split": {"validation": 0.25, "seed": 0},
        "versions": common.versions("autotune", "scvi-tools", "torch"), "losses": losses, "curves": curves,
    }  # fmt: skip
    path = FOLDER / f"{NAME}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    print(f"{len(losses)} configurations, best {min(losses.values())}, wrote {path}")


if __name__ == "__main__":
    main()
