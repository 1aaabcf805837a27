"""What acceptance tests share: a campaign on disk, background commands, and waiting for a condition."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

OBJECTIVES = '''
import math
import os
import time
from pathlib import Path


def sine(trial):
    return math.sin(trial.params["x"])


def gated(trial):
    """Reports, then waits until the file `go` exists: a test decides when trials end."""
    trial.report(1, loss=0.0)
    while not Path("go").exists():
        time.sleep(0.01)
        trial.report(2, loss=0.0)
    return math.sin(trial.params["x"])


def gated_but_the_first(trial):
    return math.sin(trial.params["x"]) if trial.number == 0 else gated(trial)


def failing(trial):
    print("about to fail")
    raise RuntimeError(f"no luck with {trial.params['x']}")


def dying(trial):
    if trial.number == 1:
        os.kill(os.getpid(), 11)
    return trial.params["x"]


def nan_when_negative(trial):
    return float("nan") if trial.params["x"] < 0 else trial.params["x"]
'''


def write_campaign(folder: Path, **changes: object) -> Path:
    """Write ``campaign.yaml`` and the module ``objectives`` it uses into a folder; return the file."""
    (folder / "objectives.py").write_text(OBJECTIVES)
    content: dict[str, object] = {
        "name": "sine",
        "objective": "objectives:sine",
        "metric": {"name": "loss", "mode": "min"},
        "space": {"x": {"float": [-2, 2]}},
        "search": {"algorithm": "random", "seed": 0},
        "budget": {"max_trials": 8},
    }
    content.update(changes)
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return file


@contextmanager
def background(folder: Path, store_uri: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of the service in the background; it is ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "autotune.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "AUTOTUNE_STORE": store_uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return when a condition holds; fail when it does not within `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{condition} did not hold within {timeout_s:g} s")
        time.sleep(0.02)


def one_line(text: str) -> str:
    """Return the only line of a text; fail when there are more."""
    [line] = [line for line in text.splitlines() if line.strip()]
    return line
