"""Campaigns driven through the command line, as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.acceptance.support import background, one_line, until, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]


def _numbers(store: MongoStore, name: str = "sine") -> list[int]:
    return [t.number for t in store.trials.find(name)]


def test_a_campaign_runs_from_file_to_tables(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, budget={"max_trials": 30}, search={"algorithm": "tpe", "seed": 0, "startup": 10})
    done = run_cli("launch", str(file), "--workers", "1", "--slots-per-device", "2", "--out", "tables")
    assert done.returncode == 0, done.stderr
    assert "Best 10 of 30" in done.stdout
    assert "Worst 10 of 30" in done.stdout
    assert _numbers(store) == list(range(30))
    assert store.campaigns.get("sine").state is CampaignState.FINISHED
    names = {p.name for p in (tmp_path / "tables").iterdir()}
    assert {"best.csv", "best.md", "best.tex", "worst.csv", "run_time.csv", "trials.csv"} <= names

    listed = json.loads(run_cli("trials", "sine", "--sort", "loss", "--format", "json").stdout)
    scores = [t["metrics"]["loss"]["value"] for t in listed]
    assert len(listed) == 30
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(-1.0, abs=0.05)
    few = run_cli("trials", "sine", "--where", "x<0", "--limit", "2", "--columns", "number,x", "--format", "csv")
    assert few.stdout.splitlines()[0] == "number,x"
    assert len(few.stdout.splitlines()) == 3
    status = json.loads(run_cli("status", "sine", "--format", "json").stdout)
    assert status["state"] == "finished"
    assert status["trials"] == {"finished": 30}
    timing = json.loads(run_cli("status", "sine", "--timing", "--format", "json").stdout)
    assert [p["phase"] for p in timing] == ["queue", "server", "start", "load", "train", "finish"]
    assert sum(p["share"] or 0 for p in timing) == pytest.approx(1.0)
    assert "wait for the fork server" in run_cli("status", "sine", "--timing").stdout
    shown = json.loads(run_cli("show", "sine", "3", "--format", "json").stdout)
    assert shown["number"] == 3
    assert len(shown["attempts"]) == 1
    again = run_cli("launch", str(file))
    assert again.returncode == 0
    assert "Best 10 of 30" in again.stdout


def test_a_campaign_without_processes_of_its_trials(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, isolation="none", budget={"max_trials": 200})
    done = run_cli("launch", str(file), "--workers", "1", "--slots-per-device", "2")
    assert done.returncode == 0, done.stderr
    assert _numbers(store) == list(range(200))
    timing = json.loads(run_cli("status", "sine", "--timing", "--format", "json").stdout)
    assert [p["phase"] for p in timing] == ["queue", "train", "finish"]
    bad = run_cli("launch", str(file), "--set", "name=other", "--set", "limits.trial_s=3")
    assert bad.returncode == 2
    assert "isolation: without a process of its own a trial cannot be ended by limits" in bad.stderr
    assert "phase" not in run_cli("status", "nobody", "--timing").stdout


def test_a_second_worker_joins_while_it_runs(run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:gated", budget={"max_trials": 6})
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "1") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.RUNNING) == 1)
        with background(tmp_path, store_uri, "worker", "--devices", "cpu") as worker:
            until(lambda: store.trials.counts("sine").get(TrialState.RUNNING) == 2)
            assert run_cli("trials", "sine", "--sort", "loss").returncode == 0
            (tmp_path / "go").touch()
            assert launch.wait(60) == 0
            assert worker.poll() is None
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
    trials = store.trials.find("sine")
    assert [t.number for t in trials] == list(range(6))
    assert {t.state for t in trials} == {TrialState.FINISHED}
    assert len({t.attempts[0].owner for t in trials}) == 2


def test_ctrl_c_gives_trials_back_and_resume_goes_on_to_the_budget(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, objective="objectives:gated", budget={"max_trials": 5})
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "2") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.RUNNING) == 2)
        launch.send_signal(signal.SIGINT)
        assert launch.wait(60) == 130
        assert "autotune resume sine" in launch.stderr.read()
    assert store.campaigns.get("sine").state is CampaignState.PAUSED
    assert set(store.trials.counts("sine")) == {TrialState.QUEUED}
    assert store.workers.live() == []
    assert {a.cause for t in store.trials.find("sine") for a in t.attempts} == {"preempted"}

    (tmp_path / "go").touch()
    done = run_cli("resume", "sine", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert _numbers(store) == list(range(5))
    assert store.trials.counts("sine") == {TrialState.FINISHED: 5}


def test_the_background_processes_go_when_launch_is_killed(store: MongoStore, store_uri: str, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:gated")
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "1") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.RUNNING) == 1)
        launch.kill()
        until(lambda: store.trials.counts("sine").get(TrialState.RUNNING) is None)
        until(lambda: store.workers.live() == [])
        until(lambda: store.leaders.leader("sine") is None)


def test_detached_campaigns_run_in_the_background(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path)
    done = run_cli("launch", str(file), "--detach")
    assert done.returncode == 0, done.stderr
    assert "in the background" in done.stderr
    until(lambda: store.campaigns.get("sine").state is CampaignState.FINISHED)
    until(lambda: store.workers.live() == [])
    assert _numbers(store) == list(range(8))


def test_a_detached_worker_that_refuses_the_campaign_is_told(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    """Also where somebody leads already, so that the worker is the only one that is waited for."""
    file = write_campaign(tmp_path)
    assert run_cli("launch", str(file), "--workers", "0", "--detach").returncode == 0
    until(lambda: store.leaders.leader("sine") is not None)
    (tmp_path / "objectives.py").write_text("def sine(trial):\n    return 0.0\n")
    done = run_cli("resume", "sine", "--detach")
    assert done.returncode == 1
    assert "the worker-0 ended at once" in done.stderr
    assert "source of" in done.stderr
    store.campaigns.set_state("sine", CampaignState.CANCELLED, expected=[CampaignState.RUNNING])
    until(lambda: store.leaders.leader("sine") is None)


def test_a_small_space_ends_as_exhausted(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    space = {"x": {"choice": [0.0, 1.0, 2.0]}, "y": {"int": [1, 4]}}
    file = write_campaign(tmp_path, space=space, budget={"max_trials": 100}, search={"algorithm": "tpe", "seed": 0})
    done = run_cli("launch", str(file), "--slots-per-device", "2")
    assert done.returncode == 0, done.stderr
    assert "space exhausted after 12 of 100 trials" in done.stderr
    assert _numbers(store) == list(range(12))
    assert len({t.config_hash for t in store.trials.find("sine")}) == 12


def test_failures_are_told_with_cause_traceback_and_log(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:failing", failures={"abort_after": 3})
    done = run_cli("launch", str(file))
    assert done.returncode == 6
    assert "the first 3 trials all failed (error)" in done.stderr
    assert store.campaigns.get("sine").state is CampaignState.FAILED
    attempt = store.trials.get("sine", 0).attempts[0]
    assert attempt.cause == "error"
    assert attempt.message is not None
    assert attempt.message.startswith("RuntimeError: no luck with")
    assert "objectives.py" in (attempt.traceback or "")
    assert "about to fail" in (attempt.log_tail or "")
    shown = run_cli("show", "sine", "0").stdout
    assert "no luck with" in shown
    assert "about to fail" in shown
    assert "active" not in {t.state for t in store.trials.find("sine")}
    assert store.trials.counts("sine").get(TrialState.RUNNING) is None


def test_a_training_that_dies_by_a_signal_fails_and_the_worker_lives_on(
    run_cli: Cli, store: MongoStore, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, objective="objectives:dying", budget={"max_trials": 4})
    done = run_cli("launch", str(file))
    assert done.returncode == 0, done.stderr
    assert store.trials.counts("sine") == {TrialState.FINISHED: 3, TrialState.FAILED: 1}
    failed = store.trials.get("sine", 1)
    assert failed.attempts[0].exit_code == -11
    assert "SIGSEGV" in (failed.attempts[0].message or "")
    assert len({a.owner for t in store.trials.find("sine") for a in t.attempts}) == 1


def test_nan_scores_come_last(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:nan_when_negative", budget={"max_trials": 12})
    done = run_cli("launch", str(file))
    assert done.returncode == 0, done.stderr
    failed = store.trials.find("sine", [TrialState.FAILED])
    assert failed
    assert {t.attempts[0].cause for t in failed} == {"not-a-number"}
    listed = json.loads(run_cli("trials", "sine", "--sort", "loss", "--format", "json").stdout)
    states = [t["state"] for t in listed]
    assert states == sorted(states, key=lambda s: s == "failed")


def test_an_objective_that_cannot_be_imported_fails_the_trial_only(
    store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, objective="nowhere:train", failures={"abort_after": 2})
    good = write_campaign(tmp_path, name="good").rename(tmp_path / "good.yaml")
    file = write_campaign(tmp_path, objective="nowhere:train", failures={"abort_after": 2})
    worker_options = ["--devices", "cpu", "--allow-objective", "nowhere"]
    with background(tmp_path, store_uri, "worker", *worker_options) as worker:
        with background(tmp_path, store_uri, "launch", str(file), "--workers", "0") as launch:
            assert launch.wait(60) == 6
        attempt = store.trials.get("sine", 0).attempts[0]
        assert attempt.cause == "error"
        assert "cannot import the objective 'nowhere:train'" in (attempt.message or "")
        with background(tmp_path, store_uri, "launch", str(good), "--workers", "0") as launch:
            assert launch.wait(60) == 0
        assert worker.poll() is None
    assert len({a.owner for n in ("sine", "good") for t in store.trials.find(n) for a in t.attempts}) == 1


def test_pause_and_cancel(run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path) -> None:
    lease = {"duration_s": 2, "renewal_s": 0.2}
    file = write_campaign(tmp_path, objective="objectives:gated", lease=lease)
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "0") as launch:
        until(lambda: store.campaigns.find() and store.leaders.leader("sine"))
        assert run_cli("pause", "sine").stdout == "campaign 'sine' is paused\n"
        assert run_cli("pause", "sine").stdout == "campaign 'sine' was paused already\n"
        assert launch.wait(30) == 7
    with background(tmp_path, store_uri, "resume", "sine", "--workers", "1") as resume:
        until(lambda: store.trials.counts("sine").get(TrialState.RUNNING) == 1)
        assert run_cli("cancel", "sine").returncode == 0
        assert resume.wait(30) == 6
    assert set(store.trials.counts("sine")) == {TrialState.CANCELLED}
    refused = run_cli("resume", "sine")
    assert refused.returncode == 2
    assert "is cancelled" in one_line(refused.stderr)
    assert [e["action"] for e in store.campaigns.events("sine")] == ["create", "paused", "running", "cancelled"]


def test_pause_lets_running_trials_end(run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:gated")
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "2") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.RUNNING) == 2)
        assert run_cli("pause", "sine").returncode == 0
        (tmp_path / "go").touch()
        assert launch.wait(30) == 7
    counts = store.trials.counts("sine")
    assert counts[TrialState.FINISHED] == 2
    assert set(counts) <= {TrialState.FINISHED, TrialState.QUEUED}
    assert [a.cause for t in store.trials.find("sine") for a in t.attempts] == [None, None]


def test_the_objective_is_found_beside_the_file_also_on_resume(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    write_campaign(tmp_path / "sub", objective="objectives:gated", budget={"max_trials": 3})
    with background(tmp_path, store_uri, "launch", "sub/campaign.yaml") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.RUNNING) == 1)
        launch.send_signal(signal.SIGINT)
        assert launch.wait(60) == 130
    (tmp_path / "go").touch()
    assert run_cli("resume", "sine").returncode == 0
    assert store.trials.counts("sine") == {TrialState.FINISHED: 3}


def test_a_worker_that_cannot_load_the_objective_burns_no_trials_of_a_campaign_that_works_elsewhere(
    store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, objective="objectives:gated_but_the_first", budget={"max_trials": 6})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with background(tmp_path, store_uri, "launch", str(file), "--workers", "1") as launch:
        until(lambda: store.campaigns.find() and store.trials.counts("sine").get(TrialState.FINISHED, 0) >= 1)
        options = ["--devices", "cpu", "--once", "--campaign", "sine"]
        with background(elsewhere, store_uri, "worker", *options) as worker:
            assert worker.wait(60) == 1
            assert "--allow-objective objectives" in worker.stderr.read()
        with background(elsewhere, store_uri, "worker", *options, "--allow-objective", "objectives") as worker:
            assert worker.wait(60) == 1
            assert "cannot load the objective of 'sine'" in worker.stderr.read()
        (tmp_path / "go").touch()
        assert launch.wait(60) == 0
    assert store.trials.counts("sine") == {TrialState.FINISHED: 6}
    lost = [a for t in store.trials.find("sine") for a in t.attempts if a.cause]
    assert [a.cause for a in lost] == ["lost"]


def test_ctrl_c_while_the_store_is_away(tmp_path: Path) -> None:
    environment = {**os.environ, "AUTOTUNE_HOME": str(tmp_path / "home")}
    environment.pop("AUTOTUNE_STORE", None)

    def autotune(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "autotune.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    file = write_campaign(tmp_path, objective="objectives:gated", budget={"max_trials": 2})
    launch = subprocess.Popen(
        [sys.executable, "-m", "autotune.cli.main", "launch", str(file)],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: '"running": 1' in autotune("status", "sine", "--format", "json").stdout)
        down = autotune("store", "down")
        assert "workers serve sine" in down.stderr
        launch.send_signal(signal.SIGINT)
        assert launch.wait(60) == 130
        assert launch.stderr is not None
        assert "the store does not answer" in launch.stderr.read()
        (tmp_path / "go").touch()
        assert autotune("resume", "sine").returncode == 0
    finally:
        launch.kill()
        launch.communicate()
        autotune("store", "down")


def test_the_same_name_with_another_file_is_refused(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    assert run_cli("launch", str(write_campaign(tmp_path, budget={"max_trials": 2}))).returncode == 0
    other = run_cli("launch", str(write_campaign(tmp_path, budget={"max_trials": 3})))
    assert other.returncode == 2
    assert "already in this store with another definition" in one_line(other.stderr)
    assert _numbers(store) == [0, 1]


def test_output_into_a_closed_pipe_is_no_error(run_cli: Cli, store_uri: str, tmp_path: Path) -> None:
    assert run_cli("launch", str(write_campaign(tmp_path))).returncode == 0
    done = subprocess.run(
        "python -m autotune.cli.main trials sine --format json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "AUTOTUNE_STORE": store_uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr
