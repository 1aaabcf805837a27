"""What every store must do with campaigns, their coordinators, workers, audit, and waiting for changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from autotune.errors import CampaignExistsError, NotFoundError, StateError
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import (
    CAMPAIGN,
    campaign_record,
    claim,
    expire_lead,
    forget_worker,
    propose,
    result,
    until,
    worker_record,
)
from autotune.trial import CampaignState, Report

RUNNING, PAUSED, FINISHED = CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.FINISHED


class CampaignContract:
    """Campaigns, leaders, workers, audit, watches."""

    def test_a_campaign_comes_back_as_it_went_in(self, store: MongoStore) -> None:
        spec = {"name": CAMPAIGN, "fixed": {"$x.y": "$$NOW"}}
        assert store.campaigns.create(campaign_record(spec=spec, facts={"cells": 3}))
        found = store.campaigns.get(CAMPAIGN)
        assert (found.spec, found.facts, found.state, found.max_trials) == (spec, {"cells": 3}, RUNNING, 4)
        assert found.created_at is not None
        assert found.ended_at is None

    def test_any_tells_whether_a_campaign_is_in_a_state(self, store: MongoStore) -> None:
        assert not store.campaigns.any([RUNNING])
        store.campaigns.create(campaign_record())
        assert store.campaigns.any([RUNNING])
        assert store.campaigns.any(list(CampaignState))
        assert not store.campaigns.any([CampaignState.PAUSED, CampaignState.FINISHED])
        assert not store.campaigns.any([])

    def test_create_is_idempotent(self, store: MongoStore) -> None:
        assert store.campaigns.create(campaign_record())
        first = store.campaigns.get(CAMPAIGN)
        assert not store.campaigns.create(campaign_record(max_trials=99))
        assert store.campaigns.get(CAMPAIGN) == first

    def test_another_definition_under_the_name_is_refused(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        first = store.campaigns.get(CAMPAIGN)
        with pytest.raises(CampaignExistsError, match="another definition"):
            store.campaigns.create(campaign_record(spec_hash="two"))
        assert store.campaigns.get(CAMPAIGN) == first

    def test_concurrent_launches_make_one_campaign(self, store: MongoStore) -> None:
        start = threading.Barrier(6)

        def launch(_: int) -> bool:
            start.wait()
            return store.campaigns.create(campaign_record())

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(launch, range(6))) == 1
        assert [e["action"] for e in store.campaigns.events(CAMPAIGN)] == ["create"]

    def test_set_state_is_idempotent_and_says_whether_it_moved(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        assert store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING], message="$$NOW", who="ann")
        assert not store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING], message="again")
        found = store.campaigns.get(CAMPAIGN)
        assert (found.state, found.message, found.ended_at) == (PAUSED, "$$NOW", None)
        assert store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[PAUSED])
        assert store.campaigns.get(CAMPAIGN).ended_at is not None

    def test_set_state_refuses_what_was_not_expected(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        store.campaigns.set_state(CAMPAIGN, FINISHED, expected=[RUNNING], message="all done")
        with pytest.raises(StateError, match="finished: all done"):
            store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING])
        assert store.campaigns.get(CAMPAIGN).state is FINISHED
        with pytest.raises(NotFoundError):
            store.campaigns.set_state("nobody", PAUSED, expected=[RUNNING])

    def test_events_are_kept_in_order(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record(), who="ann")
        store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING], message="lunch", who="bob")
        for number in range(10):
            store.campaigns.audit(CAMPAIGN, f"note-{number}", "eve", {"n": number})
        store.campaigns.audit("another", "create")
        events = store.campaigns.events(CAMPAIGN)
        assert [(e["action"], e["who"]) for e in events[:2]] == [("create", "ann"), ("paused", "bob")]
        assert events[1]["detail"] == {"message": "lunch"}
        assert [e["detail"]["n"] for e in events[2:]] == list(range(10))

    def test_find_campaigns(self, store: MongoStore) -> None:
        for name in ("a", "b"):
            store.campaigns.create(campaign_record(name))
        store.campaigns.set_state("a", PAUSED, expected=[RUNNING])
        assert {c.name for c in store.campaigns.find()} == {"a", "b"}
        assert [c.name for c in store.campaigns.find([RUNNING])] == ["b"]

    def test_one_coordinator_leads(self, store: MongoStore) -> None:
        start = threading.Barrier(8)

        def lead(thread: int) -> bool:
            start.wait()
            return store.leaders.lead(CAMPAIGN, f"$owner{thread}", 600)

        with ThreadPoolExecutor(8) as pool:
            led = list(pool.map(lead, range(8)))
        assert sum(led) == 1
        owner = f"$owner{led.index(True)}"
        assert store.leaders.leader(CAMPAIGN) == owner
        assert store.leaders.lead(CAMPAIGN, owner, 600)
        assert store.leaders.lead("another", "b", 600)

    def test_the_lead_is_taken_over_when_it_ran_out(self, store: MongoStore) -> None:
        assert store.leaders.lead(CAMPAIGN, "a", 600)
        assert not store.leaders.lead(CAMPAIGN, "b", 600)
        expire_lead(store)
        assert store.leaders.leader(CAMPAIGN) is None
        assert store.leaders.lead(CAMPAIGN, "b", 600)
        assert not store.leaders.lead(CAMPAIGN, "a", 600)
        assert store.leaders.leader(CAMPAIGN) == "b"

    def test_a_short_lead_runs_out_on_the_clock_of_the_store(self, store: MongoStore) -> None:
        assert store.leaders.lead(CAMPAIGN, "a", 0.05)
        until(lambda: store.leaders.lead(CAMPAIGN, "b", 600))

    def test_resigning_frees_the_lead_of_its_owner_only(self, store: MongoStore) -> None:
        store.leaders.lead(CAMPAIGN, "a", 600)
        store.leaders.resign(CAMPAIGN, "b")
        assert store.leaders.leader(CAMPAIGN) == "a"
        store.leaders.resign(CAMPAIGN, "a")
        assert store.leaders.leader(CAMPAIGN) is None
        assert store.leaders.lead(CAMPAIGN, "b", 600)

    def test_workers_that_live(self, store: MongoStore) -> None:
        store.workers.register(worker_record("all", versions={"scvi-tools": "1.3", "a.b": "$1"}))
        store.workers.register(worker_record("some", campaigns=("x",), devices=("cpu",)))
        store.workers.register(worker_record("gone"))
        assert {w.id for w in store.workers.live()} == {"all", "some", "gone"}
        store.workers.stopped("gone")
        assert [w.id for w in store.workers.live("x")] == ["all", "some"]
        assert [w.id for w in store.workers.live("y")] == ["all"]
        assert store.workers.live("y")[0].versions == {"scvi-tools": "1.3", "a.b": "$1"}
        forget_worker(store, "some")
        assert [w.id for w in store.workers.live("x")] == ["all"]
        store.workers.seen("some")
        assert [w.id for w in store.workers.live("x")] == ["all", "some"]

    def test_watching_for_work(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        with store.watch_work() as watch:
            assert not watch.wait(0.05)
            store.workers.register(worker_record("w"))
            assert not watch.wait(0.05)
            propose(store, 0)
            assert watch.wait(10)
            lease = claim(store)
            store.trials.renew([lease])
            store.reports.add(lease, [Report(step=1, metrics={"loss": 1.0})])
            store.trials.finish(lease, result(1.0))
            assert not watch.wait(0.05)
            store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING])
            assert watch.wait(10)

    def test_watching_the_progress_of_a_campaign(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record())
        store.campaigns.create(campaign_record("another"))
        propose(store, 0)
        with store.watch_progress(CAMPAIGN) as watch:
            lease = claim(store)
            store.trials.renew([lease])
            store.campaigns.set_state("another", PAUSED, expected=[RUNNING])
            assert not watch.wait(0.05)
            store.trials.finish(lease, result(1.0))
            assert watch.wait(10)
            store.workers.register(worker_record("w"))
            assert watch.wait(10)
            store.workers.seen("w")
            assert not watch.wait(0.05)
            store.workers.stopped("w")
            assert watch.wait(10)

    def test_changes_that_come_together_wake_once(self, store: MongoStore) -> None:
        store.campaigns.create(campaign_record(max_trials=20))
        with store.watch_work() as watch:
            for number in range(20):
                propose(store, number)
            assert watch.wait(10)
            assert watch.changed == "trials"
            more = [watch.wait(0.05) for _ in range(3)]
            assert not more[-1], "20 changes, and at most 3 answers of the server"
            propose(store, 20)
            store.campaigns.set_state(CAMPAIGN, PAUSED, expected=[RUNNING])
            assert watch.wait(10)
            assert watch.changed in (None, "trials"), "in several, unless the server answered between them"

    def test_a_watch_wakes_for_a_change_in_another_thread(self, store: MongoStore) -> None:
        with store.watch_work() as watch, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(watch.wait, 30)
            propose(store, 0)
            assert waiting.result(timeout=30)
