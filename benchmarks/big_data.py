"""Memory of a worker host and pauses between trials on a data set as large as Brain Large: 1.3 million x 720.

python benchmarks/big_data.py [--cells 1300000] [--trials 4]

A real campaign on simulated, sparse counts, two slots. Memory is the proportional set size (PSS: a page that n
processes share counts 1/n in each) of the worker, its fork server and its trials, several times a second. What
libraries and training take by themselves is the same campaign on a thousandth of the cells.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import common
import h5py
import numpy as np

import autotune

_GENES = 720
_CHUNK = 20_000
_EVERY_S = 0.25
_MAPPED = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")


def simulate(path: Path, n_cells: int, seed: int = 0) -> dict[str, float]:
    """Write counts like those of the most variable genes of brain cells; return what they are."""
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(-1.42, 1.2, size=_GENES)  # 30 % of the entries; in the cells that we have it is 40 % and more
    text = h5py.string_dtype()
    n_entries = 0
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        x.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([n_cells, _GENES])}
        )
        data = x.create_dataset("data", (0,), "f4", maxshape=(None,), chunks=(1 << 18,))
        indices = x.create_dataset("indices", (0,), "i4", maxshape=(None,), chunks=(1 << 18,))
        indptr = np.zeros(n_cells + 1, dtype=np.int64)
        for start in range(0, n_cells, _CHUNK):
            stop = min(n_cells, start + _CHUNK)
            scale = rng.lognormal(0.0, 0.5, size=(stop - start, 1)).astype(np.float32)
            counts = rng.poisson(scale * rates.astype(np.float32))
            rows, columns = np.nonzero(counts)
            for stored, values in ((data, counts[rows, columns]), (indices, columns)):
                stored.resize((n_entries + len(rows),))
                stored[n_entries:] = values
            indptr[start + 1 : stop + 1] = n_entries + np.cumsum(np.count_nonzero(counts, axis=1))
            n_entries += len(rows)
        x["indptr"] = indptr
        for part, kind, number in (("obs", "cell", n_cells), ("var", "gene", _GENES)):
            group = file.create_group(part)
            group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            group.attrs["column-order"] = np.array([], dtype=text)
            names = group.create_dataset("_index", data=[f"{kind}_{i}" for i in range(number)], dtype=text)
            names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    n_bytes = n_entries * 8 + (n_cells + 1) * 4
    return {"cells": n_cells, "genes": _GENES, "density": round(n_entries / n_cells / _GENES, 4), "csr_bytes": n_bytes}


class Watch:
    """Samples the memory of the workers that this process started, in a thread.

    Processes are read one after another: while a trial ends, its share of the pages may be counted twice for a moment,
    so the peak is an upper bound.

    Attributes:
        samples: Seconds, then bytes per part: ``worker``, ``fork server``, ``trials`` (all PSS), ``mapped`` (PSS of the
            mapped counts in all of them).
    """

    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            sample: dict[str, float] = {"worker": 0, "fork server": 0, "trials": 0, "mapped": 0}
            for role, pid in _processes(os.getpid(), ""):
                with contextlib.suppress(OSError):
                    total, mapped = _memory(pid)
                    sample[role] += total
                    sample["mapped"] += mapped
            if sample["worker"]:
                self.samples.append({"s": time.monotonic(), **sample})

    @property
    def peak(self) -> dict[str, float]:
        """The sample with the most memory."""
        return max(self.samples, key=_total)


def _total(sample: dict[str, float]) -> float:
    return sample["worker"] + sample["fork server"] + sample["trials"]


def _processes(pid: int, role: str) -> Iterator[tuple[str, int]]:
    """Yield role and number of all processes of workers below one."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in (int(text) for text in task.read_text().split()):
                command = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
                own = "trials" if role == "fork server" else role
                if "workers.forkserver" in command:
                    own = "fork server" if role == "worker" else "trials"
                elif not role and any(part in ("worker", "workers") or part.endswith("workers") for part in command):
                    own = "worker"
                if own:
                    yield own, child
                yield from _processes(child, own)


def _memory(pid: int) -> tuple[int, int]:
    """Return the PSS of a process, and that of its mappings of counts, in bytes."""
    total = mapped = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Pss:"):
            kilobytes = int(line.split()[1])
            total += kilobytes
            mapped += kilobytes if ours else 0
        elif match := _MAPPED.match(line):
            ours = "/matrices/" in match[1]
    return total * 1024, mapped * 1024


def run(folder: Path, name: str, data: Path, trials: int, batch_size: int) -> tuple[Watch, list[dict[str, Any]]]:
    """Run a campaign; return the memory that its worker took and the notes of its trials."""
    notes = folder / f"{name}.notes"
    os.environ["BIG_DATA_NOTES"] = str(notes)
    campaign = {
        "name": name,
        "objective": "big_data_tasks:train",
        "data": {"path": str(data)},
        "metric": {"name": "marginal_ll", "mode": "min"},
        "space": {"lr": {"log_float": [1e-4, 1e-2]}},
        "fixed": {"max_epochs": 1, "n_hidden": 16, "n_latent": 5, "batch_size": batch_size, "marginal_ll_draws": 1},
        "search": {"algorithm": "random", "seed": 0},
        "budget": {"max_trials": trials},
    }
    with Watch() as watch:
        result = autotune.launch(campaign, devices="cpu", slots_per_device=2)
    if any(str(trial.state) != "finished" for trial in result.trials):
        raise click.ClickException(f"not all trials finished: {[str(trial.state) for trial in result.trials]}")
    return watch, [json.loads(line) for line in notes.read_text().splitlines()]


def pauses(notes: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the seconds from the end of a trial to the start, and to the first step, of the one that took its slot."""
    ends = sorted(n["s"] for n in notes if n["what"] == "ended")
    starts = sorted((n["s"], n["number"]) for n in notes if n["what"] == "started")
    steps = {n["number"]: n["s"] for n in notes if n["what"] == "first step"}
    slots = len(starts) - len([e for e in ends if e < starts[-1][0]]) if starts else 0
    found: dict[str, list[float]] = {"start": [], "first step": []}
    for end, (start, number) in zip(ends, starts[slots:], strict=False):
        found["start"].append(start - end)
        found["first step"].append(steps[number] - end)
    return found


@click.command()
@click.option("--cells", default=1_300_000, show_default=True)
@click.option("--trials", default=4, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True)
def main(cells: int, trials: int, batch_size: int, save: bool) -> None:
    """Measure, print a table, write results/big_data.json."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="autotune-big-") as text:
        folder = Path(text)
        os.environ["AUTOTUNE_HOME"] = str(folder / "home")
        figures: dict[str, Any] = {"data": simulate(folder / "big.h5ad", cells)}
        simulate(folder / "small.h5ad", max(2000, cells // 1000))
        try:
            small, _ = run(folder, "small", folder / "small.h5ad", 2, 128)
            started_s = time.monotonic()
            big, notes = run(folder, "big", folder / "big.h5ad", trials, batch_size)
        finally:
            from autotune.store import embedded

            embedded.stop()
        size = figures["data"]["csr_bytes"]
        figures |= {
            "seconds_in_all": round(time.monotonic() - started_s, 1),
            "seconds_to_first_start": round(min(n["s"] for n in notes if n["what"] == "started") - started_s, 1),
            "peak": _shares(big.peak, size),
            "peak_ratio": round(_total(big.peak) / size, 3),
            "libraries_and_training": _shares(small.peak, size),
            "libraries_and_training_ratio": round(_total(small.peak) / size, 3),
            "pss_over_time": _thinned(big.samples, size),
            "steady_ratio": common.spread([ratio for _, ratio in _thinned(big.samples, size)])["median"],
            "pauses_s": {name: common.spread(values) for name, values in pauses(notes).items() if values},
        }
    rows = [[name, figures["peak"][name], figures["libraries_and_training"][name]] for name in figures["peak"]]
    print(common.table(["PSS / size of the counts", "peak", "small data"], rows))
    print(figures["data"], figures["pauses_s"], figures["seconds_in_all"])
    if save:
        command = f"python benchmarks/big_data.py --cells {cells} --trials {trials} --batch-size {batch_size}"
        packages = common.versions("autotune", "anndata", "scipy", "torch", "scvi-tools")
        print(common.write("big_data", command, figures, packages))


def _shares(sample: dict[str, float], size: float) -> dict[str, float]:
    parts = {"total": _total(sample), **{name: sample[name] for name in ("worker", "fork server", "trials", "mapped")}}
    return {name: round(value / size, 3) for name, value in parts.items()}


def _thinned(samples: list[dict[str, float]], size: float, most: int = 120) -> list[list[float]]:
    """Return up to `most` pairs of seconds and total, each the largest of its stretch."""
    step = -(-len(samples) // most)
    stretches = [samples[i : i + step] for i in range(0, len(samples), step)]
    start = samples[0]["s"]
    return [[round(part[0]["s"] - start, 1), round(max(map(_total, part)) / size, 3)] for part in stretches]


if __name__ == "__main__":
    main()
