"""What `trial.report` costs a training: 10,000 reports of one trial in a real child of a real worker.

Once as fast as the objective can, once with half a millisecond of computing before each report (a step of a small
network). Each of them with the store at rest, with mongod stopped (SIGSTOP) for some seconds from the first report on,
with a checkpoint of 20 MB going out every 2,000 steps (`checkpoints.every`), and with both.

On a busy machine a process loses its processor to others for milliseconds, wherever it is: `cpu_...` is the time on the
processor alone, and `computing_over_1_ms` counts how often the computing itself took a millisecond too long.

    python benchmarks/report_cost.py [--reports 10000] [--stopped 3] [--name report_cost]
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import common

CHECKPOINT_BYTES = 20_000_000
CASES = {
    "at rest": (False, False),
    "store stopped": (True, False),
    "20 MB checkpoints": (False, True),
    "20 MB checkpoints, store stopped": (True, True),
}


def reports(trial: Any) -> dict[str, Any]:
    """Report so many steps and return what each report took, in microseconds."""
    folder, work_s = Path(trial.params["folder"]), trial.params["work_s"]
    state = os.urandom(CHECKPOINT_BYTES)
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    took_ns, cpu_ns, computed_s, saved_s = [], [], [], []
    began_s = time.monotonic()
    for step in range(1, trial.params["reports"] + 1):
        before_s = time.monotonic()
        value = _compute(trial.params["x"], work_s)
        computed_s.append(time.monotonic() - before_s)
        before_ns, before_cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        trial.report(step, loss=value)
        cpu_ns.append(time.thread_time_ns() - before_cpu_ns)
        took_ns.append(time.perf_counter_ns() - before_ns)
        if trial.checkpoint.wanted(step):
            before_s = time.monotonic()
            trial.checkpoint.save(step, partial(_write, state, step))
            saved_s.append(time.monotonic() - before_s)
    whole_s = time.monotonic() - began_s
    late = sum(s >= work_s + 0.001 for s in computed_s)
    cost = {**summary(took_ns), "cpu_p99_us": statistics.quantiles(cpu_ns, n=100)[98] / 1e3,
            "cpu_max_ms": max(cpu_ns) / 1e6, "computing_over_1_ms": late, "whole_s": whole_s,
            "longest_save_ms": 1000 * max(saved_s, default=0.0)}  # fmt: skip
    return {"loss": math.sin(trial.params["x"]), "cost": {k: round(v, 2) for k, v in cost.items()}}


def _compute(x: float, seconds: float) -> float:
    """Keep the processor busy for so long."""
    end_s, value = time.perf_counter() + seconds, math.sin(x)
    while time.perf_counter() < end_s:
        value = math.sin(x + 1e-9 * value)
    return value


def _write(state: bytes, step: int, folder: Path) -> None:
    (folder / "state.bin").write_bytes(step.to_bytes(8, "big") + state)


def summary(took_ns: Sequence[int]) -> dict[str, float]:
    """Return percentiles in microseconds, and how many calls took a millisecond or longer."""
    found = statistics.quantiles(took_ns, n=1000, method="inclusive")
    return {
        "p50_us": found[499] / 1e3,
        "p99_us": found[989] / 1e3,
        "p999_us": found[998] / 1e3,
        "max_ms": max(took_ns) / 1e6,
        "over_1_ms": sum(t >= 1_000_000 for t in took_ns),
    }


def measure(count: int, work_s: float, stopped_s: float, every: int | None) -> dict[str, Any]:
    """Run one trial in a home of its own; return its facts, and what of its reports is in the store."""
    import autotune
    from autotune import home as places
    from autotune.store import embedded, mongod
    from autotune.store.mongo import open_store

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "AUTOTUNE_HOME": home,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]),
        }
        try:
            open_store().close()
            server = mongod.running_server(places.mongo_folder())
            if server is None:
                raise SystemExit("there is no embedded server")
            helper = threading.Thread(target=_stop_store, args=(Path(home), server.pid, stopped_s), daemon=True)
            helper.start()
            autotune.launch(_campaign(count, work_s, Path(home), every), workers=1, devices="cpu")
            helper.join()
            with open_store() as store:
                (trial,) = store.trials.find("reports")
                kept = [r.step for r in store.reports.curve("reports", 0)]
        finally:
            embedded.stop()
    if trial.state != "finished" or kept != list(range(1, count + 1)):
        raise SystemExit(f"the trial is {trial.state} with {len(kept)} of {count} reports in the store")
    return dict(trial.facts["cost"])


def _campaign(count: int, work_s: float, folder: Path, every: int | None) -> dict[str, Any]:
    return {
        "name": "reports",
        "objective": "report_cost:reports",
        "metric": {"name": "loss", "mode": "min"},
        "space": {"x": {"float": [-2, 2]}},
        "search": {"algorithm": "random", "seed": 0},
        "fixed": {"reports": count, "work_s": work_s, "folder": str(folder)},
        "checkpoints": {"every": every},
        "budget": {"max_trials": 1},
    }


def _stop_store(folder: Path, pid: int, seconds: float) -> None:
    """Stop mongod when the trial is about to report, and let it go on after so many seconds."""
    while not (folder / "ready").exists():
        time.sleep(0.005)
    if seconds:
        os.kill(pid, signal.SIGSTOP)
    (folder / "go").touch()
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@click.command()
@click.option("--reports", "count", default=10_000, show_default=True)
@click.option("--stopped", default=3.0, show_default=True, help="Seconds for which mongod is stopped.")
@click.option("--name", default="report_cost", show_default=True, help="results/NAME.json is written.")
def main(count: int, stopped: float, name: str) -> None:
    """Measure, print a table, write results/NAME.json."""
    figures: dict[str, Any] = {}
    for pace, work_s in (("as fast as it can", 0.0), ("0.5 ms of computing before each", 0.0005)):
        for case, (stops, keeps) in CASES.items():
            found = measure(count, work_s, stopped if stops else 0.0, count // 5 if keeps else None)
            figures[f"{pace}; {case}"] = found
    columns = list(next(iter(figures.values())))
    click.echo(common.table(["reports", *columns], [[k, *(f.get(c) for c in columns)] for k, f in figures.items()]))
    given = {"reports": count, "stopped_s": stopped, "checkpoint_bytes": CHECKPOINT_BYTES, "cases": figures}
    packages = common.versions("pymongo", "autotune")
    common.write(name, f"python benchmarks/report_cost.py --reports {count}", given, packages)


if __name__ == "__main__":
    main()
