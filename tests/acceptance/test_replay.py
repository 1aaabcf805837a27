"""``autotune replay``: a trial is run again as its last attempt was, wherever that can matter."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from autotune.store.mongo import MongoStore
from tests.acceptance.support import background, one_line, until, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]

THREADED = '''

def threaded(trial):
    """Its score is what a sum's last bits are: another one with another number of threads."""
    return trial.threads + trial.seed % 100 / 1000
'''


def test_a_trial_is_replayed_with_the_threads_that_it_had(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, objective="objectives:threaded", budget={"max_trials": 1})
    with open(tmp_path / "objectives.py", "a") as module:
        module.write(THREADED)
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "0"):
        until(store.campaigns.find)
        worker = ("worker", "--campaign", "sine", "--once", "--devices", "cpu", "--threads", "7")
        assert run_cli(*worker).returncode == 0
        until(lambda: store.trials.best("sine", "min"))
    [trial] = store.trials.find("sine")
    assert [attempt.threads for attempt in trial.attempts] == [7]
    assert trial.score is not None
    assert int(trial.score) == 7

    done = run_cli("replay", "sine", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"loss of trial 0: {trial.score!r} then, {trial.score!r} now\nequal within 0 (difference 0)\n"
    done = run_cli("replay", "sine", "0", "--threads", "2")
    assert done.returncode == 1
    assert "trained with 7 CPU threads, here with 2" in one_line(done.stderr)
