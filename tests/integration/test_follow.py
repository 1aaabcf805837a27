"""Following a campaign: what is shown is what the store has, at a bounded part of its time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from autotune.local.follow import Follower
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, campaign_record, propose, result, running
from autotune.trial import CampaignState, TrialState


@pytest.fixture
def slow(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A store in which counting trials takes a while; how often each was asked for."""
    asked: Counter[str] = Counter()
    counts = type(store.trials).counts

    def spy(self: Any, campaign: str) -> dict[TrialState, int]:
        asked["counts"] += 1
        time.sleep(0.1)
        return counts(self, campaign)

    monkeypatch.setattr(type(store.trials), "counts", spy)
    store.campaigns.create(campaign_record())
    return asked


def test_trials_are_counted_again_only_after_a_while(store: MongoStore, slow: Counter[str]) -> None:
    """After ten times as long as it took."""
    store.trials.finish(running(store, 0), result(3.0))
    follower = Follower(store, CAMPAIGN)
    began_s = time.monotonic()
    first = follower.progress()
    assert (first.counts, first.best and first.best.number) == ({TrialState.FINISHED: 1}, 0)
    propose(store, 1)
    while (now := follower.progress()).counts == first.counts:
        assert time.monotonic() - began_s < 10.0
    assert now.counts == {TrialState.FINISHED: 1, TrialState.QUEUED: 1}
    assert time.monotonic() - began_s > 1.0, "ten times a tenth of a second, and that tenth"
    assert slow["counts"] == 2


def test_the_end_is_seen_whole_at_once(store: MongoStore, slow: Counter[str]) -> None:
    follower = Follower(store, CAMPAIGN)
    assert follower.progress().state is CampaignState.RUNNING
    store.trials.finish(running(store, 0), result(3.0))
    store.campaigns.set_state(CAMPAIGN, CampaignState.FINISHED, expected=[CampaignState.RUNNING], message="", who="me")
    last = follower.progress()
    assert (last.state, last.counts, last.best and last.best.score) == (
        CampaignState.FINISHED, {TrialState.FINISHED: 1}, 3.0,
    )  # fmt: skip
    assert slow["counts"] == 2
