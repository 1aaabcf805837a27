"""What every store must do when attempts end in a special way: delivery, out of memory, pauses, retries, many tries."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from autotune.errors import LeaseLostError
from autotune.lifecycle import RetryPolicy
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, claim, expire, failure, propose, reaped, result, running, stored
from autotune.trial import Cause, Failure, Lease, Report, TrialState

QUEUED, FAILED, PAUSED = TrialState.QUEUED, TrialState.FAILED, TrialState.PAUSED
OOM = failure(Cause.OUT_OF_MEMORY)
KEPT_ATTEMPTS = 64


class EndContract:
    """Delivery of results, policies, pauses and retries, and trials that were tried very often."""

    def test_a_result_whose_lease_ran_out_is_accepted_while_nobody_has_begun(self, store: MongoStore) -> None:
        lease = reaped(store)
        store.trials.finish(lease, result(0.5), {"train_s": 2.0})
        before = stored(store, 0)
        store.trials.finish(lease, result(0.5), {"train_s": 2.0})
        assert stored(store, 0) == before
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score, trial.lease) == (TrialState.FINISHED, 0.5, None)
        assert trial.ended_at is not None
        (attempt,) = trial.attempts
        assert (attempt.cause, attempt.message, attempt.late_result) == (None, None, None)
        assert attempt.timing == {"train_s": 2.0}
        assert store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=1.0) is None

    def test_a_result_comes_too_late_once_another_attempt_began(self, store: MongoStore) -> None:
        lease = reaped(store)
        other = claim(store, owner="other")
        with pytest.raises(LeaseLostError, match="late"):
            store.trials.finish(lease, result(-1.0))
        expire(store, other)
        assert store.trials.reap(CAMPAIGN) == [0]
        with pytest.raises(LeaseLostError, match="late"):
            store.trials.finish(lease, result(-1.0))
        assert store.trials.get(CAMPAIGN, 0).state is QUEUED
        store.trials.finish(other, result(2.0))
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score) == (TrialState.FINISHED, 2.0)
        assert [(a.late_result or {}).get("score") for a in trial.attempts] == [-1.0, None]

    def test_reports_are_delivered_before_their_result(self, store: MongoStore) -> None:
        lease = reaped(store)
        sent = [Report(step=step, metrics={"loss": 1.0 / step}) for step in (1, 2)]
        with pytest.raises(LeaseLostError):
            store.reports.add(lease, sent)
        store.reports.add(lease, sent, ran_out=True)
        assert store.reports.curve(CAMPAIGN, 0) == sent
        other = claim(store, owner="other")
        with pytest.raises(LeaseLostError):
            store.reports.add(lease, [Report(step=3, metrics={"loss": 0.1})], ran_out=True)
        store.trials.end_attempt(other, failure(Cause.PREEMPTED))
        for old in (lease, other):
            with pytest.raises(LeaseLostError):
                store.reports.add(old, [Report(step=3, metrics={"loss": 0.1})], ran_out=True)
        assert store.reports.curve(CAMPAIGN, 0) == sent

    @pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.LOST, Cause.OUT_OF_MEMORY])
    def test_what_its_holder_gave_back_is_not_delivered_any_more(self, store: MongoStore, cause: Cause) -> None:
        lease = running(store)
        assert store.trials.end_attempt(lease, failure(cause)) is QUEUED
        with pytest.raises(LeaseLostError, match="late"):
            store.trials.finish(lease, result(1.0))
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score, trial.attempts[0].cause) == (QUEUED, None, cause)
        assert trial.attempts[0].late_result is not None

    def test_only_a_result_is_delivered_nothing_else(self, store: MongoStore) -> None:
        lease = reaped(store)
        before = stored(store, 0)
        for cause in Cause:
            with pytest.raises(LeaseLostError):
                store.trials.end_attempt(lease, failure(cause))
        with pytest.raises(LeaseLostError):
            store.reports.add(lease, [Report(step=1, metrics={"loss": 1.0})])
        with pytest.raises(LeaseLostError):
            store.trials.pause(lease)
        assert store.trials.renew([lease]) == set()
        assert stored(store, 0) == before

    def test_a_delivery_and_a_claim_race_to_one_of_two_ends(self, store: MongoStore) -> None:
        leases = [running(store, number) for number in range(20)]
        for lease in leases:
            expire(store, lease)
        assert len(store.trials.reap(CAMPAIGN)) == 20
        start = threading.Barrier(2)

        def deliver(lease: Lease) -> bool:
            try:
                store.trials.finish(lease, result(float(lease.number)))
            except LeaseLostError:
                return False
            return True

        def deliver_all() -> set[int]:
            start.wait()
            return {lease.number for lease in reversed(leases) if deliver(lease)}

        def claim_all() -> set[int]:
            start.wait()
            tokens = (f"late-{n}" for n in range(20))
            found = [store.trials.claim([CAMPAIGN], owner="w", token=t, duration_s=600.0) for t in tokens]
            return {trial.number for trial in found if trial is not None}

        with ThreadPoolExecutor(2) as pool:
            delivering, claiming = pool.submit(deliver_all), pool.submit(claim_all)
            delivered, claimed = delivering.result(), claiming.result()
        assert delivered | claimed == set(range(20))
        assert not delivered & claimed
        for trial in store.trials.find(CAMPAIGN):
            assert trial.state is (TrialState.FINISHED if trial.number in delivered else TrialState.RUNNING)

    def test_out_of_memory_goes_back_once_alone_then_fails(self, store: MongoStore) -> None:
        lease = running(store)
        assert not store.trials.get(CAMPAIGN, 0).alone
        for _ in range(2):
            assert store.trials.end_attempt(lease, OOM) is QUEUED
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.alone, trial.ends, trial.ended_at) == (True, {"out-of-memory": 1}, None)
        again = store.trials.claim([CAMPAIGN], owner="w", token="alone", duration_s=600.0)
        assert again is not None
        assert again.lease is not None
        assert again.alone
        assert store.trials.end_attempt(again.lease, OOM) is FAILED
        assert store.trials.get(CAMPAIGN, 0).ends == {"out-of-memory": 2}

    def test_a_trial_stays_alone_until_it_was_tried_alone(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.end_attempt(lease, OOM)
        store.trials.end_attempt(claim(store), failure(Cause.PREEMPTED))
        assert store.trials.get(CAMPAIGN, 0).alone, "the preempted attempt decided nothing"
        expire(store, claim(store))
        store.trials.reap(CAMPAIGN)
        assert store.trials.get(CAMPAIGN, 0).alone
        assert store.trials.end_attempt(claim(store), OOM) is FAILED

    @pytest.mark.parametrize(
        ("policy", "cause", "states"),
        [
            (RetryPolicy(retries={"error": 2}), Cause.ERROR, [QUEUED, QUEUED, FAILED]),
            (RetryPolicy(retries={"timeout": 1}), Cause.TIMEOUT, [QUEUED, FAILED]),
            (RetryPolicy(retries={}), Cause.OUT_OF_MEMORY, [FAILED]),
        ],
    )
    def test_a_policy_says_how_often_a_cause_is_retried(
        self, store: MongoStore, policy: RetryPolicy, cause: Cause, states: list[TrialState]
    ) -> None:
        propose(store, 0)
        for number, state in enumerate(states):
            lease = claim(store)
            for _ in range(2):
                assert store.trials.end_attempt(lease, failure(cause), policy=policy) is state
            assert store.trials.get(CAMPAIGN, 0).ends == {str(cause): number + 1}

    def test_a_limit_of_kills_is_the_policys(self, store: MongoStore) -> None:
        policy = RetryPolicy(max_kills=2)
        lease = running(store)
        killed = failure(Cause.LOST, "killed by SIGKILL")
        assert store.trials.end_attempt(lease, killed, process_killed=True, policy=policy) is QUEUED
        assert store.trials.end_attempt(claim(store), failure(Cause.LOST), policy=policy) is QUEUED
        assert store.trials.end_attempt(claim(store), killed, process_killed=True, policy=policy) is FAILED
        assert store.trials.get(CAMPAIGN, 0).ends == {"lost": 3, "killed": 2}

    def test_a_paused_trial_waits_until_it_is_promoted(self, store: MongoStore) -> None:
        lease = running(store)
        for _ in range(2):
            store.trials.pause(lease, 0.5, message="rung 1")
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.lease, trial.ended_at) == (PAUSED, None, None)
        assert (trial.attempts[0].cause, trial.attempts[0].message) == (Cause.SCHEDULE, "rung 1")
        assert store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=1.0) is None
        assert store.trials.promote(CAMPAIGN, 0)
        assert not store.trials.promote(CAMPAIGN, 0)
        again = claim(store)
        before = stored(store, 0)
        store.trials.pause(lease)
        assert stored(store, 0) == before, "the reply of the first call was lost: it is not the new attempt's"
        store.trials.finish(again, result(1.0))
        with pytest.raises(LeaseLostError):
            store.trials.pause(again)
        assert not store.trials.promote(CAMPAIGN, 0)

    def test_a_paused_trial_that_is_not_promoted_is_pruned(self, store: MongoStore) -> None:
        lease = running(store)
        assert not store.trials.prune(CAMPAIGN, 0), "a running one is pruned by its holder alone"
        store.trials.pause(lease)
        assert not store.trials.prune(CAMPAIGN, 0, 1), "whoever decided saw it behind another rung"
        assert store.trials.prune(CAMPAIGN, 0, 0)
        assert not store.trials.prune(CAMPAIGN, 0)
        assert not store.trials.promote(CAMPAIGN, 0)
        trial = store.trials.get(CAMPAIGN, 0)
        assert trial.state is TrialState.PRUNED
        assert trial.ended_at is not None
        with pytest.raises(LeaseLostError, match="late"):
            store.trials.finish(lease, result(1.0))

    def test_a_stale_holder_cannot_pause(self, store: MongoStore) -> None:
        lease = reaped(store)
        claim(store, owner="other")
        before = stored(store, 0)
        with pytest.raises(LeaseLostError):
            store.trials.pause(lease)
        assert stored(store, 0) == before

    def test_a_retried_trial_begins_with_a_clean_record(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.end_attempt(lease, OOM)
        assert store.trials.end_attempt(claim(store), OOM) is FAILED
        assert store.trials.retry(CAMPAIGN, [0, 5]) == [0]
        assert store.trials.retry(CAMPAIGN, [0]) == []
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.ends, trial.alone, trial.ended_at) == (QUEUED, {}, False, None)
        assert [a.cause for a in trial.attempts] == [Cause.OUT_OF_MEMORY] * 2
        assert store.trials.end_attempt(claim(store), OOM) is QUEUED, "it counts anew"
        store.trials.finish(claim(store), result(1.0))
        assert store.trials.get(CAMPAIGN, 0).claims == 4

    def test_cancelled_trials_can_be_retried_and_what_finished_or_lives_cannot(self, store: MongoStore) -> None:
        store.trials.finish(running(store, 0), result(1.0))
        cancelled = running(store, 1)
        store.trials.cancel(CAMPAIGN)
        held = running(store, 2)
        propose(store, 3)
        finished = stored(store, 0)
        assert store.trials.retry(CAMPAIGN, [3, 2, 1, 0]) == [1]
        assert stored(store, 0) == finished
        assert store.trials.renew([held]) == {held.token}
        assert store.trials.renew([cancelled]) == set()
        assert [t.state for t in store.trials.find(CAMPAIGN, [QUEUED])] == [QUEUED, QUEUED]

    def test_of_very_many_attempts_the_last_are_kept_and_all_are_counted(self, store: MongoStore) -> None:
        propose(store, 0)
        preempted = Failure(cause=Cause.PREEMPTED, message="stopped")
        leases = []
        for step in range(1, KEPT_ATTEMPTS + 4):
            leases.append(claim(store))
            store.reports.add(leases[-1], [Report(step=step, metrics={"loss": 1.0 / step})])
            assert store.trials.end_attempt(leases[-1], preempted) is QUEUED
        last = claim(store)
        trial = store.trials.get(CAMPAIGN, 0)
        assert trial.lease is not None
        assert trial.claims == KEPT_ATTEMPTS + 4
        assert (last.attempt, trial.lease.attempt) == (trial.claims - 1, trial.claims - 1)
        assert [a.token for a in trial.attempts] == [lease.token for lease in [*leases, last]][-KEPT_ATTEMPTS:]
        assert trial.ends == {"preempted": KEPT_ATTEMPTS + 3}
        assert [(r.step, r.attempt) for r in store.reports.curve(CAMPAIGN, 0)][-1] == (67, KEPT_ATTEMPTS + 2)
        self._fence_of_very_many(store, leases, last)

    def _fence_of_very_many(self, store: MongoStore, leases: list[Lease], last: Lease) -> None:
        for old in (leases[0], leases[-1]):
            with pytest.raises(LeaseLostError):
                store.reports.add(old, [Report(step=1, metrics={"loss": 9.0})])
            with pytest.raises(LeaseLostError, match="dropped" if old is leases[0] else "kept as late"):
                store.trials.finish(old, result(-1.0))
        store.reports.add(last, [Report(step=1, metrics={"loss": 5.0})])
        assert [(r.step, r.attempt) for r in store.reports.curve(CAMPAIGN, 0)] == [(1, KEPT_ATTEMPTS + 3)]
        expire(store, last)
        assert store.trials.reap(CAMPAIGN) == [0]
        store.trials.finish(last, result(3.0))
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score) == (TrialState.FINISHED, 3.0)
        assert [a.late_result is not None for a in trial.attempts] == [False] * 62 + [True, False]
