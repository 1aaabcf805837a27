"""How long things take to begin: importing, ``--help``, the embedded store, a worker's scVI trials.

python benchmarks/start_up.py [--repeats 5]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import common


def _timed(command: list[str]) -> float:
    started_s = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started_s


def store_starts(repeats: int) -> dict[str, list[float]]:
    """Time the embedded store: cold (a new folder), again (its data are there), and found running."""
    from autotune.store import embedded
    from autotune.store.mongo import open_store

    found: dict[str, list[float]] = {"new": [], "again": [], "found": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AUTOTUNE_HOME"] = folder
            for kind in found:
                started_s = time.monotonic()
                open_store().close()
                found[kind].append(time.monotonic() - started_s)
                if kind == "new":
                    embedded.stop()
            embedded.stop()
    return found


def trial_starts(repeats: int) -> dict[str, list[float]]:
    """Time from a spawn to the first report of a tiny scVI training: with a new fork server, and with a loaded one."""
    from workers.children import Children
    from workers.workloads.cells.simulate import simulate_cells

    found: dict[str, list[float]] = {"load": [], "spawn": []}
    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder) / "cells.h5ad"
        simulate_cells(300, 100, 3).write_h5ad(cells)
        spec = {"name": "c", "objective": "scvi", "data": {"path": str(cells)}, "split": {}}
        trial = {"params": {"max_epochs": 1, "n_hidden": 16}, "campaign": "c", "number": 0, "threads": 1}
        request = {"spec": spec, "metric": {"name": "marginal_ll", "mode": "min"}, "trial": trial}
        for _ in range(repeats):
            server = Children(spec, Path(folder))
            started_s = time.monotonic()
            _start(server)
            found["load"].append(time.monotonic() - started_s)
            for _ in range(3):
                started_s = time.monotonic()
                child = server.spawn(request, {"CUDA_VISIBLE_DEVICES": ""})
                child.started.wait(30)
                while (message := child.channel.receive(60)) is not None and "report" not in message:
                    pass
                found["spawn"].append(time.monotonic() - started_s)
                child.ended.wait(60)
                child.close()
            server.stop()
    return found


def _start(server: object) -> None:
    import threading

    server.start(threading.Event())  # type: ignore[attr-defined]


@click.command()
@click.option("--repeats", default=5, show_default=True)
def main(repeats: int) -> None:
    """Measure, print a table, write results/start_up.json."""
    python = sys.executable
    parts: dict[str, Callable[[], float]] = {
        "python -c pass": lambda: _timed([python, "-c", "pass"]),
        "import autotune": lambda: _timed([python, "-c", "import autotune"]),
        "autotune --help": lambda: _timed([python, "-m", "autotune.cli.main", "--help"]),
        "import torch, scvi": lambda: _timed([python, "-c", "import torch, scvi"]),
    }
    figures = {name: common.spread([run() for _ in range(repeats)]) for name, run in parts.items()}
    for kind, values in store_starts(repeats).items():
        figures[f"embedded store: {kind}"] = common.spread(values)
    trials = trial_starts(max(1, repeats // 2))
    figures["scVI worker: libraries and data loaded"] = common.spread(trials["load"])
    figures["scVI worker: spawn to first report (1 epoch of 300 cells)"] = common.spread(trials["spawn"])
    rows = [[name, f["median"], f"{f['min']} .. {f['max']}"] for name, f in figures.items()]
    print(common.table(["what", "median, s", "spread"], rows))
    packages = common.versions("autotune", "pymongo", "torch", "scvi-tools")
    print(
        common.write("start_up", f"python benchmarks/start_up.py --repeats {repeats}", {"seconds": figures}, packages)
    )


if __name__ == "__main__":
    main()
