"""What every store must do with attempts: leases, fences, reports, results, causes."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from autotune.clock import SystemClock
from autotune.errors import LeaseLostError
from autotune.lifecycle import RetryPolicy
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import (
    CAMPAIGN,
    campaign_record,
    claim,
    expire,
    failure,
    propose,
    result,
    running,
    server_now,
    stored,
    taken_over,
    until,
)
from autotune.trial import CampaignState, Cause, Report, TrialState

DAY_S = 86_400.0
MAX_KILLED_ATTEMPTS = RetryPolicy().max_kills


class AttemptContract:
    """Leases and the fence, reports, results, causes of end."""

    def test_renew_keeps_what_is_held_and_names_what_is_lost(self, store: MongoStore) -> None:
        lost, current = taken_over(store, 0)
        other = running(store, 1)
        expire(store, current)
        assert store.trials.renew([lost, current, other]) == {current.token, other.token}
        assert store.trials.reap(CAMPAIGN) == []
        assert store.trials.renew([]) == set()

    def test_a_lease_lasts_as_long_as_it_says_from_the_last_renewal(self, store: MongoStore) -> None:
        propose(store, 0)
        lease = claim(store, duration_s=30.0)
        expire(store, lease)
        store.trials.renew([lease])
        renewed = store.trials.get(CAMPAIGN, 0).lease
        assert renewed is not None
        assert renewed.expires_at is not None
        now = server_now(store)
        assert timedelta(seconds=20) < renewed.expires_at - now <= timedelta(seconds=30)

    def test_reap_takes_only_what_ran_out(self, store: MongoStore) -> None:
        propose(store, 0)
        propose(store, 1)
        propose(store, 2)
        short, long = claim(store, duration_s=0.05), claim(store)
        until(lambda: store.trials.reap(CAMPAIGN) == [short.number])
        trial = store.trials.get(CAMPAIGN, short.number)
        assert (trial.state, trial.lease, trial.ended_at) == (TrialState.QUEUED, None, None)
        assert trial.attempts[0].cause == Cause.LOST
        assert trial.attempts[0].ended_at is not None
        assert store.trials.get(CAMPAIGN, long.number).state is TrialState.RUNNING
        assert store.trials.reap(CAMPAIGN) == []

    @pytest.mark.parametrize("offset_s", [-DAY_S, DAY_S])
    def test_a_wrong_clock_of_the_caller_changes_no_lease(
        self, store: MongoStore, monkeypatch: pytest.MonkeyPatch, offset_s: float
    ) -> None:
        monkeypatch.setattr(time, "time", lambda: SystemClock().now().timestamp() + offset_s)
        lease = running(store)
        now = server_now(store)
        assert lease.expires_at is not None
        assert abs((lease.expires_at - now).total_seconds() - lease.duration_s) < 30
        assert store.trials.reap(CAMPAIGN) == []
        expire(store, lease)
        assert store.trials.reap(CAMPAIGN) == [0]

    def test_reap_leaves_other_campaigns_alone(self, store: MongoStore) -> None:
        expire(store, running(store))
        assert store.trials.reap("another") == []
        assert store.trials.reap(CAMPAIGN) == [0]

    def test_a_holder_whose_lease_ran_out_but_was_not_reaped_still_wins(self, store: MongoStore) -> None:
        lease = running(store)
        expire(store, lease)
        store.reports.add(lease, [Report(step=1, metrics={"loss": 1.0})])
        store.trials.finish(lease, result(0.25))
        assert store.trials.reap(CAMPAIGN) == []
        assert store.trials.get(CAMPAIGN, 0).score == 0.25

    def test_no_result_is_lost_in_a_race_of_reap_and_finish(self, store: MongoStore) -> None:
        leases = []
        for number in range(20):
            propose(store, number)
            leases.append(claim(store))
            expire(store, leases[-1])
        start = threading.Barrier(2)

        def finish_all() -> set[int]:
            start.wait()
            won = set()
            for lease in leases:
                try:
                    store.trials.finish(lease, result(float(lease.number)))
                except LeaseLostError:
                    continue
                won.add(lease.number)
            return won

        def reap_all() -> set[int]:
            start.wait()
            return {number for _ in range(5) for number in store.trials.reap(CAMPAIGN)}

        with ThreadPoolExecutor(2) as pool:
            finishing, reaping = pool.submit(finish_all), pool.submit(reap_all)
            finished, reaped = finishing.result(), reaping.result()
        assert finished == set(range(20)), "a result that comes after the reaping is accepted too: nobody had begun"
        for trial in store.trials.find(CAMPAIGN):
            assert (trial.state, trial.lease, trial.score) == (TrialState.FINISHED, None, float(trial.number))
            assert [a.cause for a in trial.attempts] == [None]
            assert trial.ends == ({"lost": 1} if trial.number in reaped else {})

    def test_finish_is_repeatable(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.finish(lease, result(0.5, epochs=3), {"train_s": 1.5})
        before = stored(store, 0)
        store.trials.finish(lease, result(0.5, epochs=3), {"train_s": 1.5})
        assert stored(store, 0) == before
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score, trial.facts, trial.lease) == (TrialState.FINISHED, 0.5, {"epochs": 3}, None)
        assert trial.metrics["loss"]["se"] == 0.1
        assert trial.attempts[0].timing == {"train_s": 1.5}
        assert trial.ended_at is not None
        assert trial.attempts[0].cause is None

    def test_a_finished_trial_never_changes(self, store: MongoStore) -> None:
        lease = running(store)
        store.trials.finish(lease, result(0.5))
        before = stored(store, 0)
        store.trials.finish(lease, result(0.1))
        with pytest.raises(LeaseLostError):
            store.trials.end_attempt(lease, failure(Cause.ERROR))
        with pytest.raises(LeaseLostError):
            store.reports.add(lease, [Report(step=9, metrics={"loss": 1.0})])
        assert store.trials.renew([lease]) == set()
        assert store.trials.cancel(CAMPAIGN) == 0
        assert store.trials.reap(CAMPAIGN) == []
        assert stored(store, 0) == before

    def test_a_stale_writer_is_refused_and_changes_nothing(self, store: MongoStore) -> None:
        old, _ = taken_over(store)
        before = stored(store, 0)
        with pytest.raises(LeaseLostError):
            store.reports.add(old, [Report(step=1, metrics={"loss": 1.0})])
        with pytest.raises(LeaseLostError):
            store.trials.end_attempt(old, failure(Cause.ERROR))
        with pytest.raises(LeaseLostError):
            store.trials.end_attempt(old, failure(Cause.LOST), process_killed=True)
        assert store.trials.renew([old]) == set()
        assert stored(store, 0) == before
        assert store.reports.curve(CAMPAIGN, 0) == []

    def test_a_late_result_stays_with_its_attempt(self, store: MongoStore) -> None:
        old, new = taken_over(store)
        for _ in range(2):
            with pytest.raises(LeaseLostError, match="late"):
                store.trials.finish(old, result(-100.0))
        assert store.trials.get(CAMPAIGN, 0).score is None
        store.trials.finish(new, result(1.0))
        with pytest.raises(LeaseLostError, match="late"):
            store.trials.finish(old, result(-200.0))
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.score) == (TrialState.FINISHED, 1.0)
        assert trial.attempts[0].late_result is not None
        assert trial.attempts[0].late_result["score"] == -200.0
        assert trial.attempts[1].late_result is None
        best = store.trials.best(CAMPAIGN, "min")
        assert best is not None
        assert best.score == 1.0

    def test_reports_are_idempotent(self, store: MongoStore) -> None:
        lease = running(store)
        sent = [Report(step=step, metrics={"loss": 1.0 / step}) for step in (1, 2, 3)]
        store.reports.add(lease, sent)
        store.reports.add(lease, sent)
        store.reports.add(lease, [])
        assert store.reports.curve(CAMPAIGN, 0) == sent

    def test_a_later_attempt_wins_per_step(self, store: MongoStore) -> None:
        old = running(store)
        store.reports.add(old, [Report(step=s, metrics={"loss": 9.0}) for s in (1, 2, 3)])
        expire(store, old)
        store.trials.reap(CAMPAIGN)
        new = claim(store)
        store.reports.add(new, [Report(step=s, metrics={"loss": 1.0}) for s in (2,)])
        assert [(r.step, r.attempt, r.metrics["loss"]) for r in store.reports.curve(CAMPAIGN, 0)] == [
            (1, 0, 9.0),
            (2, 1, 1.0),
        ]

    @pytest.mark.parametrize(
        ("cause", "state"),
        [
            (Cause.LOST, TrialState.QUEUED),
            (Cause.PREEMPTED, TrialState.QUEUED),
            (Cause.ERROR, TrialState.FAILED),
            (Cause.NOT_A_NUMBER, TrialState.FAILED),
            (Cause.OUT_OF_MEMORY, TrialState.QUEUED),
            (Cause.TIMEOUT, TrialState.FAILED),
            (Cause.STOPPED, TrialState.CANCELLED),
            (Cause.SCHEDULE, TrialState.PRUNED),
        ],
    )
    def test_causes_lead_where_the_policy_says(self, store: MongoStore, cause: Cause, state: TrialState) -> None:
        lease = running(store)
        assert store.trials.end_attempt(lease, failure(cause), timing={"s": 1.0}) is state
        trial = store.trials.get(CAMPAIGN, 0)
        assert (trial.state, trial.lease, trial.score) == (state, None, None)
        assert (trial.ended_at is None) == (state is TrialState.QUEUED)
        (attempt,) = trial.attempts
        assert (attempt.cause, attempt.message, attempt.exit_code) == (cause, "it broke", 1)
        assert (attempt.traceback, attempt.log_tail) == ("Traceback ...", "last line")
        assert trial.ends == {str(cause): 1}

    def test_end_attempt_is_repeatable(self, store: MongoStore) -> None:
        lease = running(store)
        lost = failure(Cause.LOST)
        assert store.trials.end_attempt(lease, lost, process_killed=True) is TrialState.QUEUED
        assert store.trials.end_attempt(lease, lost, process_killed=True) is TrialState.QUEUED
        claim(store)
        before = stored(store, 0)
        assert store.trials.end_attempt(lease, lost, process_killed=True) is TrialState.QUEUED
        assert stored(store, 0) == before

    @pytest.mark.parametrize("cause", [Cause.LOST, Cause.PREEMPTED])
    def test_losing_workers_never_uses_up_a_trial(self, store: MongoStore, cause: Cause) -> None:
        propose(store, 0)
        for _ in range(2 * MAX_KILLED_ATTEMPTS):
            assert store.trials.end_attempt(claim(store), failure(cause)) is TrialState.QUEUED

    def test_a_training_that_is_killed_each_time_fails(self, store: MongoStore) -> None:
        propose(store, 0)
        killed = failure(Cause.LOST, "killed by SIGKILL")
        states = [
            store.trials.end_attempt(claim(store), killed, process_killed=True) for _ in range(MAX_KILLED_ATTEMPTS)
        ]
        assert states == [TrialState.QUEUED] * (MAX_KILLED_ATTEMPTS - 1) + [TrialState.FAILED]

    def test_a_kill_that_is_reported_twice_counts_once(self, store: MongoStore) -> None:
        propose(store, 0)
        killed = failure(Cause.LOST, "killed by SIGKILL")
        for _ in range(MAX_KILLED_ATTEMPTS - 1):
            lease = claim(store)
            for _ in range(2):
                assert store.trials.end_attempt(lease, killed, process_killed=True) is TrialState.QUEUED
        assert store.trials.end_attempt(claim(store), killed, process_killed=True) is TrialState.FAILED

    def test_cancel_ends_what_has_not_ended(self, store: MongoStore) -> None:
        store.trials.finish(running(store, 0), result(1.0))
        lease = running(store, 1)
        propose(store, 2)
        propose(store, 0, "another")
        assert store.trials.cancel(CAMPAIGN, "enough") == 2
        assert store.trials.cancel(CAMPAIGN, "enough") == 0
        states = [str(t.state) for t in store.trials.find(CAMPAIGN)]
        assert states == ["finished", "cancelled", "cancelled"]
        trial = store.trials.get(CAMPAIGN, 1)
        assert (trial.attempts[0].cause, trial.attempts[0].message) == (Cause.STOPPED, "enough")
        assert trial.ended_at is not None
        assert store.trials.renew([lease]) == set()
        with pytest.raises(LeaseLostError):
            store.trials.finish(lease, result(1.0))
        assert store.trials.get(CAMPAIGN, 1).state is TrialState.CANCELLED
        assert store.trials.claim([CAMPAIGN], owner="w", token=secrets.token_hex(8), duration_s=1.0) is None
        assert store.trials.get("another", 0).state is TrialState.QUEUED

    def test_cancel_while_the_campaign_is_as_it_was_seen(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        record = store.campaigns.get(CAMPAIGN)
        running(store, 0)
        propose(store, 1)
        running_state = CampaignState.RUNNING
        assert store.trials.cancel_if(CAMPAIGN, "late", state=CampaignState.FAILED) is None
        assert store.trials.cancel_if(CAMPAIGN, "late", state=running_state, revision=record.revision + 1) is None
        assert store.trials.cancel_if("another", "late", state=running_state) is None
        assert store.trials.cancel_if(CAMPAIGN, "enough", state=running_state, revision=record.revision) == 2
        assert {t.state for t in store.trials.find(CAMPAIGN)} == {TrialState.CANCELLED}
