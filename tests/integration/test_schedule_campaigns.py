"""Schedules from end to end: coordinators, agents and trainings that keep their state, on a real store."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.mirror import Curves
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, failure, result
from autotune.trial import ACTIVE_STATES, CampaignState, Cause, Report, Trial, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    SHORT_LEASE,
    coordinating,
    process,
    wait_until,
    worker_command,
    working,
)
from workers.delivery import deliver_left_over
from workers.journal import Journal

Launch = Callable[..., CampaignRecord]

BRACKETS = [[(9, 1), (3, 3), (1, 9)], [(5, 3), (1, 9)], [(3, 9)]]
"""Hyperband for R = 9, eta = 3, worked out by hand: per bracket and rung (members, steps)."""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord], tmp_path: Path) -> Launch:
    """Writes a campaign with a schedule, of trials that train nine steps."""

    def write(do: str = "resumable", *, seconds: float = 0.002, fixed: Any = None, **changes: Any) -> CampaignRecord:
        given = {"do": do, "folder": str(tmp_path), "steps": 9, "seconds": seconds, **(fixed or {})}
        schedule = {"algorithm": "hyperband", "maximum": 9, "eta": 3}
        settings = {"objective": f"{ENDINGS}:chosen", "fixed": given, "search": {"algorithm": "random", "seed": 0}}
        return make_campaign(**{**settings, "schedule": schedule, "lease": QUICK_LEASE, "max_trials": 17, **changes})

    return write


def loss(trial: Trial, step: int) -> float:
    return float(trial.params["x"]) ** 2 + 1.0 - 0.01 * step


def textbook(trials: list[Trial]) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Return (order of all trainings on one slot as (number, last step), number -> last step of each trial).

    Written from the paper's algorithm 1: bracket after bracket, rung after rung, the best one in three of each goes
    on, best first.
    """
    order: list[tuple[int, int]] = []
    last: dict[int, int] = {}
    number = bracket = 0
    while number < len(trials):
        rungs = BRACKETS[bracket % len(BRACKETS)]
        members = list(range(number, min(number + rungs[0][0], len(trials))))
        number, bracket = number + len(members), bracket + 1
        for rung, (_, step) in enumerate(rungs):
            order += [(n, step) for n in members]
            last.update((n, step) for n in members)
            if rung + 1 < len(rungs):
                kept = min(rungs[rung + 1][0], max(1, len(members) // 3))
                members = sorted(members, key=lambda n: (loss(trials[n], step), n))[:kept]
    return order, last


def trained(folder: Path) -> list[tuple[float, int, int, int]]:
    """Return (time, number, attempt, step) of each step that was trained, in order of time."""
    found = []
    for file in folder.glob("steps-*"):
        number = int(file.name.partition("-")[2])
        lines = (line.split() for line in file.read_text().splitlines())
        found += [(float(at), number, int(attempt), int(step)) for attempt, step, at in lines]
    return sorted(found)


def times_trained(folder: Path) -> Counter[tuple[int, int]]:
    """Return (number, step) -> how often that step was trained."""
    return Counter((number, step) for _, number, _, step in trained(folder))


def trainings(folder: Path) -> list[tuple[int, int]]:
    """Return (number, last step) of each training, in order of time: as `textbook` has it."""
    last = {(number, attempt): step for _, number, attempt, step in trained(folder)}
    return [(number, step) for (number, _), step in last.items()]


def wait_for_end_of(store: MongoStore, timeout_s: float = 90.0) -> list[Trial]:
    """Wait until the campaign has ended; check what holds for each that did, and return its trials."""
    wait_until(lambda: store.campaigns.get("demo").state is not CampaignState.RUNNING, "end of the campaign", timeout_s)
    assert store.campaigns.get("demo").state is CampaignState.FINISHED
    trials = store.trials.find("demo")
    assert [t.number for t in trials] == list(range(len(trials)))
    assert not [t.number for t in trials if t.state in ACTIVE_STATES]
    return trials


def assert_as_in_the_book(store: MongoStore, trials: list[Trial]) -> None:
    """Check who came how far, the scores of all rungs, and the curves."""
    _, last = textbook(trials)
    for trial in trials:
        steps = [step for _, step in BRACKETS[trial.bracket % len(BRACKETS)]]
        reached = [s for s in steps if s <= last[trial.number]]
        assert trial.rung_scores == pytest.approx([loss(trial, s) for s in reached]), trial.number
        assert trial.rung == len(reached) - 1
        assert trial.state is (TrialState.FINISHED if reached[-1] == 9 else TrialState.PRUNED), trial.number
        curve = store.reports.curve("demo", trial.number)
        assert [r.step for r in curve] == list(range(1, last[trial.number] + 1))
        assert [r.metrics["loss"] for r in curve] == pytest.approx([loss(trial, r.step) for r in curve])


@pytest.mark.parametrize("count", [17, 22])
def test_hyperband_on_one_slot_is_the_textbook(store: MongoStore, launch: Launch, tmp_path: Path, count: int) -> None:
    """The 22 trials end within the first bracket of a second round: it closes with five members."""
    launch(max_trials=count)
    with coordinating(store), working(store):
        trials = wait_for_end_of(store)
    assert len(trials) == count
    order, _ = textbook(trials)
    assert trainings(tmp_path) == order
    assert max(times_trained(tmp_path).values()) == 1, "each step is trained once"
    assert_as_in_the_book(store, trials)
    members = Counter((t.bracket, rung) for t in trials for rung in range(t.rung + 1))
    expected = {(b, r): n for b, rungs in enumerate(BRACKETS) for r, (n, _) in enumerate(rungs)}
    assert {k: n for k, n in members.items() if k[0] < 3} == expected
    assert all(t.claims == t.rung + 1 for t in trials)


def test_kills_change_neither_promotions_nor_scores(
    store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path
) -> None:
    """Two workers, one of which is killed again and again, and coordinators that are killed, too."""
    launch(seconds=0.02, lease=SHORT_LEASE)
    choose = random.Random(7)
    coordinator = [sys.executable, "-m", "autotune.cli.main", "coordinator", "demo"]
    over = threading.Event()

    def rungs_done() -> int:
        return sum(len(t.rung_scores) for t in store.trials.heads("demo"))

    with working(store):
        for _ in range(4):
            before = rungs_done()
            with (
                process(coordinator, store_uri, tmp_path / "coordinator.log") as leads,
                process(worker_command("--campaign", "demo"), store_uri, tmp_path / "worker.log") as worker,
            ):
                goal = min(18, before + choose.randint(3, 5))
                wait_until(lambda goal=goal: rungs_done() >= goal, "some rungs more")
                over.wait(choose.random() * 0.5)
                for victim in choose.sample([leads, worker], 2):
                    victim.kill()
            store.connection.database["leaders"].delete_many({})  # as if the dead one's lead had run out
        with process(coordinator, store_uri, tmp_path / "coordinator.log"):
            trials = wait_for_end_of(store)
    assert len(trials) == 17
    assert_as_in_the_book(store, trials)
    for trial in trials:
        pauses = sum(a.cause == Cause.SCHEDULE for a in trial.attempts)
        assert pauses == len(trial.rung_scores) - (trial.state is TrialState.FINISHED), "no rung twice"


def test_an_objective_without_checkpoints_begins_anew(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch("forgetful")
    with coordinating(store), working(store):
        trials = wait_for_end_of(store)
    assert_as_in_the_book(store, trials)
    assert all(t.checkpoint is None for t in trials)
    times = times_trained(tmp_path)
    assert {n: times[n, 1] for n in range(17)} == {t.number: t.rung + 1 for t in trials}


def test_asha_on_two_slots_leaves_nothing_paused(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    launch(schedule={"algorithm": "asha", "maximum": 9, "eta": 3}, max_trials=12)
    with coordinating(store), working(store, 2):
        trials = wait_for_end_of(store)
    assert {t.state for t in trials} <= {TrialState.FINISHED, TrialState.PRUNED}
    best = min(trials, key=lambda t: loss(t, 1))
    assert best.state is TrialState.FINISHED, "the best of a rung is always promoted"
    for trial in trials:
        assert trial.rung_scores == pytest.approx([loss(trial, s) for s in (1, 3, 9)[: trial.rung + 1]])
    assert max(times_trained(tmp_path).values()) == 1


def test_median_stops_bad_trials_while_they_run(store: MongoStore, launch: Launch, tmp_path: Path) -> None:
    """All hold at step 20; a trial that ends while they do was stopped there, however slow the machine is."""

    def pruned() -> list[Trial]:
        return [t for t in store.trials.find("demo") if t.state is TrialState.PRUNED]

    schedule = {"algorithm": "median", "warm_up": 2, "least": 2}
    launch("resumable", fixed={"steps": 60, "hold_at": 20}, schedule=schedule, max_trials=6)
    with coordinating(store), working(store, 3):
        wait_until(pruned, "a trial is stopped where it holds")
        early = {t.number for t in pruned()}
        (tmp_path / "go").touch()
        trials = wait_for_end_of(store)
    assert len(trials) == 6
    for number in early:
        assert store.reports.curve("demo", number)[-1].step <= 20
    for trial in pruned():
        assert trial.attempts[-1].cause == Cause.SCHEDULE
        assert "median" in (trial.attempts[-1].message or "")
    assert min(trials, key=lambda t: float(t.params["x"]) ** 2).state is TrialState.FINISHED


def test_failures_and_nan_at_a_rung_do_not_block_it(store: MongoStore, launch: Launch) -> None:
    """Trial 1 fails below rung 0, trial 2 has no number there, and the best of the others fails below rung 1."""
    first = launch(max_trials=9)
    xs = _proposed_losses(store, first.name)
    best = min((n for n in range(9) if n not in (1, 2)), key=lambda n: xs[n])
    store.connection.database["campaigns"].update_one(
        {"_id": "demo"}, {"$set": {"spec.fixed.fail": {"1": 1, str(best): 2}, "spec.fixed.not_a_number": {"2": 1}}}
    )
    with coordinating(store), working(store):
        trials = wait_for_end_of(store)
    assert trials[1].state is TrialState.FAILED
    assert trials[1].rung_scores == ()
    assert trials[2].rung_scores == (None,)
    assert trials[2].state is TrialState.PRUNED
    assert (trials[best].state, trials[best].rung, len(trials[best].rung_scores)) == (TrialState.FAILED, 1, 1)
    ranked = sorted((n for n in range(9) if n not in (1, 2, best)), key=lambda n: xs[n])
    assert sorted(t.number for t in trials if t.rung >= 1) == sorted([best, *ranked[:2]])
    assert [t.number for t in trials if t.state is TrialState.FINISHED] == [ranked[0]]


def _proposed_losses(store: MongoStore, name: str) -> dict[int, float]:
    """Return number -> x squared of the trials that a campaign of this seed will propose."""
    from autotune.search import make_search
    from autotune.space import parse_space

    record = store.campaigns.get(name)
    search, space = make_search(record.spec["search"]), parse_space(record.space)
    return {n: float((search.propose(space, [], n) or {})["x"]) ** 2 for n in range(9)}


def test_paused_resumed_and_extended_in_the_middle_of_a_bracket(
    store: MongoStore, launch: Launch, tmp_path: Path
) -> None:
    """It is paused while the second of the three in the second rung trains."""
    launch(max_trials=9, fixed={"hold_at": 2})
    with working(store):
        with coordinating(store):
            first = wait_until(lambda: [*tmp_path.glob("running-*")], "the first in the second rung")[0]
            (tmp_path / f"go-{first.name.split('-')[1]}").touch()
            wait_until(lambda: len([*tmp_path.glob("running-*")]) == 2, "the second one there")
            store.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING], message="")
        (tmp_path / "go").touch()
        store.campaigns.extend("demo", Extension(max_trials=17))
        assert any(t.state is TrialState.PAUSED for t in store.trials.heads("demo"))
        store.campaigns.set_state("demo", CampaignState.RUNNING, expected=[CampaignState.PAUSED], message="")
        with coordinating(store):
            trials = wait_for_end_of(store)
    assert len(trials) == 17
    assert_as_in_the_book(store, trials)
    assert max(times_trained(tmp_path).values()) == 1


def test_preemption_loses_no_step(store: MongoStore, store_uri: str, launch: Launch, tmp_path: Path) -> None:
    launch(seconds=0.1, fixed={"steps": 120, "hurries": True}, schedule={"algorithm": "none"}, max_trials=1)
    command = worker_command("--campaign", "demo", "--grace", "600")
    interrupted = []
    with coordinating(store):
        for _ in range(2):
            before = len(trained(tmp_path))
            with process(command, store_uri, tmp_path / "log") as worker:
                wait_until(lambda before=before: len(trained(tmp_path)) >= before + 10, "ten steps more")
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(60) == 0, "it did not wait for its time of grace to run out"
            trial = store.trials.get("demo", 0)
            assert (trial.state, trial.attempts[-1].cause) == (TrialState.QUEUED, Cause.PREEMPTED)
            assert trial.checkpoint is not None
            interrupted.append(trial.checkpoint["step"])
            assert interrupted[-1] == len(trained(tmp_path))
        (tmp_path / "go").touch()
        with process(worker_command("--campaign", "demo", "--once"), store_uri, tmp_path / "log") as worker:
            assert worker.wait(60) == 0
        (trial,) = wait_for_end_of(store)
    assert interrupted == sorted(interrupted)
    assert [step for *_, step in trained(tmp_path)] == list(range(1, 121))
    assert trial.score == pytest.approx(loss(trial, 120))
    assert [r.step for r in store.reports.curve("demo", 0)] == list(range(1, 121))


def test_what_an_interrupted_attempt_reported_counts_at_its_rung(
    store: MongoStore, launch: Launch, tmp_path: Path
) -> None:
    """Its loss rises, so that the best one is of the attempt that was preempted."""
    schedule = {"algorithm": "asha", "minimum": 40, "maximum": 40}
    launch(seconds=0.25, fixed={"steps": 40, "slope": 0.01, "hurries": True}, schedule=schedule, max_trials=1)
    with coordinating(store):
        with working(store, grace_s=60):
            wait_until(lambda: len(trained(tmp_path)) >= 8, "eight steps")
        (tmp_path / "go").touch()
        assert store.trials.get("demo", 0).checkpoint is not None
        with working(store):
            (trial,) = wait_for_end_of(store)
    assert max(times_trained(tmp_path).values()) == 1
    assert trial.claims == 2
    assert trial.rung_scores == pytest.approx((float(trial.params["x"]) ** 2 + 1.01,))
    assert trial.score == pytest.approx(float(trial.params["x"]) ** 2 + 1.4)


def test_a_result_from_the_journal_brings_the_score_of_its_rung(
    store: MongoStore, launch: Launch, tmp_path: Path
) -> None:
    """The worker died while the store was away, after its trial had ended; another one delivers."""
    launch(max_trials=9)
    store.trials.propose("demo", 0, {"x": 1.0}, "hash", seed=0)
    lease = claim(store, "demo")
    store.reports.add(lease, [Report(step=step, metrics={"loss": 1.0 - 0.1 * step}) for step in (1, 2)])
    journal = Journal(tmp_path / "journal", store.address)
    attempt = journal.open_attempt(lease)
    attempt.reports([Report(step=3, metrics={"loss": 0.5}), Report(step=4, metrics={"loss": 0.6})])
    attempt.result(result(0.6), {})
    attempt.close()
    assert deliver_left_over(store, journal) == 1
    trial = store.trials.get("demo", 0)
    assert (trial.state, trial.rung_scores) == (TrialState.FINISHED, (0.5,))


def test_the_curve_of_a_retried_trial_is_read_again(store: MongoStore, launch: Launch) -> None:
    record = launch(schedule={"algorithm": "median"}, max_trials=2)
    store.trials.propose("demo", 0, {"x": 1.0}, "hash", seed=0)
    curves = Curves(store, "demo")

    def read() -> tuple[float, ...]:
        return curves.refresh(store.trials.find("demo"), record)[0].losses

    for value, expected in ((5.0, (5.0,)), (2.0, (2.0,))):
        lease = claim(store, "demo")
        store.reports.add(lease, [Report(step=1, metrics={"loss": value}, attempt=lease.attempt)])
        assert read() == expected
        store.trials.end_attempt(lease, failure(Cause.ERROR))
        assert read() == expected
        store.trials.retry("demo", [0])
