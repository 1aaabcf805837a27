"""Hyperband: the textbook's order on one slot, rungs that wait for all, brackets that close with what they have."""

from __future__ import annotations

import math
import random
import time
from fractions import Fraction
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from autotune.schedule import Member, Promote, Propose, Prune, make_schedule
from autotune.schedule.hyperband import HyperbandSchedule
from autotune.testing.schedule_contract import EVENTS, Play
from autotune.trial import TrialState

S = TrialState
NINE: dict[str, Any] = {"algorithm": "hyperband", "maximum": 9}  # brackets 9-3-1, 5-1, 3
EIGHTY_ONE: dict[str, Any] = {"algorithm": "hyperband", "maximum": 81}


def score(number: int, resource: int) -> float:
    """Return a loss that depends on both, so that ranks change from rung to rung; with ties."""
    return round(random.Random(f"{number}-{resource}").random(), 1)


def textbook(maximum: int, eta: int, cycles: int) -> list[tuple[str, int, int]]:
    """Algorithm 1 of the paper, one configuration after the other: (what, number, resource)."""
    s_max = 0
    while eta ** (s_max + 1) <= maximum:
        s_max += 1
    order: list[tuple[str, int, int]] = []
    number = 0
    for _ in range(cycles):
        for s in reversed(range(s_max + 1)):
            n = math.ceil(Fraction((s_max + 1) * maximum, maximum) * Fraction(eta**s, s + 1))
            configurations = list(range(number, number + n))
            number += n
            for i in range(s + 1):
                resource = maximum // eta ** (s - i)
                order += [("promote" if i else "propose", c, resource) for c in configurations]
                ranked = sorted(configurations, key=lambda c: (score(c, resource), c))
                configurations = ranked[: math.floor(Fraction(n, eta ** (i + 1)))]
    return order


def on_one_slot(settings: dict[str, Any], trials: int) -> list[tuple[str, int, int]]:
    """Run a campaign on one slot; return the same list."""
    play = Play(settings, slots=1, max_trials=trials)
    order: list[tuple[str, int, int]] = []
    while play.ask():
        for member in play.of(S.QUEUED):
            play.claim()
            resource = play.resource(member)
            assert resource is not None
            order.append(("promote" if member.rung else "propose", member.number, resource))
            play.end(play.members[member.number], score(member.number, resource))
    return order


@pytest.mark.parametrize(
    ("maximum", "eta", "trials"), [(9, 3, 17), (27, 3, 49), (81, 3, 143), (16, 4, 25), (100, 3, 143)]
)
def test_one_slot_follows_the_textbook(maximum: int, eta: int, trials: int) -> None:
    settings = {"algorithm": "hyperband", "maximum": maximum, "eta": eta}
    assert on_one_slot(settings, 2 * trials) == textbook(maximum, eta, 2)


def members_of(*states: tuple[TrialState, int, tuple[float, ...]], bracket: int = 0) -> list[Member]:
    return [
        Member(number=n, state=state, bracket=bracket, rung=rung, losses=losses)
        for n, (state, rung, losses) in enumerate(states)
    ]


def test_a_rung_waits_for_its_last_member_and_slots_go_to_the_next_bracket() -> None:
    schedule = make_schedule(NINE)
    members = members_of(*[(S.PAUSED, 0, (n / 10,)) for n in range(8)], (S.RUNNING, 0, ()))
    assert schedule.actions(members, idle=2, remaining=50) == [Propose(bracket=1, resource=3)] * 2
    assert schedule.tables(members)[0].rungs[0].waits_for == (8,)
    members[8] = Member(number=8, state=S.PAUSED, losses=(0.05,))
    assert schedule.actions(members, idle=5, remaining=50) == [
        Promote(number=0, rung=1, resource=3),
        Promote(number=8, rung=1, resource=3),
        Promote(number=1, rung=1, resource=3),
        Propose(bracket=1, resource=3),
        Propose(bracket=1, resource=3),
    ]


def test_losers_are_pruned_once_all_winners_have_gone_on() -> None:
    members = members_of(*[(S.PAUSED, 0, (n / 10,)) for n in range(9)])
    schedule = make_schedule(NINE)
    assert not any(isinstance(a, Prune) for a in schedule.actions(members, idle=9, remaining=0))
    members[:3] = [Member(number=n, state=S.RUNNING, rung=1, losses=(n / 10,)) for n in range(3)]
    assert schedule.actions(members, idle=0, remaining=0) == [Prune(number=n) for n in range(3, 9)]


@pytest.mark.parametrize("state", [S.FAILED, S.CANCELLED])
def test_the_dead_neither_block_nor_free_a_place(state: TrialState) -> None:
    members = members_of(*[(S.PAUSED, 0, (n / 10,)) for n in range(2)], *[(state, 0, ())] * 7)
    assert make_schedule(NINE).actions(members, idle=9, remaining=0) == [
        Promote(number=0, rung=1, resource=3),
        Promote(number=1, rung=1, resource=3),
    ]
    members = members_of(
        *[(S.PAUSED, 1, (0.1, 0.1)), (S.PAUSED, 1, (0.2, 0.3)), (state, 1, (0.1,))], *[(S.PAUSED, 0, (0.5,))] * 6
    )
    assert make_schedule(NINE).actions(members, idle=9, remaining=0) == [
        Promote(number=0, rung=2, resource=9),
        *(Prune(number=n) for n in range(3, 9)),
    ]


def test_not_a_number_is_never_promoted() -> None:
    members = members_of((S.PAUSED, 0, (math.nan,)), *[(S.FAILED, 0, ())] * 8)
    assert make_schedule(NINE).actions(members, idle=1, remaining=0) == [Prune(number=0)]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 30])
def test_a_bracket_cut_short_closes_with_what_it_has(count: int) -> None:
    play = Play(EIGHTY_ONE, slots=1, max_trials=count)
    play.finish()
    sizes = [r.members for r in play.schedule.tables(play.members)[0].rungs]
    assert sizes == list(HyperbandSchedule(maximum=81).brackets[0].cut(count).sizes)
    assert len(play.of(S.FINISHED)) == 1


def test_an_exhausted_space_closes_the_bracket() -> None:
    members = members_of(*[(S.PAUSED, 0, (n / 10,)) for n in range(4)])
    assert make_schedule(NINE).actions(members, idle=1, remaining=7) == [Propose(resource=1)]
    assert make_schedule(NINE).actions(members, idle=1, remaining=0) == [Promote(number=0, rung=1, resource=3)]


def test_an_extended_campaign_begins_a_new_bracket_once_the_cut_one_was_decided() -> None:
    schedule = make_schedule(NINE)
    waiting = members_of(*[(S.PAUSED, 0, (n / 10,)) for n in range(3)], (S.RUNNING, 0, ()))
    assert schedule.actions(waiting, idle=1, remaining=0) == []
    assert schedule.actions(waiting, idle=1, remaining=9) == [Propose(bracket=0, resource=1)]
    decided = members_of((S.RUNNING, 1, (0.1,)), *[(S.PRUNED, 0, (0.5,))] * 3)
    assert schedule.actions(decided, idle=1, remaining=9) == [Propose(bracket=1, resource=3)]
    assert schedule.place(decided) == Propose(bracket=1, resource=3)


def test_a_retried_member_is_waited_for_only_while_a_place_is_left() -> None:
    open_place = members_of((S.PAUSED, 1, (0.1, 0.1)), (S.QUEUED, 0, ()), *[(S.FAILED, 0, ())] * 7)
    assert make_schedule(NINE).actions(open_place, idle=1, remaining=0) == []
    no_place = members_of(
        *[(S.PAUSED, 1, (n / 10, n / 10)) for n in range(3)], (S.QUEUED, 0, ()), *[(S.PRUNED, 0, (0.9,))] * 5
    )
    assert make_schedule(NINE).actions(no_place, idle=2, remaining=0) == [
        Promote(number=0, rung=2, resource=9),
    ]


def test_one_that_ended_early_keeps_its_place() -> None:
    members = members_of((S.FINISHED, 0, (0.1,)), *[(S.PAUSED, 0, (0.2 + n / 10,)) for n in range(8)])
    promoted = [a.number for a in make_schedule(NINE).actions(members, idle=9, remaining=0) if isinstance(a, Promote)]
    assert promoted == [1, 2]
    members[0] = Member(number=0, state=S.FINISHED, losses=(5.0,))
    promoted = [a.number for a in make_schedule(NINE).actions(members, idle=9, remaining=0) if isinstance(a, Promote)]
    assert promoted == [1, 2, 3]


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    slots=st.integers(1, 8),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 50), st.floats(0, 1)), max_size=150),
)
def test_promotions_wait_for_the_whole_rung(slots: int, events: list[tuple[str, int, float]]) -> None:
    play = Play(NINE, slots=slots, max_trials=30)
    for kind, pick, loss in [*events, *[("ask", 0, 0.0), ("claim", 0, 0.0), ("end", 3, 0.4)] * 40]:
        before = list(play.members)
        seen = len(play.log)
        play.event(kind, pick, loss)
        for action in play.log[seen:]:
            if not isinstance(action, Promote):
                continue
            mine = before[action.number]
            beside = [m for m in before if m.bracket == mine.bracket and m.rung <= mine.rung]
            kept = [m for m in beside if m.rung == mine.rung]
            assert not [m for m in kept if m.state in (S.QUEUED, S.RUNNING)], "nobody of its rung is on the way"
        for table in play.schedule.tables(play.members):
            for rung, after in zip(table.rungs, table.rungs[1:], strict=False):
                assert after.members <= max(1, rung.members // 3), "one in eta"


def test_the_preview_equals_what_an_undisturbed_campaign_spends() -> None:
    for trials in (5, 81, 100, 143, 200):
        order = on_one_slot(EIGHTY_ONE, trials)
        before: dict[int, int] = {}
        spent = 0
        for _, number, resource in order:
            spent += resource - before.get(number, 0)
            before[number] = resource
        preview = make_schedule(EIGHTY_ONE).preview(trials)
        assert preview.epochs == spent
        assert preview.full_epochs == trials * 81
    assert make_schedule(EIGHTY_ONE).preview(143).epochs == 297 + 276 + 279 + 324 + 405
    assert make_schedule(EIGHTY_ONE).preview(143).in_flight == 81


def test_tables_count_epochs() -> None:
    play = Play(EIGHTY_ONE, slots=3, max_trials=143)
    play.finish()
    spent = sum(r.epochs or 0 for b in play.schedule.tables(play.members) for r in b.rungs)
    assert spent == play.schedule.preview(143).epochs


def test_ten_thousand_members_are_decided_quickly() -> None:
    members: list[Member] = []
    schedule = HyperbandSchedule(maximum=81)
    for index in range(350):
        size, resource = schedule.bracket(index).rungs[0]
        state, losses = (S.FINISHED, (0.5,)) if resource == 81 else (S.PAUSED, (0.5,))
        count = len(members)
        members += [Member(number=count + n, state=state, bracket=index, losses=losses) for n in range(size)]
    assert len(members) > 10_000
    taken_s = []
    for _ in range(3):
        fresh = make_schedule(EIGHTY_ONE)
        started_s = time.perf_counter()
        actions = fresh.actions(members, idle=1_000, remaining=0)
        taken_s.append(time.perf_counter() - started_s)
        assert len(actions) == 1_000
    assert min(taken_s) < 0.5  # about 0.02 when the machine is quiet
    started_s = time.perf_counter()
    members[7] = Member(number=7, state=S.FAILED)
    fresh.actions(members, idle=1_000, remaining=0)
    assert time.perf_counter() - started_s < 0.1  # about 0.001


def test_what_is_remembered_changes_nothing() -> None:
    rng = random.Random(3)
    play = Play(EIGHTY_ONE, slots=40, max_trials=300)  # each ask() compares with a schedule that remembers nothing
    for _ in range(1500):
        play.event(rng.choice(["ask", "claim", "claim", "end", "end", "fail", "lose", "retry"]), rng.randrange(99), 0.5)
    play.finish()
