"""Random interleavings of everything that can be done to trials, on the real store and on the dict model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from autotune.errors import DuplicateError, LeaseLostError
from autotune.lifecycle import RetryPolicy
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import LONG_S, expire, failure, result
from autotune.testing.model import ModelStore
from autotune.trial import ENDED_STATES, Cause, Lease, Report, TrialState

CAUSES = [
    Cause.LOST,
    Cause.PREEMPTED,
    Cause.ERROR,
    Cause.NOT_A_NUMBER,
    Cause.TIMEOUT,
    Cause.OUT_OF_MEMORY,
    Cause.OUT_OF_MEMORY,
    Cause.STOPPED,
    Cause.SCHEDULE,
]
POLICIES = [RetryPolicy(), RetryPolicy(retries={"error": 2, "timeout": 1}, max_kills=2)]
NUMBERS = st.integers(0, 7)
MOST = 7
"""So many trials at most: the fewer, the more happens to each."""


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returned, or the class of the error that it raised."""
    try:
        return call()
    except (DuplicateError, LeaseLostError) as error:
        return type(error)


class TrialMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model, and compares what they say."""

    store: MongoStore
    runs = 0
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.campaign = f"run-{self.runs}"
        self.model = ModelStore()
        self.claims = 0
        self.frozen: dict[int, Any] = {}

    @initialize(target=leases, claimed=st.integers(1, 3), policy=st.sampled_from(POLICIES))
    def begin(self, claimed: int, policy: RetryPolicy) -> Any:
        """Begin with four trials, some of them claimed."""
        self.model.policy = policy
        for number in range(4):
            self.store.trials.propose(self.campaign, number, {"x": number}, f"hash-{number}", seed=0)
            self.model.propose(number, f"hash-{number}")
        return multiple(*filter(None, [self._claimed_by_another() for _ in range(claimed)]))

    @rule(skip=st.sampled_from([0, 0, 0, 1]), again=st.booleans())
    def propose(self, skip: int, again: bool) -> None:
        """Propose the next number, or one that is there; now and then a configuration that is there."""
        number = min(len(self.model.trials), MOST) - skip
        config = f"hash-{0 if again and number % 3 == 0 else number}"
        theirs = outcome(lambda: self.model.propose(number, config))
        ours = outcome(lambda: self.store.trials.propose(self.campaign, number, {"x": number}, config, seed=0) and None)
        assert ours == theirs

    @rule(target=leases)
    def claim(self) -> Any:
        lease = self._claimed_by_another()
        return multiple() if lease is None else lease

    def _claimed_by_another(self) -> Lease | None:
        self.claims += 1
        token = f"{self.campaign}-token-{self.claims}"
        trial = self.store.trials.claim([self.campaign], owner="w", token=token, duration_s=LONG_S)
        assert (None if trial is None else trial.number) == self.model.claim(token)
        return None if trial is None else trial.lease

    @rule(lease=leases)
    def claim_again(self, lease: Lease) -> None:
        """Repeat a claim whose lease is still held."""
        if self.model.trials[lease.number].holder == lease.token:
            trial = self.store.trials.claim([self.campaign], owner="w", token=lease.token, duration_s=LONG_S)
            assert trial is not None
            assert trial.number == lease.number

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        held = self.model.renew(lease.number, lease.token)
        assert self.store.trials.renew([lease]) == ({lease.token} if held else set())

    @rule(lease=leases, step=st.integers(1, 4), value=st.integers(0, 9), ran_out=st.booleans())
    def report(self, lease: Lease, step: int, value: int, ran_out: bool) -> None:
        theirs = outcome(lambda: self.model.report(lease.number, lease.token, step, float(value), ran_out=ran_out))
        sent = [Report(step=step, metrics={"loss": float(value)})]
        assert outcome(lambda: self.store.reports.add(lease, sent, ran_out=ran_out)) == theirs

    @rule(lease=leases, score=st.integers(-9, 9))
    def finish(self, lease: Lease, score: int) -> None:
        theirs = outcome(lambda: self.model.finish(lease.number, lease.token, float(score)))
        assert outcome(lambda: self.store.trials.finish(lease, result(float(score)))) == theirs

    @rule(lease=leases, cause=st.sampled_from(CAUSES), killed=st.booleans())
    def end_attempt(self, lease: Lease, cause: Cause, killed: bool) -> None:
        killed = killed and cause is Cause.LOST
        theirs = outcome(lambda: self.model.end_attempt(lease.number, lease.token, cause, killed=killed))
        ours = outcome(
            lambda: self.store.trials.end_attempt(
                lease, failure(cause), process_killed=killed, policy=self.model.policy
            )
        )
        assert ours == theirs

    @rule(lease=leases, first=st.sampled_from(CAUSES), second=st.sampled_from(CAUSES))
    def two_attempts_in_a_row(self, lease: Lease, first: Cause, second: Cause) -> None:
        self.end_attempt(lease, first, killed=False)
        following = self._claimed_by_another()
        if following is not None:
            self.end_attempt(following, second, killed=False)

    @rule(lease=leases)
    def pause(self, lease: Lease) -> None:
        theirs = outcome(lambda: self.model.pause(lease.number, lease.token))
        assert outcome(lambda: self.store.trials.pause(lease)) == theirs

    @precondition(lambda self: self.some(TrialState.PAUSED))
    @rule(pick=NUMBERS)
    def promote(self, pick: int) -> None:
        number = self.pick(pick, TrialState.PAUSED)
        assert self.model.promote(number)
        assert self.store.trials.promote(self.campaign, number)

    @precondition(lambda self: self.some(TrialState.PAUSED))
    @rule(pick=NUMBERS)
    def prune(self, pick: int) -> None:
        number = self.pick(pick, TrialState.PAUSED)
        assert self.model.prune(number)
        assert self.store.trials.prune(self.campaign, number)

    @precondition(lambda self: self.some(TrialState.FAILED, TrialState.CANCELLED))
    @rule(pick=NUMBERS)
    def retry(self, pick: int) -> None:
        number = self.pick(pick, TrialState.FAILED, TrialState.CANCELLED)
        assert self.model.retry([number]) == self.store.trials.retry(self.campaign, [number]) == [number]

    @rule(pick=NUMBERS)
    def steer_any(self, pick: int) -> None:
        """Steer a trial in whatever state it is; in most it stays as it is."""
        number = self.pick(pick, *TrialState)
        assert self.store.trials.promote(self.campaign, number) == self.model.promote(number)
        assert self.store.trials.prune(self.campaign, number) == self.model.prune(number)
        assert self.store.trials.retry(self.campaign, [number]) == self.model.retry([number])

    def some(self, *states: TrialState) -> list[int]:
        """Return the numbers of trials in these states."""
        return [n for n, t in self.model.trials.items() if t.state in states]

    def pick(self, index: int, *states: TrialState) -> int:
        found = self.some(*states)
        return found[index % len(found)]

    @rule(lease=leases, score=st.integers(-9, 9), other=st.sampled_from(["", "", "holds it", "gave it back"]))
    def deliver_after_reaping(self, lease: Lease, score: int, other: str) -> None:
        """A holder is cut off, its lease runs out, its trial is reaped, perhaps claimed by another; then it comes."""
        self.expire(lease)
        self.reap()
        claimed = self._claimed_by_another() if other else None
        if claimed is not None and other == "gave it back":
            self.end_attempt(claimed, Cause.PREEMPTED, killed=False)
        self.report(lease, 4, score, ran_out=True)
        self.finish(lease, score)

    @rule(lease=leases)
    def expire(self, lease: Lease) -> None:
        if self.model.trials[lease.number].holder == lease.token and not self.model.trials[lease.number].expired:
            self.model.expire(lease.number)
            expire(self.store, lease)

    @rule()
    def reap(self) -> None:
        assert sorted(self.store.trials.reap(self.campaign)) == self.model.reap()

    @rule(really=st.sampled_from([False] * 7 + [True]))
    def cancel(self, really: bool) -> None:
        if really:
            assert self.store.trials.cancel(self.campaign) == self.model.cancel()

    @invariant()
    def same_as_the_model(self) -> None:
        trials = self.store.trials.find(self.campaign)
        assert [t.number for t in trials] == list(range(len(self.model.trials))), "numbers are dense and unique"
        for trial in trials:
            expected = self.model.trials[trial.number]
            assert trial.state is expected.state
            assert (trial.lease.token if trial.lease else None) == expected.holder
            assert (trial.lease is not None) == (trial.state is TrialState.RUNNING)
            assert trial.score == expected.score
            assert [a.token for a in trial.attempts] == expected.tokens
            assert [a.cause for a in trial.attempts] == expected.causes
            assert (trial.claims, trial.ends, trial.alone) == (len(expected.tokens), expected.ends, expected.alone)
            assert (trial.ended_at is not None) == (trial.state in ENDED_STATES)
        held = [t.lease.token for t in trials if t.lease]
        assert len(held) == len(set(held)), "no token holds two trials"

    @invariant()
    def finished_never_change(self) -> None:
        finished = {t.number: t for t in self.store.trials.find(self.campaign, [TrialState.FINISHED])}
        for number, trial in self.frozen.items():
            assert finished.get(number) == trial
        self.frozen = finished

    def teardown(self) -> None:
        for number, expected in self.model.trials.items():
            attempts = self.store.trials.get(self.campaign, number).attempts
            assert {a.token: a.late_result["score"] for a in attempts if a.late_result} == expected.late
            last_attempt = max((attempt for attempt, _ in expected.reports.values()), default=0)
            last_step = max((s for s, (attempt, _) in expected.reports.items() if attempt == last_attempt), default=-1)
            curve = {r.step: (r.attempt, r.metrics["loss"]) for r in self.store.reports.curve(self.campaign, number)}
            assert curve == {s: seen for s, seen in expected.reports.items() if s <= last_step}


@pytest.mark.timeout(120)
def test_random_interleavings_match_the_model(store: MongoStore) -> None:
    machine = type("BoundMachine", (TrialMachine,), {"store": store})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
