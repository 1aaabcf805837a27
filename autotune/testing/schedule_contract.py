"""The contract of a schedule as a suite of tests; `autotune.schedule.base` says it in prose.

A test module makes its own subclass and names the settings:

    class TestMine(ScheduleContract):
        settings = {"algorithm": "mine", "maximum": 9}
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis import strategies as st

from autotune.schedule import Action, Curve, Member, Promote, Propose, Prune, Schedule, Verdict, make_schedule
from autotune.trial import ACTIVE_STATES, TrialState

_S = TrialState
_FREELY = hypothesis.settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.differing_executors, hypothesis.HealthCheck.too_slow],
)
EVENTS = [
    "ask",
    "claim",
    "end",
    "end",
    "end",
    "tie",
    "nan",
    "early",
    "fail",
    "cancel",
    "lose",
    "lose late",
    "retry",
    "extend",
]
_LIMIT = 10_000


class Play:
    """A campaign without clock and store: carries actions out, and checks that each of them is allowed."""

    def __init__(self, settings: Mapping[str, Any], *, slots: int, max_trials: int) -> None:
        self.settings = settings
        self.schedule = make_schedule(settings)
        self.slots = slots
        self.max_trials = max_trials
        self.exhausted = False
        self.members: list[Member] = []
        self.log: list[Action] = []

    @property
    def remaining(self) -> int:
        """How many trials may still be proposed."""
        return 0 if self.exhausted else self.max_trials - len(self.members)

    def of(self, *states: TrialState) -> list[Member]:
        """Return the members in these states, in order of number."""
        return [m for m in self.members if m.state in states]

    def change(self, member: Member, **fields: Any) -> None:
        """Replace a member."""
        self.members[member.number] = replace(member, **fields)

    def ask(self) -> list[Action]:
        """Ask the schedule, check what it says, and do it."""
        idle = self.slots - len(self.of(_S.RUNNING))
        free = max(0, idle - len(self.of(_S.QUEUED)))
        actions = self.schedule.actions(self.members, idle=idle, remaining=self.remaining)
        again = self.schedule.actions(self.members, idle=idle, remaining=self.remaining)
        assert again == actions, "what was not carried out is said again"
        fresh = make_schedule(self.settings)
        shuffled = random.Random(0).sample(self.members, len(self.members))
        again = fresh.actions(shuffled, idle=idle, remaining=self.remaining)
        assert again == actions, "actions follow from the history alone"
        if not self.schedule.goes_by_ended:
            again = fresh.actions(self.of(*ACTIVE_STATES), idle=idle, remaining=self.remaining)
            assert again == actions, "what has ended makes no difference where the schedule says so"
        work = [a for a in actions if not isinstance(a, Prune)]
        assert len(work) <= free, "no more than there are free slots"
        assert len(work) >= min(free, self.remaining), "no slot is idle while a trial may be proposed"
        if not self.of(_S.QUEUED, _S.RUNNING) and self.remaining == 0 and idle > 0 and self.of(_S.PAUSED):
            assert actions, "paused trials are promoted or pruned in the end"
        for action in actions:
            self._do(action)
        return actions

    def _do(self, action: Action) -> None:
        self.log.append(action)
        if isinstance(action, Propose):
            assert self.remaining > 0, "the budget is exact"
            assert action == make_schedule(self.settings).place(self.members), "proposed where place() says"
            assert action.rung == 0
            self.members.append(
                Member(number=len(self.members), state=_S.QUEUED, bracket=action.bracket, rung=action.rung)
            )
            return
        member = self.members[action.number]
        assert member.state is _S.PAUSED, "only paused trials are promoted or pruned"
        if isinstance(action, Prune):
            self.change(member, state=_S.PRUNED)
            return
        assert action.rung == member.rung + 1, "one rung at a time, so none twice"
        resources = self.schedule.resources
        assert action.resource in resources, "never past the maximum"
        beside = [m for m in self.of(_S.PAUSED) if (m.bracket, m.rung) == (member.bracket, member.rung)]
        assert member == min(beside, key=lambda m: (m.loss(m.rung), m.number)), "the best goes first"
        assert member.loss(member.rung) < math.inf, "nothing is promoted without a loss"
        self.change(member, state=_S.QUEUED, rung=action.rung)

    def claim(self) -> None:
        """Let one free slot take the queued trial with the lowest number."""
        queued = self.of(_S.QUEUED)
        if queued and len(self.of(_S.RUNNING)) < self.slots:
            self.change(queued[0], state=_S.RUNNING)

    def resource(self, member: Member) -> int | None:
        """Return the step that a member trains to, as its last action said."""
        for action in reversed(self.log):
            if isinstance(action, Promote) and action.number == member.number:
                return action.resource
        proposals = [a for a in self.log if isinstance(a, Propose)]
        return proposals[member.number].resource

    def end(self, member: Member, loss: float) -> None:
        """Let a running trial come to its rung: it pauses there, or finishes at the last one."""
        last = self.resource(member) == self.schedule.resources[-1]
        self.change(member, state=_S.FINISHED if last else _S.PAUSED, losses=(*member.losses[: member.rung], loss))

    def event(self, kind: str, pick: int, loss: float) -> None:
        """Let something happen to one of those that it can happen to."""
        if kind == "ask":
            self.ask()
        elif kind == "claim":
            self.claim()
        elif kind == "extend":
            self.max_trials += pick % 5
        else:
            self._happen(kind, pick, loss)

    def _happen(self, kind: str, pick: int, loss: float) -> None:
        allowed: dict[str, Sequence[TrialState]] = {
            "cancel": tuple(ACTIVE_STATES),
            "retry": (_S.FAILED, _S.CANCELLED),
        }
        found = self.of(*allowed.get(kind, (_S.RUNNING,)))
        if not found:
            return
        member = found[pick % len(found)]
        if kind in ("end", "tie", "nan"):
            self.end(member, {"end": loss, "tie": 0.5, "nan": math.nan}[kind])
        elif kind == "early":
            self.change(member, state=_S.FINISHED, losses=(*member.losses[: member.rung], loss))
        elif kind == "lose late":  # its loss was written, its pause was not
            self.change(member, state=_S.QUEUED, losses=(*member.losses[: member.rung], loss))
        else:
            states = {"fail": _S.FAILED, "cancel": _S.CANCELLED, "lose": _S.QUEUED, "retry": _S.QUEUED}
            self.change(member, state=states[kind], losses=member.losses[: member.rung])

    def finish(self) -> None:
        """Let everything come to its end, and check that nothing is left over."""
        rng = random.Random(1)
        for _ in range(_LIMIT):
            actions = self.ask()
            while self.of(_S.QUEUED) and len(self.of(_S.RUNNING)) < self.slots:
                self.claim()
            running = self.of(_S.RUNNING)
            if not running and not actions:
                break
            for member in rng.sample(running, min(len(running), rng.choice([1, self.slots]))):
                self.end(member, rng.random())
        else:
            raise AssertionError("the campaign does not end")
        counts = Counter(m.state for m in self.members)
        assert self.remaining <= 0, "every trial was proposed"
        assert sum(counts[s] for s in ACTIVE_STATES) == 0, f"nothing is left over: {counts}"
        assert sum(counts.values()) == len(self.members)


class ScheduleContract:
    """All that a schedule must do."""

    settings: ClassVar[Mapping[str, Any]]

    @pytest.fixture
    def schedule(self) -> Schedule:
        """The schedule under test."""
        return make_schedule(self.settings)

    @_FREELY
    @hypothesis.given(
        slots=st.integers(1, 6),
        max_trials=st.integers(1, 30),
        events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 50), st.floats(0, 1)), max_size=120),
        exhausted=st.booleans(),
    )
    def test_whatever_happens_the_campaign_ends_in_order(
        self, slots: int, max_trials: int, events: list[tuple[str, int, float]], exhausted: bool
    ) -> None:
        play = Play(self.settings, slots=slots, max_trials=max_trials)
        for kind, pick, loss in events:
            play.event(kind, pick, loss)
        play.exhausted = exhausted
        play.finish()

    @pytest.mark.parametrize("slots", [1, 2, 7, 50])
    def test_an_undisturbed_campaign_finishes_something(self, slots: int) -> None:
        play = Play(self.settings, slots=slots, max_trials=40)
        play.finish()
        assert play.of(_S.FINISHED)
        assert not play.of(_S.FAILED, _S.CANCELLED)

    def test_nothing_to_do_without_slots(self, schedule: Schedule) -> None:
        assert schedule.actions([], idle=0, remaining=10) == []
        assert schedule.actions([], idle=-1, remaining=10) == []

    def test_nothing_to_do_without_trials(self, schedule: Schedule) -> None:
        assert schedule.actions([], idle=3, remaining=0) == []

    def test_queued_trials_fill_slots(self, schedule: Schedule) -> None:
        members = [Member(number=n, state=_S.QUEUED) for n in range(2)]
        assert len(schedule.actions(members, idle=3, remaining=10)) == 1

    def test_the_preview_counts_all_trials(self, schedule: Schedule) -> None:
        for max_trials in (1, 2, 10, 100, 1000):
            preview = schedule.preview(max_trials)
            assert preview.trials == max_trials
            if preview.epochs is not None and preview.full_epochs is not None:
                assert 0 < preview.epochs <= preview.full_epochs
                assert sum(b.rungs[0][0] for b in preview.brackets) == max_trials
                assert sum(b.epochs for b in preview.brackets) == preview.epochs

    def test_tables_count_every_member_once(self, schedule: Schedule) -> None:
        play = Play(self.settings, slots=3, max_trials=25)
        rng = random.Random(2)
        for _ in range(300):
            play.event(rng.choice([e for e in EVENTS if e != "extend"]), rng.randrange(50), rng.random())
            tables = schedule.tables(play.members)
            assert sum(b.rungs[0].members for b in tables) == len(play.members)
            for name, state in {"queued": _S.QUEUED, "running": _S.RUNNING, "waiting": _S.PAUSED}.items():
                assert sum(getattr(r, name) for b in tables for r in b.rungs) == len(play.of(state))
            for rung in (r for b in tables for r in b.rungs):
                assert rung.members == rung.done + rung.dead + rung.queued + rung.running
                assert rung.done == rung.promoted + rung.waiting + rung.pruned + rung.finished

    def test_a_first_report_stops_nothing(self, schedule: Schedule) -> None:
        assert schedule.verdict(Curve(steps=(1,), losses=(math.nan,)), []) is Verdict.CONTINUE
