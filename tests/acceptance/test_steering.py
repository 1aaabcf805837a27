"""Steering through the command line while agents run: what it does, how soon, and what a second call says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, failure, result
from autotune.trial import CampaignState, Cause, TrialState
from tests.acceptance.support import background, one_line, until, write_campaign

Cli = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., CampaignRecord]

EFFECT_S = 10.0
"""What a person does shows its effect within so many seconds."""

MENDED = '''

def mended(trial):
    """Trial 0 fails until the file `mended` exists; the others wait for the file `go`."""
    if trial.number == 0:
        if not Path("mended").exists():
            raise RuntimeError("not mended yet")
        return 0.0
    Path("pid").write_text(str(os.getpid()))
    return gated(trial)
'''


REPLAYED = """

def seeded(trial):
    import random

    if trial.number == 1:
        raise RuntimeError("never")
    return random.random() + (0.5 if Path("changed").exists() else 0.0)
"""


def campaign_file(folder: Path, **changes: object) -> Path:
    file = write_campaign(folder, objective="objectives:mended", **{"failures": {"abort_after": 0}, **changes})
    with open(folder / "objectives.py", "a") as module:
        module.write(MENDED)
    return file


@contextmanager
def agents(folder: Path, store_uri: str, file: Path, slots: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Run the coordinator of a campaign, and a worker that outlives it; give the process that follows the campaign."""
    with ExitStack() as stack:
        worker = ["worker", "--devices", "cpu", "--slots-per-device", str(slots)]
        stack.enter_context(background(folder, store_uri, *worker))
        yield stack.enter_context(background(folder, store_uri, "launch", str(file), "--workers", "0"))


def count(store: MongoStore, state: TrialState) -> int:
    return store.trials.counts("sine").get(state, 0) if store.campaigns.find() else 0


def state_of(store: MongoStore, number: int) -> str:
    return {t.number: str(t.state) for t in store.trials.find("sine")}.get(number, "absent")


def actions(store: MongoStore, name: str = "sine") -> list[str]:
    return [e["action"] for e in store.campaigns.events(name)]


def test_retry_and_extend_and_enqueue_while_agents_run(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = campaign_file(tmp_path, budget={"max_trials": 2})
    with agents(tmp_path, store_uri, file, slots=2) as launch:
        until(lambda: count(store, TrialState.FAILED) == 1 and count(store, TrialState.RUNNING) == 1)
        (tmp_path / "mended").touch()
        assert run_cli("retry", "sine", "--where", "cause=error", "--dry-run").stdout == (
            "would queue 1 trial of campaign 'sine' again: 0\n"
        )
        assert run_cli("retry", "sine", "--where", "cause=error").stdout == (
            "1 trial of campaign 'sine' is queued again: 0\n"
        )
        until(lambda: state_of(store, 0) == "finished", EFFECT_S)
        again = run_cli("retry", "sine", "--where", "cause=error")
        assert (again.returncode, again.stdout) == (0, "campaign 'sine' has no such failed or cancelled trial\n")

        assert run_cli("extend", "sine", "--trials", "3").stdout == "campaign 'sine' has a budget of 3 trials\n"
        until(lambda: count(store, TrialState.RUNNING) == 2, EFFECT_S)
        again = run_cli("extend", "sine", "--trials", "3")
        assert (again.returncode, again.stdout) == (0, "campaign 'sine' had this budget already: 3 trials\n")

        assert run_cli("extend", "sine", "--trials", "4").returncode == 0
        assert run_cli("enqueue", "sine", "x=1.5").stdout == "trial 3 is queued\n"
        again = run_cli("enqueue", "sine", "x=1.5")
        assert (again.returncode, again.stdout) == (0, "trial 3 has this configuration already\n")
        (tmp_path / "go").touch()
        until(lambda: state_of(store, 3) == "finished", EFFECT_S)
        assert launch.wait(60) == 0
    trials = store.trials.find("sine")
    assert [(t.state, str(t.origin)) for t in trials] == [(TrialState.FINISHED, "search")] * 3 + [
        (TrialState.FINISHED, "person")
    ]
    assert trials[3].params == {"x": 1.5}
    assert [t.claims for t in trials] == [2, 1, 1, 1]
    assert actions(store) == ["create", "retry", "extend", "extend", "enqueue", "finished"]


def test_pause_resume_and_cancel_while_agents_run(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    """With the default lease of 30 s: what is cancelled stops at once, not when its lease is renewed next."""
    (tmp_path / "mended").touch()
    file = campaign_file(tmp_path, budget={"max_trials": 5})
    with agents(tmp_path, store_uri, file) as launch:
        until(lambda: (tmp_path / "pid").exists())
        assert run_cli("pause", "sine").stdout == "campaign 'sine' is paused\n"
        assert launch.wait(EFFECT_S) == 7
        assert run_cli("pause", "sine").stdout == "campaign 'sine' was paused already\n"
        assert count(store, TrialState.RUNNING) == 1, "what runs goes on"
        queued = run_cli("enqueue", "sine", "--like", "1", "x=0.125").stdout
        assert queued.endswith("is queued; the campaign is paused, go on with: autotune resume sine\n")
        with background(tmp_path, store_uri, "resume", "sine", "--workers", "0") as resume:
            until(lambda: store.campaigns.get("sine").state is CampaignState.RUNNING, EFFECT_S)
            pid = int((tmp_path / "pid").read_text())
            cancelled = run_cli("cancel", "sine")
            assert cancelled.returncode == 0
            assert one_line(cancelled.stdout).startswith("campaign 'sine' is cancelled;")
            until(lambda: not _lives(pid), EFFECT_S)
            assert resume.wait(EFFECT_S) == 6
        assert run_cli("cancel", "sine").stdout == "campaign 'sine' was cancelled already\n"
    assert count(store, TrialState.RUNNING) == count(store, TrialState.QUEUED) == 0
    assert actions(store) == ["create", "paused", "enqueue", "running", "cancelled"]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_finished_campaign_is_extended_and_goes_on(
    run_cli: Cli, store: MongoStore, store_uri: str, tmp_path: Path
) -> None:
    file = write_campaign(tmp_path, budget={"max_trials": 3})
    with background(tmp_path, store_uri, "worker", "--devices", "cpu"):
        assert run_cli("launch", str(file), "--workers", "0").returncode == 0
        said = run_cli("extend", "sine", "--trials", "5").stdout
        assert one_line(said) == (
            "campaign 'sine' has a budget of 5 trials and runs again; "
            "autotune resume sine --workers K starts local processes if none serve it"
        )
        assert run_cli("resume", "sine", "--workers", "0").returncode == 0
        assert count(store, TrialState.FINISHED) == 5
        again = run_cli("extend", "sine", "--trials", "5")
        assert (again.returncode, again.stdout) == (0, "campaign 'sine' had this budget already: 5 trials\n")
    assert store.campaigns.get("sine").state is CampaignState.FINISHED
    assert [t.number for t in store.trials.find("sine")] == list(range(5))
    assert actions(store) == ["create", "finished", "extend", "finished"]


def test_a_failed_campaign_is_mended_and_retried(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = campaign_file(tmp_path, budget={"max_trials": 1})
    assert run_cli("launch", str(file)).returncode == 6
    assert store.campaigns.get("sine").state is CampaignState.FAILED
    said = one_line(run_cli("extend", "sine", "--trials", "2").stdout)
    assert said.endswith("it is failed and stays so until: autotune retry sine --all")
    (tmp_path / "mended").touch()
    (tmp_path / "go").touch()
    said = one_line(run_cli("retry", "sine", "--all").stdout)
    assert said.startswith("1 trial of campaign 'sine' is queued again: 0; it runs again, autotune resume sine")
    assert run_cli("resume", "sine").returncode == 0
    assert store.trials.counts("sine") == {TrialState.FINISHED: 2}


Expected = tuple[int, str]
STATES: dict[str, dict[str, tuple[Expected, Expected]]] = {
    "running": {
        "extend": ((0, "has a budget of 9 trials"), (0, "had this budget already")),
        "enqueue": ((0, "trial 2 is queued"), (0, "trial 2 has this configuration already")),
        "retry": ((0, "1 trial of campaign 'demo' is queued again"), (0, "no such failed or cancelled trial")),
        "pause": ((0, "is paused"), (0, "was paused already")),
        "cancel": ((0, "is cancelled; 2 trials were dropped"), (0, "was cancelled already")),
    },
    "paused": {
        "extend": ((0, "it is paused, go on with: autotune resume demo"), (0, "had this budget already")),
        "enqueue": ((0, "trial 2 is queued; the campaign is paused"), (0, "trial 2 has this configuration already")),
        "retry": ((0, "is queued again: 1; it is paused"), (0, "no such failed or cancelled trial")),
        "pause": ((0, "was paused already"), (0, "was paused already")),
        "cancel": ((0, "is cancelled; 2 trials were dropped"), (0, "was cancelled already")),
    },
    "finished": {
        "enqueue": ((2, "extend it first"), (2, "extend it first")),
        "pause": ((2, "is finished"), (2, "is finished")),
        "cancel": ((2, "is finished"), (2, "is finished")),
        "retry": ((0, "it runs again"), (0, "no such failed or cancelled trial")),
        "extend": ((0, "has a budget of 9 trials"), (0, "had this budget already")),
    },
    "failed": {
        "pause": ((2, "is failed"), (2, "is failed")),
        "cancel": ((2, "is failed"), (2, "is failed")),
        "enqueue": ((2, "first: autotune retry demo --all"), (2, "first: autotune retry demo --all")),
        "extend": ((0, "it is failed and stays so until"), (0, "had this budget already")),
        "retry": ((0, "it runs again"), (0, "no such failed or cancelled trial")),
    },
    "cancelled": {
        "pause": ((2, "is cancelled"), (2, "is cancelled")),
        "extend": ((2, "is cancelled"), (2, "is cancelled")),
        "enqueue": ((2, "is cancelled"), (2, "is cancelled")),
        "retry": ((2, "is cancelled"), (2, "is cancelled")),
        "cancel": ((0, "was cancelled already"), (0, "was cancelled already")),
    },
}
ARGUMENTS = {"extend": ["--trials", "9"], "enqueue": ["x=1"], "retry": ["--where", "state!=finished"]}


@pytest.mark.parametrize("state", STATES)
def test_each_command_twice_in_each_state(run_cli: Cli, store: MongoStore, make_campaign: Make, state: str) -> None:
    make_campaign("demo")
    for number, cause in enumerate([None, Cause.ERROR]):
        store.trials.propose("demo", number, {"x": number - 2}, f"hash-{number}", seed=0)
        lease = claim(store, "demo")
        if cause is None:
            store.trials.finish(lease, result(1.0))
        else:
            store.trials.end_attempt(lease, failure(cause))
    if state != "running":
        store.campaigns.set_state("demo", CampaignState(state), expected=[CampaignState.RUNNING], message="why")
    for command, twice in STATES[state].items():
        for code, said in twice:
            before = len(store.campaigns.events("demo"))
            done = run_cli(command, "demo", *ARGUMENTS.get(command, []))
            assert (done.returncode, said in one_line(done.stdout + done.stderr)) == (code, True), (command, done)
            changed = code == 0 and not any(text in said for text in ("already", "no such"))
            reopens = command == "retry" and state in ("finished", "failed")
            assert len(store.campaigns.events("demo")) - before == (3 if reopens else 1) * changed, command


WRONG: list[tuple[list[str], int, str]] = [
    (["extend", "demo"], 2, "--trials N, --hours H or --device-hours H"),
    (["extend", "demo", "--trials", "0"], 2, "from 1 to 1000000, not 0"),
    (["extend", "demo", "--hours", "nan"], 2, "max_hours must be a number above 0"),
    (["extend", "demp", "--trials", "9"], 3, "did you mean 'demo'?"),
    (["enqueue", "demo"], 2, "parameter 'x' is missing; write x=VALUE"),
    (["enqueue", "demo", "x"], 2, "a parameter is key=value"),
    (["enqueue", "demo", "x=1", "x=2"], 2, "'x' is given twice"),
    (["enqueue", "demo", "x=[1"], 2, "is not valid YAML"),
    (["enqueue", "demo", "x=7"], 2, "x"),
    (["enqueue", "demo", "X=1"], 2, "unknown parameter 'X'; known: x"),
    (["enqueue", "demo", "--like", "3"], 3, "no trial 3"),
    (["retry", "demo"], 2, "--where EXPR"),
    (["retry", "demo", "--where", "oops"], 2, "is not a condition"),
    (["retry", "demo", "--where", "x>0", "--all"], 2, "--where EXPR"),
    (["events", "demp"], 3, "did you mean 'demo'?"),
]


def test_wrong_input_is_one_line_and_changes_nothing(run_cli: Cli, store: MongoStore, make_campaign: Make) -> None:
    make_campaign("demo")
    before = store.campaigns.get("demo")
    for arguments, code, message in WRONG:
        done = run_cli(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert message in one_line(done.stderr), arguments
    assert store.campaigns.get("demo") == before
    assert store.trials.find("demo") == []
    assert actions(store, "demo") == ["create"]


def test_events_are_listed(run_cli: Cli, store: MongoStore, make_campaign: Make) -> None:
    make_campaign("demo")
    assert run_cli("extend", "demo", "--trials", "9").returncode == 0
    listed: list[dict[str, Any]] = json.loads(run_cli("events", "demo", "--format", "json").stdout)
    assert [(e["action"], e["detail"]) for e in listed] == [("create", {}), ("extend", {"max_trials": 9})]
    assert "@" in listed[1]["who"]
    assert listed[0]["at"] <= listed[1]["at"]
    assert run_cli("events", "demo", "--format", "csv").stdout.splitlines()[0] == "at,action,who,detail"
    assert '{"max_trials": 9}' in run_cli("events", "demo").stdout


def test_a_trial_replayed_has_its_score_again(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = write_campaign(tmp_path, objective="objectives:seeded", budget={"max_trials": 2})
    with open(tmp_path / "objectives.py", "a") as module:
        module.write(REPLAYED)
    assert run_cli("launch", str(file)).returncode == 0
    before = store.trials.find("sine")
    done = run_cli("replay", "sine", "0", "--devices", "cpu")
    score = before[0].score
    assert done.stdout == (f"loss of trial 0: {score!r} then, {score!r} now\nequal within 0 (difference 0)\n"), (
        done.stderr
    )
    assert done.returncode == 0
    (tmp_path / "changed").touch()
    done = run_cli("replay", "sine", "0", "--devices", "cpu", "--tolerance", "0.1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].startswith("not equal within 0.1 (difference 0.5")
    assert run_cli("replay", "sine", "0", "--devices", "cpu", "--tolerance", "0.6").returncode == 0
    done = run_cli("replay", "sine", "1")
    assert done.returncode == 2
    assert "is failed; only a finished one has a score" in one_line(done.stderr)
    done = run_cli("replay", "sine", "0", "--tolerance", "-1")
    assert (done.returncode, "--tolerance must be 0 or more" in one_line(done.stderr)) == (2, True)
    assert store.trials.find("sine") == before, "nothing is written"
    (tmp_path / "objectives.py").unlink()
    done = run_cli("replay", "sine", "0", "--devices", "cpu")
    assert done.returncode == 1
    assert "does not serve campaign 'sine'" in one_line(done.stderr)
