"""Errors, NaN, stragglers, full quotas and shared folders under schedules, on real agents."""

from __future__ import annotations

import json
import math
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autotune import retention
from autotune.local import steering
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import ACTIVE_STATES, CampaignState, Trial, TrialState
from tests.objectives.support import QUICK_LEASE, ROOT, coordinating, propose_one, wait_for_state, wait_until, working
from workers.reporting import Trial as Training

LEVELS = (1, 3, 9)
STARTS = (0, 1, 2, 0)  # bracket -> index of its first level; bracket 3 is the first of the next round
_NEVER = threading.Event()


def rough(trial: Training) -> float:
    """Train nine steps; some trials fail, turn to NaN, or are ten times slower, by their number."""
    start = 0
    if (kept := trial.checkpoint.load()) is not None:
        start = json.loads((kept / "state.json").read_text())
    for step in range(start + 1, trial.params["steps"] + 1):
        slow = trial.number % 8 == 5
        _NEVER.wait(trial.params["seconds"] * (10 if slow else 1))
        if (trial.number % 7 == 3 and step == 2) or (trial.number % 11 == 6 and step == 1):
            raise ValueError("fails at this step")
        value = math.nan if trial.number % 5 == 4 and step >= 2 else loss(trial.params["x"], step)
        trial.report(step, loss=value)
        if trial.checkpoint.wanted(step):
            trial.checkpoint.save(step, partial(_write, step))
    return loss(trial.params["x"], trial.params["steps"])


def _write(step: int, folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(step))


def loss(x: float, step: int) -> float:
    """Return what a trial reports."""
    return x * x + 1.0 - 0.01 * step


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def launch(make_campaign: Callable[..., CampaignRecord]) -> Callable[..., CampaignRecord]:
    """Launches a campaign of the objective above."""

    def write(algorithm: str, *, seconds: float = 0.01, steps: int = 9, **changes: Any) -> CampaignRecord:
        settings: dict[str, Any] = {
            "objective": f"{__name__}:rough",
            "fixed": {"seconds": seconds, "steps": steps},
            "search": {"algorithm": "random", "seed": 0},
            "schedule": {"algorithm": algorithm, "maximum": 9, "eta": 3},
            "lease": QUICK_LEASE,
            "failures": {"abort_after": 0},
        }
        return make_campaign(**{**settings, "max_trials": 22, **changes})

    return write


def wait_for_end_of(store: MongoStore, timeout_s: float = 60.0) -> list[Trial]:
    wait_until(lambda: store.campaigns.get("demo").state is not CampaignState.RUNNING, "end of the campaign", timeout_s)
    trials = store.trials.find("demo")
    assert not [t.number for t in trials if t.state in ACTIVE_STATES]
    return trials


def rank(trial: Trial, rung: int) -> tuple[float, int]:
    """Return the order at a rung, by what the objective must have reported: failures are last.

    A trial that turns to NaN at step 2 is compared by step 1 at its first rung, and is last at every other.
    """
    step = LEVELS[STARTS[trial.bracket] + rung]
    odd = trial.number % 5 == 4
    bad = (odd and rung > 0) or (trial.number % 7 == 3 and step >= 2) or trial.number % 11 == 6
    return math.inf if bad else loss(float(trial.params["x"]), 1 if odd else step), trial.number


def test_hyperband_promotes_the_best_whatever_fails(store: MongoStore, launch: Callable[..., CampaignRecord]) -> None:
    launch("hyperband")
    with coordinating(store), working(store, 2), working(store):
        trials = wait_for_end_of(store)
    assert len(trials) == 22
    for bracket in range(4):
        here = [t for t in trials if t.bracket == bracket]
        for rung in range(len(LEVELS) - STARTS[bracket] - 1):
            ranked = sorted(here, key=lambda t, rung=rung: rank(t, rung))
            able = [t for t in ranked if rank(t, rung)[0] < math.inf]
            gone = [t for t in here if t.rung > rung]
            assert gone, "a bracket goes on as long as one member can"
            assert {t.number for t in gone} == {t.number for t in able[: max(1, len(here) // 3)]}
            here = gone
    finished = {t.number for t in trials if t.state is TrialState.FINISHED}
    assert finished == {t.number for t in trials if t.rung == len(LEVELS) - STARTS[t.bracket] - 1
                        and t.state is not TrialState.FAILED}  # fmt: skip
    for trial in trials:
        for rung, score in enumerate(trial.rung_scores):
            best = rank(trial, rung)[0]
            assert score == (None if best == math.inf else pytest.approx(best)), (trial.number, rung)


def test_asha_leaves_nobody_paused_who_should_go_on(store: MongoStore, launch: Callable[..., CampaignRecord]) -> None:
    launch("asha", max_trials=20)
    with coordinating(store), working(store, 2), working(store):
        trials = wait_for_end_of(store)
    assert len(trials) == 20
    for rung in range(2):
        ended = [t for t in trials if len(t.rung_scores) > rung or (t.rung == rung and t.state is TrialState.FAILED)]
        order = sorted(ended, key=lambda t, rung=rung: rank(t, rung))
        for trial in order[: len(order) // 3]:
            assert trial.rung > rung or rank(trial, rung)[0] == math.inf, f"trial {trial.number} waits at rung {rung}"
    assert [t for t in trials if t.state is TrialState.FINISHED]


def test_a_quota_for_one_checkpoint_holds_up_no_bracket(
    store: MongoStore, launch: Callable[..., CampaignRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bracket of nine needs nine checkpoints; an archive takes 10 kB."""
    monkeypatch.setattr(retention, "EVERY_S", 0.0)
    monkeypatch.setattr(retention, "TIGHT_EVERY_S", 0.0)
    launch("hyperband", max_trials=14, seconds=0.0, checkpoints={"max_gb": 1.5e-5})
    with coordinating(store), working(store, 2):
        trials = wait_for_end_of(store)
    assert len(trials) == 14
    assert {t.bracket for t in trials if t.state is TrialState.FINISHED} == {0, 1}


def test_a_paused_trial_goes_on_at_the_other_worker_from_a_shared_folder(
    store: MongoStore, launch: Callable[..., CampaignRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    url = (tmp_path / "shared").as_uri()
    launch("hyperband", max_trials=1, checkpoints={"url": url})
    hosts = []
    for name, state in (("first", TrialState.PAUSED), ("second", TrialState.FINISHED)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        with working(store, folder=tmp_path / name / "home") as agent:
            hosts.append(agent.id)
            if state is TrialState.PAUSED:
                propose_one(store)
                trial = wait_for_state(store, 0, TrialState.PAUSED)
                assert trial.checkpoint is not None
                assert (trial.checkpoint["step"], trial.checkpoint["url"]) == (1, url)
            else:
                with coordinating(store):
                    (trial,) = wait_for_end_of(store)
        assert not list((tmp_path / name).glob("**/state-*")), "nothing is left on the host"
    assert [a.owner for a in trial.attempts] == [hosts[0], hosts[1], hosts[1]]
    curve = store.reports.curve("demo", 0)
    assert [(r.step, r.attempt) for r in curve] == [(1, 0), (2, 1), (3, 1), *((step, 2) for step in range(4, 10))]


def test_enqueued_trials_take_their_places_in_the_brackets(
    store: MongoStore, launch: Callable[..., CampaignRecord]
) -> None:
    """Two are there before anything runs; they are members of the first bracket and are promoted by their loss."""
    launch("hyperband", max_trials=14, seconds=0.0)
    numbers = [steering.enqueue(store, "demo", {"x": x}).number for x in (0.001, 1.99)]
    assert numbers == [0, 1]
    assert [(t.bracket, t.target) for t in store.trials.heads("demo")] == [(0, 1), (0, 1)]
    with coordinating(store), working(store, 2):
        trials = wait_for_end_of(store)
    assert len(trials) == 14
    assert [sum(t.bracket == b for t in trials) for b in range(2)] == [9, 5]
    assert trials[0].state is TrialState.FINISHED, "the best of its bracket"
    assert (trials[1].state, trials[1].rung) == (TrialState.PRUNED, 0)
