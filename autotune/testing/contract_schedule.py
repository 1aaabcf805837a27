"""What every store must do for schedules: pauses with rung scores and checkpoints, promotions, stops."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from autotune.errors import LeaseLostError
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, claim, expire, failure, reaped, result, running, stored, taken_over
from autotune.trial import Cause, TrialState

PAUSED, QUEUED, PRUNED = TrialState.PAUSED, TrialState.QUEUED, TrialState.PRUNED
REFERENCE: dict[str, Any] = {"sha256": "a" * 64, "size": 10, "step": 3, "url": None}
LATER: dict[str, Any] = {"sha256": "b" * 64, "size": 11, "step": 5, "url": None}


def kept(store: MongoStore, number: int = 0) -> str | None:
    """Return the hash of a trial's checkpoint, or None."""
    checkpoint = store.trials.get(CAMPAIGN, number).checkpoint
    return None if checkpoint is None else str(checkpoint["sha256"])


class ScheduleContract:
    """Pauses, promotions and stops by a schedule; checkpoints."""

    def test_a_pause_writes_one_rung_score_and_the_checkpoint(self, store: MongoStore) -> None:
        lease = running(store)
        for _ in range(3):
            store.trials.pause(lease, 0.5, checkpoint=REFERENCE)
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.rung, trial.rung_scores, kept(store)) == (PAUSED, 0, (0.5,), "a" * 64)
        assert store.trials.promote(CAMPAIGN, 0, 1, 9)
        again = claim(store)
        store.trials.pause(lease, 0.5, checkpoint=REFERENCE)
        assert store.trials.get(CAMPAIGN, 0).state is TrialState.RUNNING, "the reply of the first call was lost"
        store.trials.pause(again, 0.25, checkpoint=LATER)
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.rung, trial.target, trial.rung_scores, kept(store)) == (1, 9, (0.5, 0.25), "b" * 64)

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
    def test_a_rung_score_that_is_no_number_is_none(self, store: MongoStore, value: float | None) -> None:
        store.trials.pause(running(store), value)
        assert store.trials.get(CAMPAIGN, 0).rung_scores == (None,)

    def test_a_pause_without_a_lease_changes_nothing(self, store: MongoStore) -> None:
        old, new = taken_over(store)
        before = stored(store, 0)
        with pytest.raises(LeaseLostError):
            store.trials.pause(old, 0.5, checkpoint=REFERENCE)
        assert stored(store, 0) == before
        store.trials.pause(new, 0.7)
        assert store.trials.get(CAMPAIGN, 0).rung_scores == (0.7,)

    def test_a_promotion_happens_once_and_only_from_the_rung_below(self, store: MongoStore) -> None:
        lease = running(store)
        assert not store.trials.promote(CAMPAIGN, 0, 1, 3), "it runs"
        store.trials.pause(lease, 0.5)
        assert not store.trials.promote(CAMPAIGN, 0, 2, 9), "it waits behind rung 0"
        assert store.trials.promote(CAMPAIGN, 0, 1, 3)
        assert not store.trials.promote(CAMPAIGN, 0, 1, 3)
        store.trials.pause(claim(store), 0.4)
        assert not store.trials.promote(CAMPAIGN, 0, 1, 3), "a coordinator that is behind says it once more"
        assert store.trials.promote(CAMPAIGN, 0, 2, None)
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.rung, trial.target, trial.rung_scores) == (QUEUED, 2, None, (0.5, 0.4))
        assert not store.trials.promote(CAMPAIGN, 7, 1, 3)

    def test_coordinators_that_race_promote_once(self, store: MongoStore) -> None:
        for number in range(10):
            store.trials.pause(running(store, number), 0.5)
        start = threading.Barrier(4)

        def promote_all(_: int) -> int:
            start.wait()
            return sum(store.trials.promote(CAMPAIGN, number, 1, 3) for number in range(10))

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(promote_all, range(4))) == 10
        assert {(t.state, t.rung) for t in store.trials.find(CAMPAIGN)} == {(QUEUED, 1)}

    def test_a_promotion_and_a_prune_race_to_one_of_two_ends(self, store: MongoStore) -> None:
        for number in range(10):
            store.trials.pause(running(store, number), 0.5)
        start = threading.Barrier(2)

        def promote() -> set[int]:
            start.wait()
            return {n for n in range(10) if store.trials.promote(CAMPAIGN, n, 1, 3)}

        def prune() -> set[int]:
            start.wait()
            return {n for n in reversed(range(10)) if store.trials.prune(CAMPAIGN, n)}

        with ThreadPoolExecutor(2) as pool:
            promoting, pruning = pool.submit(promote), pool.submit(prune)
            promoted, pruned = promoting.result(), pruning.result()
        assert promoted | pruned == set(range(10))
        assert not promoted & pruned

    def test_a_paused_trial_of_no_schedule_goes_on_where_it_was(self, store: MongoStore) -> None:
        store.trials.pause(running(store), 0.5)
        assert store.trials.promote(CAMPAIGN, 0, 0, None)
        assert store.trials.get(CAMPAIGN, 0).state is QUEUED

    def test_a_result_brings_the_score_of_its_rung(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.pause(lease, 0.5)
        store.trials.promote(CAMPAIGN, 0, 1, None)
        again = claim(store)
        for _ in range(2):
            store.trials.finish(again, result(0.3), rung_score=0.25)
        assert store.trials.get(CAMPAIGN, 0).rung_scores == (0.5, 0.25)
        other = running(store, 1)
        store.trials.finish(other, result(0.3))
        assert store.trials.get(CAMPAIGN, 1).rung_scores == ()

    def test_a_delivered_result_brings_it_too(self, store: MongoStore) -> None:
        lease = reaped(store)
        for _ in range(2):
            store.trials.finish(lease, result(0.3), rung_score=0.25)
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.rung_scores) == (TrialState.FINISHED, (0.25,))

    def test_a_checkpoint_is_written_by_the_holder_alone(self, store: MongoStore) -> None:
        old, new = taken_over(store)
        with pytest.raises(LeaseLostError):
            store.trials.keep_checkpoint(old, REFERENCE)
        assert kept(store) is None
        store.trials.keep_checkpoint(new, REFERENCE)
        store.trials.keep_checkpoint(new, LATER)
        assert kept(store) == "b" * 64
        store.trials.end_attempt(new, failure(Cause.PREEMPTED))
        assert kept(store) == "b" * 64, "the next attempt goes on from there"
        with pytest.raises(LeaseLostError):
            store.trials.keep_checkpoint(new, REFERENCE)
        again = claim(store)
        expire(store, again)
        assert store.trials.reap(CAMPAIGN) == [0]
        assert kept(store) == "b" * 64

    def test_a_retried_trial_is_scored_at_its_rung_anew(self, store: MongoStore) -> None:
        """One was cancelled while it waited at rung 0, one failed on the way to rung 1."""
        for number in range(2):
            store.trials.pause(running(store, number), 0.5, checkpoint=REFERENCE)
        store.trials.promote(CAMPAIGN, 1, 1, 3)
        store.trials.end_attempt(claim(store), failure(Cause.ERROR))
        store.trials.cancel(CAMPAIGN, "enough")
        assert store.trials.retry(CAMPAIGN, [0, 1]) == [0, 1]
        scores = {t.number: (t.state, t.rung, t.rung_scores) for t in store.trials.find(CAMPAIGN)}
        assert scores == {0: (QUEUED, 0, ()), 1: (QUEUED, 1, (0.5,))}
        for _ in range(2):
            lease = claim(store)
            store.trials.pause(lease, 0.4)
        assert [t.rung_scores for t in store.trials.find(CAMPAIGN)] == [(0.4,), (0.5, 0.4)]

    def test_a_stop_ends_a_running_trial_and_its_holder_loses_the_lease(self, store: MongoStore) -> None:
        lease = running(store)
        assert store.trials.stop(CAMPAIGN, 0, "worse than the median")
        assert not store.trials.stop(CAMPAIGN, 0, "worse than the median")
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.lease) == (PRUNED, None)
        assert trial.ended_at is not None
        (attempt,) = trial.attempts
        assert (attempt.cause, attempt.message) == (Cause.SCHEDULE, "worse than the median")
        assert attempt.ended_at is not None
        assert store.trials.renew([lease]) == set()
        with pytest.raises(LeaseLostError):
            store.trials.pause(lease, 0.5)
        with pytest.raises(LeaseLostError):
            store.trials.finish(lease, result(0.5), rung_score=0.5)
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score, trial.rung_scores) == (PRUNED, None, ())

    def test_only_a_running_trial_is_stopped(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.pause(lease, 0.5)
        before = stored(store, 0)
        assert not store.trials.stop(CAMPAIGN, 0, "why")
        assert not store.trials.stop(CAMPAIGN, 7, "why")
        assert stored(store, 0) == before
