"""Races inside one call of the store: another process acts exactly between two commands that the call sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymongo
import pytest
from pymongo.monitoring import CommandListener, CommandStartedEvent

from autotune.errors import LeaseLostError, StateError
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import (
    CAMPAIGN,
    campaign_record,
    claim,
    expire,
    failure,
    propose,
    reaped,
    result,
    running,
    stored,
)
from autotune.trial import CampaignState, Cause, Report, TrialState


class Between(CommandListener):
    """Does something once, after a client's first command of a name was answered and before its next is sent."""

    def __init__(self) -> None:
        self.command = ""
        self.act: Callable[[], object] = lambda: None
        self.error: Exception | None = None
        self.done = False

    def started(self, event: CommandStartedEvent) -> None:
        """Nothing to do."""

    def succeeded(self, event: Any) -> None:
        if event.command_name == self.command and not self.done:
            self.done = True
            try:
                self.act()
            except Exception as error:  # noqa: BLE001 - the driver would swallow it
                self.error = error

    def failed(self, event: Any) -> None:
        """Nothing to do."""

    def after(self, command: str, act: Callable[[], object]) -> None:
        self.command, self.act = command, act


@pytest.fixture
def between() -> Between:
    return Between()


@pytest.fixture
def slow(store: MongoStore, store_uri: str, between: Between, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A second client of the store, the one that is interrupted."""
    client = pymongo.MongoClient
    monkeypatch.setattr(pymongo, "MongoClient", lambda *a, **k: client(*a, event_listeners=[between], **k))
    opened = MongoStore(store_uri)
    monkeypatch.undo()
    yield opened
    opened.close()
    assert between.done, "the race was run"
    assert between.error is None


def test_a_lease_renewed_while_reaping_is_not_reaped(store: MongoStore, slow: MongoStore, between: Between) -> None:
    lease = running(store)
    expire(store, lease)
    between.after("find", lambda: store.trials.renew([lease]))
    assert slow.trials.reap(CAMPAIGN) == []
    assert store.trials.get(CAMPAIGN, 0).state is TrialState.RUNNING


def test_what_is_retried_while_a_failed_campaign_is_tidied_up_is_not_cancelled(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    store.campaigns.create(campaign_record())
    failed, paused = CampaignState.FAILED, CampaignState.PAUSED
    store.trials.end_attempt(running(store, 0), failure(Cause.ERROR))
    propose(store, 1)
    store.campaigns.set_state(CAMPAIGN, failed, expected=[CampaignState.RUNNING])

    def retry() -> None:
        store.campaigns.set_state(CAMPAIGN, paused, expected=[failed])
        assert store.trials.retry(CAMPAIGN, [0]) == [0]

    between.after("find", retry)
    slow.trials.cancel_if(CAMPAIGN, "it failed", state=failed)
    assert [t.state for t in store.trials.find(CAMPAIGN)] == [TrialState.QUEUED, TrialState.CANCELLED]


def test_a_trial_that_changed_hands_while_reaping_stays_with_its_holder(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    expire(store, running(store, owner="old"))

    def change_hands() -> None:
        assert store.trials.reap(CAMPAIGN) == [0]
        expire(store, claim(store, owner="new"))

    between.after("find", change_hands)
    assert slow.trials.reap(CAMPAIGN) == []
    trial = store.trials.get(CAMPAIGN, 0)
    assert trial.lease is not None
    assert trial.lease.owner == "new"


def test_a_report_on_its_way_while_its_trial_changes_hands_replaces_nothing(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    old = running(store)

    def change_hands() -> None:
        expire(store, old)
        store.trials.reap(CAMPAIGN)
        store.reports.add(claim(store), [Report(step=1, metrics={"loss": 1.0})])

    between.after("update", change_hands)
    slow.reports.add(old, [Report(step=1, metrics={"loss": 9.0}), Report(step=2, metrics={"loss": 9.0})])
    assert [(r.step, r.attempt, r.metrics["loss"]) for r in store.reports.curve(CAMPAIGN, 0)] == [(1, 1, 1.0)]


def test_a_result_that_comes_while_a_late_one_is_kept_is_not_touched(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    old = running(store)
    expire(store, old)
    store.trials.reap(CAMPAIGN)
    new = claim(store)
    between.after("find", lambda: store.trials.finish(new, result(1.0)))
    with pytest.raises(LeaseLostError):
        slow.trials.finish(old, result(-9.0))
    assert stored(store, 0)["score"] == 1.0


def test_a_trial_reaped_while_it_is_cancelled_ends_cancelled(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    expire(store, running(store))
    between.after("find", lambda: store.trials.cancel(CAMPAIGN, "enough"))
    assert slow.trials.reap(CAMPAIGN) == []
    trial = store.trials.get(CAMPAIGN, 0)
    assert (trial.state, trial.attempts[0].message) == (TrialState.CANCELLED, "enough")


def test_a_trial_claimed_while_a_result_that_ran_out_is_delivered_stays_with_its_new_holder(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    old = reaped(store)
    between.after("update", lambda: claim(store, owner="new"))
    with pytest.raises(LeaseLostError, match="kept as late"):
        slow.trials.finish(old, result(-9.0))
    trial = store.trials.get(CAMPAIGN, 0)
    assert (trial.state, trial.score) == (TrialState.RUNNING, None)
    assert trial.lease is not None
    assert trial.lease.owner == "new"


def test_a_trial_cancelled_while_a_result_that_ran_out_is_delivered_ends_cancelled(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    old = reaped(store)
    between.after("update", lambda: store.trials.cancel(CAMPAIGN))
    with pytest.raises(LeaseLostError, match="kept as late"):
        slow.trials.finish(old, result(-9.0))
    assert store.trials.get(CAMPAIGN, 0).state is TrialState.CANCELLED


def test_a_lease_that_goes_while_its_holder_pauses_or_fails_is_not_the_old_holders(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    old = running(store)

    def change_hands() -> None:
        expire(store, old)
        store.trials.reap(CAMPAIGN)
        claim(store, owner="new")

    between.after("find", change_hands)
    with pytest.raises(LeaseLostError):
        slow.trials.end_attempt(old, failure(Cause.OUT_OF_MEMORY))
    trial = store.trials.get(CAMPAIGN, 0)
    assert (trial.state, trial.ends, trial.alone) == (TrialState.RUNNING, {"lost": 1}, False)


def test_a_campaign_cancelled_while_it_is_extended_stays_as_it_was(
    store: MongoStore, slow: MongoStore, between: Between
) -> None:
    store.campaigns.create(campaign_record())
    ended = CampaignState.CANCELLED
    between.after("aggregate", lambda: store.campaigns.set_state(CAMPAIGN, ended, expected=[CampaignState.RUNNING]))
    with pytest.raises(StateError, match="cancelled"):
        slow.campaigns.extend(CAMPAIGN, Extension(max_trials=99))
    assert store.campaigns.get(CAMPAIGN).max_trials == 4
    assert [e["action"] for e in store.campaigns.events(CAMPAIGN)] == ["create", "cancelled"]
