"""What every store must do with trials: propose, claim, read."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from autotune.errors import DuplicateError, NotFoundError, ObjectiveError, StoreError
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, LONG_S, campaign_record, claim, failure, propose, result, running, stored
from autotune.trial import Cause, Result, Trial, TrialState

ODD: dict[str, Any] = {
    "text": "$$NOW",
    "field": "$number",
    "expression": {"$add": [1, 2]},
    "a.dotted.key": 1,
    "$dollar": "$literal",
    "ünïcode ✓": "ä\u0000b",
    "": "empty key",
    "nested": [{"$set": {"state": "finished"}}, None, True, 2**40, 0.1],
}
"""Values and keys that a database might take for code."""


class TrialContract:
    """Proposing, claiming and reading."""

    def test_propose_writes_a_queued_trial(self, store: MongoStore) -> None:
        propose(store, 0, params={"x": 0.5, "layers": [1, 2]})
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.params, trial.seed) == (TrialState.QUEUED, {"x": 0.5, "layers": [1, 2]}, 0)
        assert trial.proposed_at is not None
        assert (trial.attempts, trial.lease, trial.score) == ((), None, None)

    def test_propose_refuses_a_number_that_is_there(self, store: MongoStore) -> None:
        propose(store, 0)
        before = stored(store, 0)
        with pytest.raises(DuplicateError):
            store.trials.propose(CAMPAIGN, 0, {"x": 99}, "another", seed=1)
        assert stored(store, 0) == before
        assert len(store.trials.find(CAMPAIGN)) == 1

    def test_propose_refuses_a_configuration_that_is_there(self, store: MongoStore) -> None:
        propose(store, 0)
        with pytest.raises(DuplicateError):
            store.trials.propose(CAMPAIGN, 1, {"x": 0}, "hash-0", seed=1)
        assert [t.number for t in store.trials.find(CAMPAIGN)] == [0]

    def test_one_configuration_may_have_several_folds_and_replicates(self, store: MongoStore) -> None:
        for number, (fold, replicate) in enumerate([(0, 0), (1, 0), (0, 1)]):
            store.trials.propose(CAMPAIGN, number, {"x": 1}, "same", seed=0, fold=fold, replicate=replicate)
        assert [(t.fold, t.replicate) for t in store.trials.find(CAMPAIGN)] == [(0, 0), (1, 0), (0, 1)]

    def test_concurrent_proposals_of_one_number_write_one_trial(self, store: MongoStore) -> None:
        start = threading.Barrier(8)

        def attempt(thread: int) -> bool:
            start.wait()
            try:
                store.trials.propose(CAMPAIGN, 0, {"x": thread}, f"hash-{thread}", seed=0)
            except DuplicateError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1
        assert len(store.trials.find(CAMPAIGN)) == 1

    def test_odd_values_come_back_as_they_went_in(self, store: MongoStore) -> None:
        propose(store, 0, params=ODD)
        assert store.trials.get(CAMPAIGN, 0).params == ODD
        lease = claim(store, owner="$owner")
        assert lease.owner == "$owner"
        metrics = {"$loss.x": {"value": 1.0, "note": "$$ROOT"}}
        store.trials.finish(lease, Result(score=1.0, metrics=metrics, facts=ODD))
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.metrics, trial.facts) == (metrics, ODD)

    @pytest.mark.parametrize("cause", [Cause.ERROR, Cause.STOPPED])
    def test_odd_messages_come_back_as_they_went_in(self, store: MongoStore, cause: Cause) -> None:
        lease = running(store)
        if cause is Cause.STOPPED:
            store.trials.cancel(CAMPAIGN, "$$NOW")
        else:
            store.trials.end_attempt(lease, failure(cause, "$$NOW"))
        assert store.trials.get(CAMPAIGN, 0).attempts[0].message == "$$NOW"

    def test_text_that_is_not_unicode_does_not_stop_a_failure_from_being_kept(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.end_attempt(lease, failure(Cause.ERROR, "no such file: caf\udce9.h5ad"))
        assert store.trials.get(CAMPAIGN, 0).attempts[0].message == "no such file: caf?.h5ad"

    @pytest.mark.parametrize("value", [2**70, {1, 2}, object(), "\udc80", "x" * 17_000_000, {1: 2}, {"a\0": 1}])
    def test_what_cannot_be_stored_is_an_error_of_ours(self, store: MongoStore, value: Any) -> None:
        lease = running(store)
        with pytest.raises(StoreError, match="JSON"):
            store.trials.finish(lease, result(1.0, bad=value))
        assert store.trials.get(CAMPAIGN, 0).state is TrialState.RUNNING

    def test_claim_takes_the_lowest_number_first(self, store: MongoStore) -> None:
        for number in (2, 0, 1):
            propose(store, number)
        assert [claim(store).number for _ in range(3)] == [0, 1, 2]
        assert store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S) is None

    def test_claim_serves_only_the_named_campaigns(self, store: MongoStore) -> None:
        propose(store, 0, "a")
        assert store.trials.claim([], owner="w", token="t", duration_s=1) is None
        assert store.trials.claim(["b"], owner="w", token="t", duration_s=1) is None
        trial = store.trials.claim(["b", "a"], owner="w", token="t", duration_s={"a": 7.5, "b": 1.0})
        assert trial is not None
        assert trial.campaign == "a"
        assert trial.lease is not None
        assert trial.lease.duration_s == 7.5

    def test_claim_writes_down_its_attempt(self, store: MongoStore) -> None:
        propose(store, 0)
        trial = store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S, host="h", device="cuda:0")
        assert trial == store.trials.get(CAMPAIGN, 0)
        assert trial.state is TrialState.RUNNING
        assert trial.started_at == trial.attempts[0].started_at is not None
        (attempt,) = trial.attempts
        assert (attempt.owner, attempt.token, attempt.host, attempt.device) == ("w", "t", "h", "cuda:0")

    def test_claim_repeated_with_its_token_returns_its_trial(self, store: MongoStore) -> None:
        for number in (0, 1):
            propose(store, number)
        first = store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
        assert first == store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
        assert store.trials.get(CAMPAIGN, 1).state is TrialState.QUEUED
        claim(store)
        assert first == store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)

    def test_claim_repeated_after_its_lease_was_lost_takes_another_trial(self, store: MongoStore) -> None:
        """The reply was lost, and the lease ran out before the worker asked again."""
        for number in (0, 1):
            propose(store, number)

        def ask() -> Trial | None:
            return store.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)

        lost = ask()
        assert lost is not None
        assert lost.lease is not None
        store.trials.end_attempt(lost.lease, failure(Cause.LOST))
        again = ask()
        assert again is not None
        assert again.number == 1
        assert ask() == again
        (ended,) = store.trials.get(CAMPAIGN, 0).attempts
        assert ended.cause == Cause.LOST
        assert claim(store).number == 0, "another token takes it"

    def test_each_trial_goes_to_one_of_many_threads(self, store: MongoStore) -> None:
        for number in range(50):
            propose(store, number)
        start = threading.Barrier(8)

        def work(thread: int) -> list[int]:
            start.wait()
            taken: list[int] = []
            while True:
                trial = store.trials.claim(
                    [CAMPAIGN], owner=str(thread), token=f"{thread}-{len(taken)}", duration_s=LONG_S
                )
                if trial is None:
                    return taken
                taken.append(trial.number)

        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(work, range(8)))
        assert sorted(n for some in taken for n in some) == list(range(50))
        assert Counter(t.lease.owner for t in store.trials.find(CAMPAIGN) if t.lease) == {
            str(thread): len(some) for thread, some in enumerate(taken) if some
        }

    def test_counts_and_heads(self, store: MongoStore) -> None:
        assert store.trials.counts(CAMPAIGN) == {}
        store.trials.finish(running(store, 0), result(0.5))
        running(store, 1)
        propose(store, 2)
        assert store.trials.counts(CAMPAIGN) == {
            TrialState.FINISHED: 1, TrialState.RUNNING: 1, TrialState.QUEUED: 1,
        }  # fmt: skip
        assert [(t.number, t.score) for t in store.trials.heads(CAMPAIGN)] == [(0, 0.5), (1, None), (2, None)]
        assert [t.number for t in store.trials.heads(CAMPAIGN, states=[TrialState.RUNNING])] == [1]
        assert [t.number for t in store.trials.heads(CAMPAIGN, numbers=[2, 0, 9])] == [0, 2]
        assert [t.number for t in store.trials.find(CAMPAIGN, [TrialState.QUEUED])] == [2]
        assert store.trials.running_by_owner(["w", "nobody"]) == {"w": 1}

    def test_best_is_the_lowest_number_among_equal_scores(self, store: MongoStore) -> None:
        assert store.trials.best(CAMPAIGN, "min") is None
        for number, score in enumerate([2.0, 1.0, 1.0, 3.0, 3.0]):
            store.trials.finish(running(store, number), result(score))
        store.trials.end_attempt(running(store, 5), failure(Cause.ERROR))
        lowest, highest = store.trials.best(CAMPAIGN, "min"), store.trials.best(CAMPAIGN, "max")
        assert lowest is not None
        assert highest is not None
        assert (lowest.number, highest.number) == (1, 3)

    @pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
    def test_a_score_that_is_no_number_is_refused(self, store: MongoStore, score: float) -> None:
        lease = running(store)
        before = stored(store, 0)
        with pytest.raises(ObjectiveError, match="finite"):
            store.trials.finish(lease, result(score))
        assert stored(store, 0) == before

    def test_unknown_trial(self, store: MongoStore) -> None:
        propose(store, 0)
        with pytest.raises(NotFoundError, match="no trial 7; it has 1"):
            store.trials.get(CAMPAIGN, 7)

    def test_unknown_campaign_names_the_nearest(self, store: MongoStore) -> None:
        with pytest.raises(NotFoundError, match="no campaigns"):
            store.campaigns.get("pancraes")
        store.campaigns.create(campaign_record("pancreas"))
        with pytest.raises(NotFoundError, match="did you mean 'pancreas'"):
            store.campaigns.get("pancraes")
