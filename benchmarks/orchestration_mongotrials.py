"""hyperopt's MongoTrials, for `orchestration.py`: trials of sin(x) on workers of its own kind.

Run with the Python of an environment that has requirements-mongotrials.txt; prints one line of JSON. Each slot is a
``hyperopt-mongo-worker`` that asks for work every 0.1 s. By default such a worker starts a process for each trial, as
ours does; with ``--no-subprocesses`` it does not.

    .venv-mongotrials/bin/python benchmarks/orchestration_mongotrials.py HOST:PORT TRIALS SLOTS [--no-subprocesses]
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the trials and print how long they took."""
    import numpy as np
    from hyperopt import fmin, hp, tpe
    from hyperopt.mongoexp import MongoTrials

    place, trials, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    name = f"mongotrials_{time.time_ns()}"
    worker = [str(Path(sys.executable).parent / "hyperopt-mongo-worker"), f"--mongo={place}/{name}",
              "--poll-interval=0.1", "--reserve-timeout=60", *sys.argv[4:]]  # fmt: skip
    whole_s = time.monotonic()
    store = MongoTrials(f"mongo://{place}/{name}/jobs", exp_key="s")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    workers = [subprocess.Popen(worker, **quiet) for _ in range(slots)]
    try:
        fmin(math.sin, hp.uniform("x", -2, 2), trials=store, algo=tpe.suggest, max_evals=trials, max_queue_len=slots,
             show_progressbar=False, rstate=np.random.default_rng(0))  # fmt: skip
        ended_s = time.monotonic()
        store.refresh()
        done = [t for t in store.trials if t["result"].get("status") == "ok"]
        if len(done) < trials:
            raise SystemExit(f"{len(done)} of {trials} trials ended")
        taken = max(t["refresh_time"] for t in done) - min(t["book_time"] for t in done)
    finally:
        for process in workers:
            process.kill()
            process.wait()
    print(json.dumps({"after_start_up_s": taken.total_seconds(), "whole_s": ended_s - whole_s}))


if __name__ == "__main__":
    main()
