"""The coordinator on a real store: budgets, take-over, and what others do at a bad moment."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from autotune.clock import ManualClock
from autotune.coordinator import Coordinator
from autotune.mirror import Mirror
from autotune.planning import idle_slots
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, expire
from autotune.trial import CampaignState, Cause, Failure, Lease, Result, Trial, TrialState

Make = Callable[..., CampaignRecord]


def _register(store: MongoStore, slots: int = 1) -> None:
    store.workers.register(WorkerRecord(id="w", host="h", pid=1, slots=slots))


def _run_one(store: MongoStore, campaign: str = "demo") -> Trial | None:
    trial = store.trials.claim([campaign], owner="w", token=f"t{len(store.trials.find(campaign))}", duration_s=30)
    if trial is not None and trial.lease is not None:
        store.trials.finish(
            trial.lease, Result(score=trial.params["x"], metrics={"loss": {"value": trial.params["x"]}})
        )
    return trial


def test_one_coordinator_never_yields_to_itself(
    store: MongoStore, make_campaign: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_campaign(max_trials=10)
    _register(store)
    coordinator = Coordinator(store, "demo", ManualClock())
    with caplog.at_level(logging.INFO, logger="autotune.coordinator"):
        while coordinator.step() is CampaignState.RUNNING:
            _run_one(store)
    actions = [getattr(r, "action", "") for r in caplog.records]
    assert actions.count("propose") == 10
    assert "yield" not in actions
    assert [t.number for t in store.trials.find("demo")] == list(range(10))


def test_no_more_are_queued_than_slots_are_idle(store: MongoStore, make_campaign: Make) -> None:
    make_campaign(max_trials=10)
    coordinator = Coordinator(store, "demo", ManualClock())
    coordinator.step()
    assert store.trials.find("demo") == []
    _register(store, slots=3)
    for _ in range(3):
        coordinator.step()
    assert store.trials.counts("demo") == {TrialState.QUEUED: 3}
    store.trials.claim(["demo"], owner="w", token="a", duration_s=30)
    coordinator.step()
    assert store.trials.counts("demo") == {TrialState.QUEUED: 2, TrialState.RUNNING: 1}


def test_slots_that_serve_other_campaigns_are_not_idle(store: MongoStore, make_campaign: Make) -> None:
    make_campaign("other")
    make_campaign(max_trials=10)
    _register(store, slots=2)
    Coordinator(store, "other", ManualClock()).step()
    store.trials.claim(["other"], owner="w", token="a", duration_s=30)
    Coordinator(store, "demo", ManualClock()).step()
    assert store.trials.counts("demo") == {TrialState.QUEUED: 1}
    assert idle_slots({"w": 1, "v": 2}, store.trials.heads("demo")) == 3


def test_a_restarted_coordinator_goes_on_with_the_same_proposals(store: MongoStore, make_campaign: Make) -> None:
    search = {"algorithm": "tpe", "seed": 3, "startup": 4}
    for name in ("whole", "broken"):
        make_campaign(name, max_trials=12, search=search)
    _register(store)
    whole = Coordinator(store, "whole", ManualClock())
    while whole.step() is CampaignState.RUNNING:
        _run_one(store, "whole")
    state = CampaignState.RUNNING
    while state is CampaignState.RUNNING:
        coordinator = Coordinator(store, "broken", ManualClock())
        state = coordinator.step()
        _run_one(store, "broken")
        coordinator.resign()
    params = [[t.params for t in store.trials.find(name)] for name in ("whole", "broken")]
    assert params[0] == params[1]


def test_what_was_proposed_while_somebody_cancelled_is_dropped(store: MongoStore, make_campaign: Make) -> None:
    make_campaign(max_trials=10)
    _register(store, slots=2)
    coordinator = Coordinator(store, "demo", ManualClock())
    coordinator.step()
    store.campaigns.set_state("demo", CampaignState.CANCELLED, expected=[CampaignState.RUNNING])
    assert store.trials.counts("demo") == {TrialState.QUEUED: 2}
    assert coordinator.step() is CampaignState.CANCELLED
    assert store.trials.counts("demo") == {TrialState.CANCELLED: 2}


def test_a_pause_just_before_the_end_stands(
    store: MongoStore, make_campaign: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign(max_trials=1)
    _register(store)
    coordinator = Coordinator(store, "demo", ManualClock())
    coordinator.step()
    _run_one(store)
    refresh = Mirror.refresh

    def refresh_then_pause(mirror: Mirror) -> list[Trial]:
        trials = refresh(mirror)
        store.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING])
        return trials

    monkeypatch.setattr(Mirror, "refresh", refresh_then_pause)
    coordinator.step()
    assert coordinator.step() is CampaignState.PAUSED
    assert store.campaigns.get("demo").state is CampaignState.PAUSED


def test_a_campaign_is_read_anew_when_it_changed_or_after_a_while(
    store: MongoStore, make_campaign: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each trial that changes: four times a second then."""
    make_campaign(max_trials=100)
    _register(store)
    clock, reads, get = ManualClock(), [], store.campaigns.get

    def counted(name: str) -> CampaignRecord:
        reads.append(name)
        return get(name)

    monkeypatch.setattr(store.campaigns, "get", counted)
    coordinator = Coordinator(store, "demo", clock)
    for _ in range(5):
        assert coordinator.step(only_trials=True) is CampaignState.RUNNING
        _run_one(store)
    assert len(reads) == 1
    clock.advance(0.3)
    coordinator.step(only_trials=True)
    assert len(reads) == 2
    store.campaigns.set_state("demo", CampaignState.PAUSED, expected=[CampaignState.RUNNING], who="me")
    assert coordinator.step() is CampaignState.PAUSED


def _with_a_running_trial(store: MongoStore, make_campaign: Make) -> tuple[Coordinator, ManualClock, Lease]:
    """Return a coordinator that has led a campaign for longer than its leases last, its clock, and a trial's lease."""
    make_campaign(max_trials=1, lease={"duration_s": 3.0, "renewal_s": 0.5})
    _register(store)
    clock = ManualClock()
    coordinator = Coordinator(store, "demo", clock)
    coordinator.step()
    lease = claim(store, "demo")
    for _ in range(7):
        clock.advance(0.5)
        coordinator.step()
    return coordinator, clock, lease


@pytest.mark.parametrize("call", ["campaigns.get", "leaders.lead", "workers.live", "trials.marks", "between two looks"])
def test_no_trial_is_given_back_just_after_the_store_hung(
    store: MongoStore, make_campaign: Make, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Workers could not renew their leases either; they have as long for it as a lease lasts."""
    coordinator, clock, lease = _with_a_running_trial(store, make_campaign)
    clock.advance(0.5)  # the lead is due, too
    hung_s = 2.0
    if call == "between two looks":
        clock.advance(hung_s)
        expire(store, lease)
    else:
        part, name = getattr(store, call.split(".")[0]), call.split(".")[1]
        real = getattr(part, name)

        def hang(*args: Any) -> Any:
            clock.advance(hung_s)
            expire(store, lease)
            return real(*args)

        monkeypatch.setattr(part, name, hang)
    coordinator.step()
    monkeypatch.undo()
    assert store.trials.get("demo", 0).state is TrialState.RUNNING
    for _ in range(3):
        assert store.trials.get("demo", 0).state is TrialState.RUNNING
        clock.advance(1.0)
        coordinator.step()
    assert store.trials.get("demo", 0).state is TrialState.QUEUED


def test_a_trial_whose_lease_runs_out_is_given_back_at_the_next_look(store: MongoStore, make_campaign: Make) -> None:
    coordinator, clock, lease = _with_a_running_trial(store, make_campaign)
    expire(store, lease)
    clock.advance(0.5)
    coordinator.step()
    assert store.trials.get("demo", 0).state is TrialState.QUEUED


def test_one_leads_and_another_takes_over_when_it_resigns(store: MongoStore, make_campaign: Make) -> None:
    make_campaign(max_trials=4)
    _register(store)
    first, second = (Coordinator(store, "demo", ManualClock()) for _ in range(2))
    first.step()
    leader = store.leaders.leader("demo")
    second.step()
    assert store.leaders.leader("demo") == leader
    assert len(store.trials.find("demo")) == 1
    first.resign()
    _run_one(store)
    second.step()
    assert store.leaders.leader("demo") not in (leader, None)
    assert [t.number for t in store.trials.find("demo")] == [0, 1]


def test_the_same_definition_from_another_place_is_found_there(store: MongoStore, make_campaign: Make) -> None:
    record = make_campaign()
    moved = CampaignRecord(
        name=record.name, spec={**record.spec, "data": {"path": "/new/cells.h5ad"}}, spec_hash=record.spec_hash,
        space=record.space, metric=record.metric, max_trials=record.max_trials, paths=("/new",),
    )  # fmt: skip
    store.connection.database["campaigns"].update_one({"_id": "demo"}, {"$set": {"spec.data": {"path": "/old"}}})
    assert store.campaigns.create(moved) is False
    store.campaigns.relocate(moved)
    found = store.campaigns.get("demo")
    assert found.spec["data"] == {"path": "/new/cells.h5ad"}
    assert found.paths == ("/new",)


def test_the_mirror_reads_again_what_has_changed_and_nothing_else(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_campaign(max_trials=50)
    for number in range(6):
        store.trials.propose("demo", number, {"x": float(number)}, f"h{number}", seed=0)
    read: list[list[int]] = []
    heads = type(store.trials).heads

    def spy(self: Any, *arguments: Any, **named: Any) -> Any:
        found = heads(self, *arguments, **named)
        read.append([t.number for t in found])
        return found

    monkeypatch.setattr(type(store.trials), "heads", spy)
    mirror = Mirror(store, "demo")

    def refreshed() -> list[int]:
        read.clear()
        assert mirror.refresh() == heads(store.trials, "demo")
        return sorted(n for some in read for n in some)

    def claimed() -> Lease:
        trial = store.trials.claim(["demo"], owner="w", token=secrets.token_hex(8), duration_s=30.0)
        assert trial is not None
        assert trial.lease is not None
        return trial.lease

    assert refreshed() == [0, 1, 2, 3, 4, 5]
    assert refreshed() == []
    first, second = claimed(), claimed()
    assert refreshed() == [0, 1]
    store.trials.renew([first])
    read.clear()
    mirror.refresh()
    assert read == [], "a lease that is renewed is no news"
    store.trials.finish(first, Result(score=1.0, metrics={"loss": {"value": 1.0}}, facts={}))
    store.trials.end_attempt(second, Failure(cause=Cause.PREEMPTED, message="went"))
    assert claimed().number == 1
    assert refreshed() == [0, 1], "given back and claimed anew between two looks"
    store.trials.propose("demo", 6, {"x": 6.0}, "h6", seed=0)
    mirror.add(store.trials.propose("demo", 7, {"x": 7.0}, "h7", seed=0))
    for _ in range(6):
        lease = claimed()
        store.trials.finish(lease, Result(score=float(lease.number), metrics={"loss": {"value": 1.0}}, facts={}))
    assert refreshed() == [2, 3, 4, 5, 6, 7], "one that came and went unseen, too"
    mirror.forget()
    assert refreshed() == list(range(8))
