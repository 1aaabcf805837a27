"""Wrong input: one clear line, an exit code that is not 0, and nothing half-written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store.mongo import MongoStore
from tests.acceptance.support import one_line, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]

CASES: list[tuple[dict[str, object], str]] = [
    ({"budgte": {"max_trials": 3}}, "unknown key 'budgte'; did you mean 'budget'?"),
    ({"budget": {"max_trial": 3}}, "unknown key 'max_trial' in 'budget'; did you mean 'max_trials'?"),
    ({"budget": {"max_trials": 0}}, "budget.max_trials: input should be greater than or equal to 1, not 0"),
    ({"budget": None}, "key 'budget' is missing"),
    ({"space": {}}, "space has no parameters"),
    ({"space": {"x": {"flaot": [0, 1]}}}, "did you mean 'float'?"),
    ({"space": {"x": {"float": [2, 1]}}}, "x"),
    ({"space": "default"}, "has no default space"),
    ({"search": {"algorithm": "tpee"}}, "did you mean 'tpe'?"),
    ({"search": {"algorithm": "grid"}}, "grid"),
    ({"schedule": {"algorithm": "fast"}}, "unknown schedule 'fast'"),
    ({"metric": None}, "key 'metric' is missing"),
    ({"metric": {"name": "loss", "mode": "least"}}, "metric.mode"),
    ({"name": "a name"}, "name: use up to 80 letters"),
    ({"fixed": {"x": 1}}, "'x' is both in space and in fixed"),
    ({"objective": "scvo"}, "there is no workload 'scvo'; did you mean 'scvi'?"),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[str(c) for c, _ in CASES])
def test_a_wrong_campaign_file(
    run_cli: Cli, store: MongoStore, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    done = run_cli("launch", str(write_campaign(tmp_path, **changes)))
    assert done.returncode == 2
    assert message in one_line(done.stderr)
    assert store.campaigns.find() == []


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "-1"],
        ["--slots-per-device", "0"],
        ["--devices", "gpu one"],
        ["--workers", "many"],
        ["--detach", "--out", "tables"],
        ["--set", "budget"],
    ],
)
def test_wrong_options_write_nothing(run_cli: Cli, store: MongoStore, tmp_path: Path, options: list[str]) -> None:
    done = run_cli("launch", str(write_campaign(tmp_path)), *options)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert store.campaigns.find() == []


def test_a_device_that_is_not_there_is_said_when_nothing_can_work(
    run_cli: Cli, store: MongoStore, tmp_path: Path
) -> None:
    file = str(write_campaign(tmp_path))
    for detach in ([], ["--detach"]):
        done = run_cli("launch", file, "--devices", "977", *detach, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 1
        assert "there is no GPU 977 here" in done.stderr.splitlines()[-1]
    assert store.trials.counts("sine") == {}


def test_a_file_that_is_missing_or_no_yaml(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("launch", "nowhere.yaml")
    assert done.returncode == 2
    assert "there is no campaign file nowhere.yaml" in one_line(done.stderr)
    (tmp_path / "broken.yaml").write_text("name: [a")
    done = run_cli("launch", "broken.yaml")
    assert done.returncode == 2
    assert "is not valid YAML" in one_line(done.stderr)


def test_an_unreachable_store_names_the_address_and_never_the_password(run_cli: Cli, tmp_path: Path) -> None:
    file = write_campaign(tmp_path)
    done = run_cli("launch", str(file), "--store", "mongodb://user:secret@127.0.0.1:9/x", timeout_s=20)
    assert done.returncode == 4
    assert "no answer from the store at mongodb://127.0.0.1:9/x" in one_line(done.stderr)
    assert "secret" not in done.stderr


def test_an_unknown_command_campaign_trial_and_column(run_cli: Cli, tmp_path: Path) -> None:
    assert "did you mean 'launch'?" in run_cli("lanch").stderr
    assert run_cli("launch", str(write_campaign(tmp_path))).returncode == 0
    done = run_cli("trials", "sin")
    assert done.returncode == 3
    assert "did you mean 'sine'?" in one_line(done.stderr)
    assert run_cli("show", "sine", "99").returncode == 3
    done = run_cli("trials", "sine", "--sort", "los")
    assert done.returncode == 2
    assert "did you mean 'loss'?" in one_line(done.stderr)


def test_a_trace_only_on_demand(run_cli: Cli, tmp_path: Path) -> None:
    assert "Traceback" not in run_cli("launch", "nowhere.yaml").stderr
    assert "Traceback" in run_cli("launch", "nowhere.yaml", AUTOTUNE_DEBUG="1").stderr
