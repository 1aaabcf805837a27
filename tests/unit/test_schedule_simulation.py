"""The simulated pool: exact on one slot, in order under faults, and its clock adds up."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autotune.schedule import Promote, Propose, make_schedule
from autotune.trial import ACTIVE_STATES, TrialState
from benchmarks.simulation import curves as learning
from benchmarks.simulation import textbook
from benchmarks.simulation.pool import Outcome, Pool, idle_while_waiting
from benchmarks.simulation.record import CURVES

STEADY = learning.Faults(spread=0.0)


def campaign(
    algorithm: str, *, slots: int, trials: int, faults: learning.Faults, maximum: int = 81, decision_s: float = 0.05
) -> Outcome:
    made = learning.trainings(learning.synthetic(trials, maximum, 0), faults, 0)
    schedule = make_schedule({"algorithm": algorithm, "maximum": maximum})
    return Pool(schedule, made, slots=slots, faults=faults, decision_s=decision_s).run()


def steps(outcome: Outcome) -> list[textbook.Step]:
    found: list[textbook.Step] = []
    proposed = 0
    for action in outcome.log:
        if isinstance(action, Propose):
            found.append(("propose", proposed, action.resource or 0))
            proposed += 1
        elif isinstance(action, Promote):
            found.append(("promote", action.number, action.resource or 0))
    return found


@pytest.mark.parametrize("algorithm", ["asha", "hyperband"])
@pytest.mark.parametrize("recorded", [False, True])
def test_one_slot_equals_the_textbook(algorithm: str, recorded: bool) -> None:
    table = learning.recorded(CURVES, 286, 81, 0) if recorded else learning.synthetic(286, 81, 0)
    table = np.where(np.isnan(table), 99.0, table)  # the papers do not say what a loss is that is no number
    made = learning.trainings(table, STEADY, 0)
    outcome = Pool(make_schedule({"algorithm": algorithm, "maximum": 81}), made, slots=1, faults=STEADY).run()
    assert steps(outcome) == getattr(textbook, algorithm)(made, 81, 3)


@pytest.mark.parametrize("algorithm", ["none", "median", "asha", "hyperband"])
@pytest.mark.parametrize("slots", [1, 3, 20, 500])
def test_under_faults_no_slot_is_idle_while_work_exists(algorithm: str, slots: int) -> None:
    outcome = campaign(algorithm, slots=slots, trials=200, faults=learning.ROUGH)
    states = Counter(m.state for m in outcome.members)
    assert len(outcome.members) == 200
    assert not any(states[s] for s in ACTIVE_STATES)
    assert states[TrialState.FINISHED] > 0
    assert outcome.idle_work_s < 0.02 * (outcome.busy_s + outcome.idle_work_s)
    whole_s = outcome.busy_s + outcome.down_s + outcome.idle_work_s + outcome.idle_tail_s
    assert whole_s == pytest.approx(slots * outcome.span_s)
    assert 0 <= outcome.idle_waiting_s <= outcome.idle_tail_s + 1e-6


def test_hyperband_finishes_the_same_trials_on_any_number_of_slots() -> None:
    finished = [
        {m.number for m in campaign("hyperband", slots=n, trials=143, faults=STEADY).members if m.state == "finished"}
        for n in (1, 2, 9, 100)
    ]
    assert all(f == finished[0] for f in finished)


def test_the_same_seed_gives_the_same_campaign() -> None:
    first, second = (campaign("hyperband", slots=9, trials=150, faults=learning.ROUGH) for _ in range(2))
    assert (first.log, first.span_s, first.epochs) == (second.log, second.span_s, second.epochs)


def test_the_clock_by_hand() -> None:
    outcome = campaign("none", slots=2, trials=3, faults=STEADY, maximum=10, decision_s=1.0)
    assert outcome.busy_s == pytest.approx(3 * 10 * 20)
    assert outcome.span_s == pytest.approx(1 + 200 + 1 + 200 + 1)  # the last decision finds nothing to do
    assert outcome.idle_work_s == pytest.approx(2 + 1)  # the second decision had work for one of two slots
    assert outcome.idle_tail_s == pytest.approx(1 + 200 + 2)
    assert outcome.epochs == 30


def test_lost_attempts_are_trained_again_from_the_last_rung() -> None:
    faults = learning.Faults(spread=0.0, lost=0.3)
    outcome = campaign("hyperband", slots=4, trials=143, faults=faults)
    undisturbed = campaign("hyperband", slots=4, trials=143, faults=STEADY)
    assert outcome.lost > 10
    assert outcome.epochs - outcome.lost_epochs == undisturbed.epochs
    assert {m.number: m.losses for m in outcome.members} == {m.number: m.losses for m in undisturbed.members}


def test_idle_while_waiting_by_hand() -> None:
    tail = [(10.0, 20.0, 3), (20.0, 30.0, 1)]
    waits = [(5.0, 15.0), (12.0, 25.0), (0.0, 9.0)]  # one from 10, two from 12, one from 15 to 25
    assert idle_while_waiting(tail, waits) == 1 * 2 + 2 * 3 + 1 * 5 + 1 * 5
    assert idle_while_waiting([], [(0.0, 1.0)]) == 0.0


def test_recorded_curves_are_read(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps({"curves": [[3.0, 2.0, 1.0, 0.5], [5.0, None]]}))
    table = learning.recorded(path, 5, 3, 0)
    assert table.shape == (5, 3)
    rows = {tuple("nan" if math.isnan(v) else v for v in row) for row in table.tolist()}
    assert rows == {(3.0, 2.0, 1.0), (5.0, "nan", "nan")}
