"""What every store must do when people steer a campaign: budgets, revisions, time spent, workers that refuse."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from autotune.errors import NotFoundError, StateError
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, back_date, campaign_record, propose, result, running, worker_record
from autotune.trial import CampaignState, Origin

RUNNING, PAUSED, FINISHED = CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.FINISHED
FAILED, CANCELLED = CampaignState.FAILED, CampaignState.CANCELLED
HOUR_S = 3600.0


def create(store: MongoStore, state: CampaignState = RUNNING, **changes: Any) -> None:
    """Create a campaign in a state."""
    store.campaigns.create(campaign_record(**changes))
    if state is not RUNNING:
        store.campaigns.set_state(CAMPAIGN, state, expected=[RUNNING], message="why")


class SteeringContract:
    """Budgets, revisions, the time that a campaign ran, what workers are and refuse."""

    def test_extend_sets_totals_once(self, store: MongoStore) -> None:
        create(store)
        larger = Extension(max_trials=9, max_hours=2.5)
        assert store.campaigns.extend(CAMPAIGN, larger, "ann")
        assert not store.campaigns.extend(CAMPAIGN, larger, "ann")
        assert not store.campaigns.extend(CAMPAIGN, Extension(), "ann")
        found = store.campaigns.get(CAMPAIGN)
        assert (found.max_trials, found.max_hours, found.max_device_hours) == (9, 2.5, None)
        assert (found.state, found.revision) == (RUNNING, 1)
        events = [(e["action"], e["who"], e["detail"]) for e in store.campaigns.events(CAMPAIGN)[1:]]
        assert events == [("extend", "ann", {"max_trials": 9, "max_hours": 2.5})]

    def test_many_who_extend_at_once_write_one_event(self, store: MongoStore) -> None:
        create(store)
        start = threading.Barrier(6)

        def extend(_: int) -> bool:
            start.wait()
            return store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(extend, range(6))) == 1
        assert [e["action"] for e in store.campaigns.events(CAMPAIGN)] == ["create", "extend"]
        assert store.campaigns.get(CAMPAIGN).revision == 1

    def test_extend_below_what_is_there_is_refused(self, store: MongoStore) -> None:
        create(store)
        for number in range(3):
            propose(store, number)
        before = store.campaigns.get(CAMPAIGN)
        with pytest.raises(StateError, match="3 trials already"):
            store.campaigns.extend(CAMPAIGN, Extension(max_trials=2))
        assert store.campaigns.get(CAMPAIGN) == before
        assert store.campaigns.extend(CAMPAIGN, Extension(max_trials=3))
        with pytest.raises(NotFoundError):
            store.campaigns.extend("nobody", Extension(max_trials=3))

    @pytest.mark.parametrize("state", [RUNNING, PAUSED, FAILED])
    def test_extend_leaves_the_state_of_what_has_not_finished(self, store: MongoStore, state: CampaignState) -> None:
        create(store, state)
        before = store.campaigns.get(CAMPAIGN)
        assert store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))
        found = store.campaigns.get(CAMPAIGN)
        assert (found.state, found.message, found.ended_at) == (state, before.message, before.ended_at)

    def test_a_finished_campaign_with_room_goes_on(self, store: MongoStore) -> None:
        create(store, FINISHED)
        for number in range(4):
            propose(store, number)
        assert store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))
        found = store.campaigns.get(CAMPAIGN)
        assert (found.state, found.message, found.ended_at) == (RUNNING, "", None)
        assert store.campaigns.events(CAMPAIGN)[-1]["detail"] == {"max_trials": 9, "reopened": True}
        store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING])
        assert not store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))
        assert store.campaigns.get(CAMPAIGN).state is FINISHED, "it finished with this budget"

    def test_a_finished_campaign_without_room_stays_finished(self, store: MongoStore) -> None:
        create(store, max_hours=1.0)
        back_date(store, 2.0)
        for number in range(4):
            propose(store, number)
        store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING])
        for extension in (Extension(max_hours=9.0), Extension(max_hours=1.5, max_trials=9), Extension(max_trials=5)):
            assert store.campaigns.extend(CAMPAIGN, extension)
            assert store.campaigns.get(CAMPAIGN).state is FINISHED, f"{extension} leaves no room"
        assert store.campaigns.extend(CAMPAIGN, Extension(max_hours=9.0))
        assert store.campaigns.get(CAMPAIGN).state is RUNNING

    def test_a_cancelled_campaign_gets_no_more(self, store: MongoStore) -> None:
        create(store, CANCELLED)
        with pytest.raises(StateError, match="cancelled"):
            store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))
        assert store.campaigns.get(CAMPAIGN).max_trials == 4

    def test_touch_raises_the_revision_and_nothing_else(self, store: MongoStore) -> None:
        create(store)
        before = store.campaigns.get(CAMPAIGN)
        for revision in (1, 2):
            store.campaigns.touch(CAMPAIGN)
            assert store.campaigns.get(CAMPAIGN).revision == revision
        found = store.campaigns.get(CAMPAIGN)
        assert (found.state, found.max_trials, found.created_at) == (before.state, 4, before.created_at)

    def test_a_campaign_that_was_changed_meanwhile_is_not_ended(self, store: MongoStore) -> None:
        create(store)
        seen = store.campaigns.get(CAMPAIGN).revision
        store.campaigns.touch(CAMPAIGN)
        with pytest.raises(StateError):
            store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING], revision=seen)
        assert store.campaigns.get(CAMPAIGN).state is RUNNING
        assert store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING], revision=seen + 1)

    def test_only_time_in_state_running_counts(self, store: MongoStore) -> None:
        def used_h() -> float:
            return store.campaigns.get(CAMPAIGN).used_s / HOUR_S

        create(store)
        assert 0 <= used_h() < 0.1
        back_date(store, 3.0)
        assert used_h() == pytest.approx(3.0, abs=0.1)
        store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING])
        paused_h = used_h()
        assert paused_h == pytest.approx(3.0, abs=0.1)
        back_date(store, 50.0)
        assert used_h() == paused_h, "a pause does not count"
        store.campaigns.set_state(CAMPAIGN, RUNNING, expected=[PAUSED])
        assert used_h() == pytest.approx(3.0, abs=0.1)
        back_date(store, 2.0)
        store.campaigns.extend(CAMPAIGN, Extension(max_trials=9))
        assert used_h() == pytest.approx(5.0, abs=0.1), "a larger budget counts nothing twice"
        store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING])
        ended_h = used_h()
        assert ended_h == used_h() == pytest.approx(5.0, abs=0.1)
        store.campaigns.extend(CAMPAIGN, Extension(max_trials=10))
        assert store.campaigns.get(CAMPAIGN).state is RUNNING
        back_date(store, 1.0)
        assert used_h() == pytest.approx(6.0, abs=0.1)

    def test_the_new_fields_of_a_campaign_come_back(self, store: MongoStore) -> None:
        environment = {"versions": {"scvi-tools": "1.3", "a.b": "$1"}, "objective_hash": "abc"}
        create(store, environment=environment, max_hours=1.5, max_device_hours=3.0)
        found = store.campaigns.get(CAMPAIGN)
        assert (found.environment, found.max_hours, found.max_device_hours) == (environment, 1.5, 3.0)
        assert found.revision == 0

    def test_claim_writes_down_share_versions_and_mismatch(self, store: MongoStore) -> None:
        propose(store, 0)
        versions = {"scvi-tools": "1.3", "$odd.name": "$$NOW"}
        trial = store.trials.claim(
            ["another", CAMPAIGN], owner="w", token="t", duration_s=600.0, share=0.25, threads=3, versions=versions,
            mismatch={CAMPAIGN: ["torch 2.1, not 2.2", "$x"], "another": ["numpy"]},
        )  # fmt: skip
        assert trial == store.trials.get(CAMPAIGN, 0)
        (attempt,) = trial.attempts
        assert (attempt.share, attempt.threads, attempt.versions) == (0.25, 3, versions)
        assert attempt.mismatch == ("torch 2.1, not 2.2", "$x")
        propose(store, 1)
        plain = store.trials.claim([CAMPAIGN], owner="w", token="u", duration_s=600.0)
        assert plain is not None
        (attempt,) = plain.attempts
        assert (attempt.share, attempt.threads, attempt.versions, attempt.mismatch) == (1.0, 0, {}, ())

    def test_who_chose_a_configuration_is_kept(self, store: MongoStore) -> None:
        propose(store, 0)
        store.trials.propose(CAMPAIGN, 1, {"x": 9}, "by hand", seed=1, origin=Origin.PERSON)
        assert [t.origin for t in store.trials.find(CAMPAIGN)] == [Origin.SEARCH, Origin.PERSON]
        store.trials.finish(running(store, 2), result(1.0))
        assert [t.claims for t in store.trials.find(CAMPAIGN)] == [1, 0, 0]

    def test_workers_say_why_they_refuse_a_campaign(self, store: MongoStore) -> None:
        store.workers.register(worker_record("w", refusals={"old": "no data"}))
        store.workers.refuse("w", CAMPAIGN, "torch 2.1, not $2.2")
        [worker] = store.workers.live(CAMPAIGN)
        assert worker.refusals == {"old": "no data", CAMPAIGN: "torch 2.1, not $2.2"}
        store.workers.refuse("w", "old", None)
        store.workers.refuse("w", "old", None)
        assert store.workers.live()[0].refusals == {CAMPAIGN: "torch 2.1, not $2.2"}
        store.workers.refuse("nobody", CAMPAIGN, "gone")
        assert [w.id for w in store.workers.live()] == ["w"]
