"""What `autotune status` says of paused trials."""

from __future__ import annotations

from autotune.cli.schedule import waits
from autotune.schedule import Member
from autotune.schedule.asha import AshaSchedule
from autotune.schedule.hyperband import HyperbandSchedule
from autotune.trial import TrialState

PAUSED, RUNNING, QUEUED = TrialState.PAUSED, TrialState.RUNNING, TrialState.QUEUED


def test_a_rung_says_for_whom_it_waits() -> None:
    members = [Member(number=n, state=PAUSED, losses=(float(n),)) for n in range(7)]
    members += [Member(number=7, state=RUNNING), Member(number=8, state=QUEUED)]
    members += [Member(number=9, state=PAUSED, bracket=1, losses=(1.0,)), Member(number=10, state=RUNNING, bracket=1)]
    members += [Member(number=11, state=RUNNING, bracket=2)]
    line = "bracket 0, rung 0 waits for trials 7, 8; bracket 1, rung 0 waits for trials 10 (8 trials paused)"
    assert waits(HyperbandSchedule(maximum=9).tables(members)) == line


def test_nobody_waits() -> None:
    assert waits(HyperbandSchedule(maximum=9).tables([Member(number=0, state=RUNNING)])) is None
    assert waits(HyperbandSchedule(maximum=9).tables([])) is None


def test_asha_waits_for_no_trial() -> None:
    line = waits(AshaSchedule(maximum=9).tables([Member(number=0, state=PAUSED, losses=(1.0,))]))
    assert line == "paused trials: 1; each goes on when it is among the best of its rung"
