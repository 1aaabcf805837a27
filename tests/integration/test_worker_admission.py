"""Which campaigns a worker process serves, what it says of the others, and what is kept of each attempt."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.installed import versions
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState
from tests.objectives.support import (
    ENDINGS,
    ROOT,
    assert_exact,
    coordinating,
    process,
    wait_until,
    worker_command,
)

Make = Callable[..., CampaignRecord]

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def demo(make_campaign: Make, tmp_path: Path) -> CampaignRecord:
    fixed = {"do": "square", "folder": str(tmp_path)}
    search = {"algorithm": "random", "seed": 0}
    return make_campaign(objective=f"{ENDINGS}:chosen", fixed=fixed, search=search, max_trials=3)


def set_environment(store: MongoStore, key: str, value: Any) -> None:
    store.connection.database["campaigns"].update_one({"_id": "demo"}, {"$set": {f"environment.{key}": value}})


def refusals(store: MongoStore) -> dict[str, str]:
    return {name: reason for worker in store.workers.live() for name, reason in worker.refusals.items()}


def lines_with(log: Path, text: str) -> list[str]:
    return [line for line in ANSI.sub("", log.read_text()).splitlines() if text in line]


def wait_for_finish(store: MongoStore) -> None:
    wait_until(lambda: store.campaigns.get("demo").state is CampaignState.FINISHED, "end of the campaign", 60)


@pytest.mark.parametrize(
    ("key", "differs", "named"),
    [
        ("versions.numpy", "0.0.1", f"numpy {versions()['numpy'].partition('+')[0]} here, 0.0.1 in the campaign"),
        ("objective_hash", "f" * 64, f"source of '{ENDINGS}:chosen'"),
    ],
)
def test_other_versions_or_source_are_refused_until_they_match(
    store: MongoStore, store_uri: str, demo: CampaignRecord, tmp_path: Path, key: str, differs: str, named: str
) -> None:
    section, _, part = key.partition(".")
    right = demo.environment[section][part] if part else demo.environment[section]
    set_environment(store, key, differs)
    log = tmp_path / "log"
    with coordinating(store), process(worker_command(), store_uri, log):
        reason = wait_until(lambda: refusals(store).get("demo"), "the refusal in the store")
        assert named in reason
        assert "--allow-mismatch" in reason
        assert "\n" not in reason
        (line,) = wait_until(lambda: lines_with(log, reason), "the refusal in the log")
        assert "it serves this campaign no more" in line
        assert not any(trial.claims for trial in store.trials.find("demo"))
        set_environment(store, key, right)
        wait_for_finish(store)
        assert refusals(store) == {}
    assert [t.attempts[0].mismatch for t in assert_exact(store, 3)] == [()] * 3
    assert len(lines_with(log, named)) == 1


def test_campaign_that_comes_to_differ_is_refused_from_then_on(
    store: MongoStore, store_uri: str, demo: CampaignRecord, tmp_path: Path
) -> None:
    """Launched again from a host with other packages: what was served before is judged anew."""
    with process(worker_command(), store_uri, tmp_path / "log"):
        with coordinating(store):
            wait_for_finish(store)
        set_environment(store, "versions.numpy", "0.0.1")
        store.connection.database["campaigns"].update_one({"_id": "demo"}, {"$set": {"state": "running"}})
        wait_until(lambda: "numpy" in refusals(store).get("demo", ""), "the refusal")
        store.trials.propose("demo", 3, {"x": 0.5}, "hash", seed=0)
        set_environment(store, "versions.numpy", "0.0.2")
        wait_until(lambda: "0.0.2" in refusals(store).get("demo", ""), "a second look")
    assert store.trials.get("demo", 3).claims == 0


def test_worker_that_ends_by_itself_says_what_it_refused(
    store: MongoStore, store_uri: str, demo: CampaignRecord, tmp_path: Path
) -> None:
    set_environment(store, "versions.numpy", "0.0.1")
    log = tmp_path / "log"
    with process(worker_command("--once", "--campaign", "demo"), store_uri, log) as worker:
        assert worker.wait(60) == 1
    assert "numpy" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()


def test_what_is_kept_of_each_attempt(store: MongoStore, store_uri: str, demo: CampaignRecord, tmp_path: Path) -> None:
    set_environment(store, "versions.numpy", "0.0.1")
    command = worker_command("--allow-mismatch", "--slots-per-device", "2", "--once", "--campaign", "demo")
    with coordinating(store), process(command, store_uri, tmp_path / "log") as worker:
        assert worker.wait(60) == 0
    assert refusals(store) == {}
    for trial in assert_exact(store, 3):
        (attempt,) = trial.attempts
        here = versions()["numpy"].partition("+")[0]
        assert attempt.mismatch == (f"numpy {here} here, 0.0.1 in the campaign",)
        assert attempt.versions == versions()
        assert (attempt.host, attempt.device, attempt.share) == (socket.gethostname(), "cpu", 0.5)


OTHERS = ["os:system", "builtins:eval", "subprocess:run", "planted:f", f"{ENDINGS}:os.system.__call__", "a b:c", ":"]


def test_objectives_from_elsewhere_never_run(
    store: MongoStore, store_uri: str, make_campaign: Make, tmp_path: Path
) -> None:
    """Neither Python's own functions nor a module that anybody may have put into a folder of `sys.path`."""
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath(__file__).with_name('imported').touch()\n")
    campaigns = store.connection.database["campaigns"]
    for index, objective in enumerate(OTHERS):
        name = f"bad-{index}"
        make_campaign(name, max_trials=1)
        campaigns.update_one({"_id": name}, {"$set": {"spec.objective": objective, "environment": {}}})
        store.trials.propose(name, 0, {"x": 1.0}, "hash", seed=0)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with process(worker_command("--allow-mismatch"), store_uri, tmp_path / "log", PYTHONPATH=path):
        wait_until(lambda: len(refusals(store)) == len(OTHERS), "refusal of all")
    for index, reason in enumerate(refusals(store)[f"bad-{n}"] for n in range(len(OTHERS))):
        assert "\n" not in reason
        assert f"bad-{index}" in reason
        assert store.trials.get(f"bad-{index}", 0).claims == 0
    assert not (tmp_path / "imported").exists()
