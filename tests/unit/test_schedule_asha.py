"""ASHA: the paper's procedure on any number of slots; promotion waits for nobody; nothing is left over at the end."""

from __future__ import annotations

import math
import random
import time

import pytest

from autotune.schedule import Member, Promote, Propose, Prune, make_schedule
from autotune.testing.schedule_contract import Play
from autotune.trial import TrialState

S = TrialState
NINE = {"algorithm": "asha", "maximum": 9}


def score(number: int, rung: int) -> float:
    return round(random.Random(f"{number}-{rung}").random(), 1)


def get_job(rungs: list[dict[int, float]], promoted: list[set[int]], eta: int) -> tuple[int, int] | None:
    """The paper's Algorithm 2: the rung that is promoted from, and who; None: a new configuration."""
    for k in range(len(rungs) - 2, -1, -1):
        top = sorted(rungs[k], key=lambda n: (rungs[k][n], n))[: len(rungs[k]) // eta]
        candidates = [n for n in top if n not in promoted[k]]
        if candidates:
            return k, candidates[0]
    return None


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize(("maximum", "eta", "trials"), [(81, 3, 200), (16, 4, 60), (64, 2, 100)])
def test_the_papers_order(maximum: int, eta: int, trials: int, slots: int) -> None:
    play = Play({"algorithm": "asha", "maximum": maximum, "eta": eta}, slots=slots, max_trials=trials)
    levels = len(play.schedule.resources)
    rungs: list[dict[int, float]] = [{} for _ in range(levels)]
    promoted: list[set[int]] = [set() for _ in range(levels)]
    rng = random.Random(4)
    proposed = 0
    while True:
        for action in play.ask():
            job = get_job(rungs, promoted, eta)
            if isinstance(action, Propose):
                assert job is None
                proposed += 1
            elif isinstance(action, Promote):
                assert job == (action.rung - 1, action.number)
                promoted[action.rung - 1].add(action.number)
            else:
                assert job is None
                assert proposed == trials
        while play.of(S.QUEUED):
            play.claim()
        running = play.of(S.RUNNING)
        if not running:
            break
        ended = rng.choice(running)
        rungs[ended.rung][ended.number] = score(ended.number, ended.rung)
        play.end(ended, score(ended.number, ended.rung))
    assert proposed == trials
    assert len(rungs[-1]) >= 1


def feed(values: list[float]) -> set[int]:
    """Run nine trials on one slot that come to the first rung with these losses; return who was promoted."""
    play = Play({"algorithm": "asha", "maximum": 3}, slots=1, max_trials=len(values))
    promoted: set[int] = set()
    while actions := play.ask():
        promoted |= {a.number for a in actions if isinstance(a, Promote)}
        play.claim()
        for member in play.of(S.RUNNING):
            play.end(member, values[member.number])
    return promoted


def test_worst_first_and_best_first() -> None:
    assert feed([9, 8, 7, 6, 5, 4, 3, 2, 1]) == {2, 3, 4, 5, 6, 7, 8}  # each was the best so far
    assert feed([1, 2, 3, 4, 5, 6, 7, 8, 9]) == {0, 1, 2}
    assert feed([5, 6, 7, 8, 9, 4, 3, 2, 1]) == {0, 5, 6, 7, 8}  # later better ones are still promoted
    assert feed([1] * 9) == {0, 1, 2}


def test_the_top_rung_comes_first() -> None:
    members = [
        *(Member(number=n, state=S.PAUSED, rung=1, losses=(n / 10, n / 10)) for n in range(3)),
        *(Member(number=n, state=S.PAUSED, losses=(n / 10,)) for n in range(3, 12)),
    ]
    assert make_schedule(NINE).actions(members, idle=3, remaining=5) == [
        Promote(number=0, rung=2, resource=9),
        Promote(number=3, rung=1, resource=3),
        Propose(resource=1),
    ]


def test_failures_count_as_the_worst_of_their_rung() -> None:
    members = [Member(number=n, state=S.FAILED) for n in range(2)]
    members.append(Member(number=2, state=S.PAUSED, losses=(7.0,)))
    assert make_schedule(NINE).actions(members, idle=1, remaining=5) == [Promote(number=2, rung=1, resource=3)]
    members[2] = Member(number=2, state=S.PAUSED, losses=(math.nan,))
    assert make_schedule(NINE).actions(members, idle=1, remaining=5) == [Propose(resource=1)]


def test_a_trial_that_is_cancelled_where_it_waits_frees_its_place() -> None:
    members = [Member(number=n, state=S.PAUSED, losses=(n / 10,)) for n in range(3)]
    members[0] = Member(number=0, state=S.CANCELLED, losses=(0.0,))
    assert make_schedule(NINE).actions(members, idle=1, remaining=5) == [Promote(number=1, rung=1, resource=3)]


def test_nothing_is_pruned_while_anything_runs_or_may_be_proposed() -> None:
    paused = [Member(number=n, state=S.PAUSED, losses=(0.5 + n / 10,)) for n in range(2)]
    done = Member(number=2, state=S.FINISHED, rung=2, losses=(0.1, 0.1, 0.1))
    running = Member(number=3, state=S.RUNNING)
    promoted = Member(number=4, state=S.FINISHED, rung=2, losses=(0.0, 0.0, 0.0))
    schedule = make_schedule(NINE)
    assert schedule.actions([*paused, done, running], idle=1, remaining=0) == []
    assert schedule.actions([*paused, done], idle=0, remaining=1) == []
    assert schedule.actions([*paused, done, promoted], idle=0, remaining=0) == [Prune(number=0), Prune(number=1)]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_small_campaign_brings_one_trial_to_the_maximum(count: int) -> None:
    play = Play(NINE, slots=2, max_trials=count)
    play.finish()
    assert len(play.of(S.FINISHED)) == 1


def test_the_next_best_goes_on_if_the_last_chance_fails() -> None:
    members = [
        Member(number=0, state=S.FAILED, rung=1, losses=(0.1,)),
        Member(number=1, state=S.PAUSED, losses=(0.2,)),
        Member(number=2, state=S.PAUSED, losses=(0.3,)),
    ]
    schedule = make_schedule(NINE)
    assert schedule.actions(members, idle=2, remaining=0) == [Promote(number=1, rung=1, resource=3)]
    assert schedule.actions(members, idle=0, remaining=0) == []


def test_ten_thousand_members_are_decided_quickly() -> None:
    rng = random.Random(5)
    members = [Member(number=n, state=S.PAUSED, losses=(rng.random(),)) for n in range(10_000)]
    taken_s = []
    for _ in range(3):
        fresh = make_schedule({"algorithm": "asha", "maximum": 81})
        started_s = time.perf_counter()
        assert len(fresh.actions(members, idle=1_000, remaining=0)) == 1_000
        taken_s.append(time.perf_counter() - started_s)
    assert min(taken_s) < 0.5  # about 0.02 when the machine is quiet


def test_the_preview_is_a_lower_bound() -> None:
    for trials in (1, 5, 81, 200):
        play = Play({"algorithm": "asha", "maximum": 81}, slots=3, max_trials=trials)
        play.finish()
        spent = sum(r.epochs or 0 for b in play.schedule.tables(play.members) for r in b.rungs)
        preview = play.schedule.preview(trials)
        assert preview.epochs is not None
        assert preview.epochs <= spent
        assert not preview.exact
