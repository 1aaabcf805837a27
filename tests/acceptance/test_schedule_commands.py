"""``autotune plan`` and ``autotune rungs``, as a user runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, result
from tests.acceptance.support import one_line, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]
HYPERBAND: dict[str, Any] = {"algorithm": "hyperband", "maximum": 9, "eta": 3}


def test_plan_shows_what_will_be_spent_and_writes_nothing(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = str(write_campaign(tmp_path, schedule=HYPERBAND, budget={"max_trials": 17}))
    done = run_cli("plan", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "sine: 17 trials, schedule hyperband"
    assert "9 to 1, 3 to 3, 1 to 9" in done.stdout
    assert "epochs: 69 of 153 without a schedule (55% saved)" in done.stdout
    found = json.loads(run_cli("plan", file, "--format", "json").stdout)
    assert [b["rungs"] for b in found["brackets"]] == [[[9, 1], [3, 3], [1, 9]], [[5, 3], [1, 9]], [[3, 9]]]
    assert [b["epochs"] for b in found["brackets"]] == [21, 21, 27]
    assert (found["name"], found["trials"], found["epochs"], found["full_epochs"]) == ("sine", 17, 69, 153)
    assert store.campaigns.find() == []


def test_plan_needs_no_store_and_takes_overrides(run_cli: Cli, tmp_path: Path) -> None:
    file = str(write_campaign(tmp_path, schedule=HYPERBAND))
    done = run_cli(
        "plan", file, "--set", "budget.max_trials=3", "--format", "json", AUTOTUNE_STORE="mongodb://127.0.0.1:1/nothing"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["brackets"][0]["rungs"] == [[3, 1], [1, 3], [1, 9]]


@pytest.mark.parametrize("algorithm", ["none", "median"])
def test_plan_of_a_schedule_whose_maximum_nobody_knows(run_cli: Cli, tmp_path: Path, algorithm: str) -> None:
    file = str(write_campaign(tmp_path, schedule={"algorithm": algorithm}))
    done = run_cli("plan", file)
    assert done.returncode == 0
    assert "as many as the objective trains" in done.stdout
    assert json.loads(run_cli("plan", file, "--format", "json").stdout)["epochs"] is None


def _three_at_the_first_rung(store: MongoStore, make_campaign: Callable[..., CampaignRecord]) -> None:
    """Trial 0 has gone on to its end, trial 1 was pruned, trial 2 waits, trial 3 runs."""
    make_campaign(schedule=HYPERBAND, max_trials=17)
    for number in range(4):
        store.trials.propose("demo", number, {"x": number / 9}, f"hash-{number}", seed=number, target=1)
        lease = claim(store, "demo")
        if number < 3:
            store.trials.pause(lease, 0.1 * number)
    store.trials.prune("demo", 1)
    for rung, target in ((1, 3), (2, None)):
        store.trials.promote("demo", 0, rung, target)
        lease = claim(store, "demo")
        if target is not None:
            store.trials.pause(lease, 0.05)
    store.trials.finish(lease, result(0.01), rung_score=0.01)


def test_rungs_shows_who_waits_for_whom(
    run_cli: Cli, store: MongoStore, make_campaign: Callable[..., CampaignRecord]
) -> None:
    _three_at_the_first_rung(store, make_campaign)
    done = run_cli("rungs", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "demo: schedule hyperband, compared by loss"
    assert lines[-1] == "epochs: 11 spent, 7 saved against training every trial to the end"
    found = json.loads(run_cli("rungs", "demo", "--format", "json").stdout)
    (bracket,) = found["brackets"]
    first, second, third = bracket["rungs"]
    assert (first["planned"], first["members"], first["running"], first["waiting"]) == (9, 4, 1, 1)
    assert (first["promoted"], first["pruned"], first["waits_for"], first["resource"]) == (1, 1, [3], 1)
    assert (second["members"], second["promoted"], third["finished"], third["resource"]) == (1, 1, 1, 9)
    assert (found["epochs"], found["epochs_saved"], found["metric"]) == (11, 7, "loss")


def test_rungs_before_anything_ran_and_without_a_schedule(
    run_cli: Cli, store: MongoStore, make_campaign: Callable[..., CampaignRecord]
) -> None:
    make_campaign("empty", schedule=HYPERBAND)
    make_campaign("plain")
    for name in ("empty", "plain"):
        done = run_cli("rungs", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(run_cli("rungs", name, "--format", "json").stdout)["name"] == name


def test_rungs_of_an_unknown_campaign(run_cli: Cli, make_campaign: Callable[..., CampaignRecord]) -> None:
    make_campaign("demo")
    done = run_cli("rungs", "dmeo")
    assert done.returncode == 3
    assert "dmeo" in one_line(done.stderr)
    assert done.stdout == ""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "hyperband", "maximun": 9}, "unknown setting 'maximun' of schedule hyperband"),
    ({"algorithm": "hyperban", "maximum": 9}, "did you mean 'hyperband'?"),
    ({"algorithm": "hyperband"}, "schedule hyperband needs maximum"),
    ({"algorithm": "asha", "maximum": 0}, "schedule setting maximum: 0 is not a whole number from 1 on"),
    ({"algorithm": "asha", "maximum": 9, "eta": 1}, "eta 1 is below 2"),
    ({"algorithm": "asha", "maximum": 9, "minimum": 10}, "maximum 9 is below its minimum 10"),
]


@pytest.mark.parametrize(("schedule", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_schedule(
    run_cli: Cli, store: MongoStore, tmp_path: Path, schedule: dict[str, Any], message: str
) -> None:
    done = run_cli("plan", str(write_campaign(tmp_path, schedule=schedule)))
    assert done.returncode == 2
    assert message in one_line(done.stderr)
    assert done.stdout == ""
    assert store.campaigns.find() == []


def test_launch_refuses_what_plan_refuses(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    done = run_cli("launch", str(write_campaign(tmp_path, schedule={"algorithm": "asha"})))
    assert done.returncode == 2
    assert "schedule asha needs maximum" in one_line(done.stderr)
    assert store.campaigns.find() == []


def test_a_metric_that_the_workload_does_not_report(run_cli: Cli, tmp_path: Path) -> None:
    space = {"n_hidden": {"int": [8, 16]}}
    schedule = {"algorithm": "hyperband", "maximum": 9, "metric": "elbo_validatoin"}
    done = run_cli("plan", str(write_campaign(tmp_path, objective="scvi", metric=None, space=space, schedule=schedule)))
    assert done.returncode == 2
    one_line(done.stderr)


def test_plan_of_a_file_that_is_not_there(run_cli: Cli) -> None:
    done = run_cli("plan", "nothing.yaml")
    assert done.returncode != 0
    assert "nothing.yaml" in one_line(done.stderr)
