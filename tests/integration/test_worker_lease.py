"""The lease keeper on a real store, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autotune.clock import ManualClock
from autotune.errors import StoreError
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.trial import Lease
from workers import lease as lease_module
from workers.lease import SEEN_S, LeaseKeeper


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keeper(store: MongoStore, make_campaign: Callable[..., CampaignRecord], clock: ManualClock) -> LeaseKeeper:
    make_campaign(max_trials=3)
    for number in range(3):
        store.trials.propose("demo", number, {"x": float(number)}, f"hash-{number}", seed=0)
    store.workers.register(WorkerRecord(id="me", host="here", pid=1, slots=2))
    return LeaseKeeper(store, "me", clock)


def claim(store: MongoStore, token: str) -> Lease:
    trial = store.trials.claim(["demo"], owner="me", token=token, duration_s=30.0)
    assert trial is not None
    assert trial.lease is not None
    return trial.lease


def expiry(store: MongoStore, number: int) -> Any:
    found = store.trials.get("demo", number).lease
    assert found is not None
    return found.expires_at


def test_only_what_is_due_is_renewed(store: MongoStore, keeper: LeaseKeeper, clock: ManualClock) -> None:
    keeper.hold(claim(store, "often"), 2.0)
    keeper.hold(claim(store, "seldom"), 5.0)
    before = [expiry(store, n) for n in range(2)]
    assert keeper.step() == 2.0
    assert [expiry(store, n) for n in range(2)] == before
    clock.advance(2.0)
    assert keeper.step() == 2.0
    assert expiry(store, 0) > before[0]
    assert expiry(store, 1) == before[1]
    clock.advance(3.5)
    assert keeper.step() == 2.0
    assert expiry(store, 1) > before[1]


def test_the_thread_is_woken_only_if_it_would_sleep_too_long(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock
) -> None:
    """Trials of milliseconds come and go without it."""
    assert keeper.step() == SEEN_S
    keeper.hold(claim(store, "seldom"), 20.0)
    assert not keeper._changed.is_set()
    keeper.hold(claim(store, "often"), 2.0)
    assert keeper._changed.is_set()
    assert keeper.step() == 2.0
    keeper._changed.clear()
    keeper.check(heard=True)
    assert keeper._changed.is_set()  # they may be asked for a second after they were claimed
    assert keeper.step() == 1.0
    keeper._changed.clear()
    keeper.check(heard=True)
    assert not keeper._changed.is_set()


def test_lost_lease_is_marked_once_and_not_asked_for_again(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    lost, kept = (keeper.hold(claim(store, token), 1.0) for token in ("lost", "kept"))
    store.trials.cancel("demo")
    store.connection.database["trials"].update_one(
        {"number": 1},
        [
            {
                "$set": {
                    "state": "running",
                    "lease": {"owner": "me", "token": "kept", "duration_s": 30.0, "expires_at": "$$NOW"},
                }
            }
        ],
    )
    for _ in range(3):
        clock.advance(1.0)
        keeper.step()
    assert lost.lost.is_set()
    assert not kept.lost.is_set()
    assert caplog.text.count("lease lost") == 1
    keeper.drop(kept.lease)
    assert keeper.step() == SEEN_S


def test_trial_whose_end_is_being_written_is_not_lost(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ended, dropped = (keeper.hold(claim(store, token), 1.0) for token in ("ended", "dropped"))
    store.trials.cancel("demo")
    ended.ending.set()
    keeper.drop(dropped.lease)
    clock.advance(1.0)
    keeper.step()
    assert not ended.lost.is_set()
    assert not dropped.lost.is_set()
    assert "lease lost" not in caplog.text


def test_unreachable_store_leaves_leases_due(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock, store_uri: str
) -> None:
    held = keeper.hold(claim(store, "mine"), 1.0)
    before = expiry(store, 0)
    clock.advance(1.0)
    store.connection.client.close()
    with pytest.raises(StoreError):
        keeper.step()
    assert not held.lost.is_set()
    with MongoStore(store_uri) as again:
        keeper._store = again
        keeper.step()
        assert expiry(again, 0) > before


def test_keeper_outlives_an_unexpected_error(
    store: MongoStore, keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_RETRY_S", 0.0)
    broken, step = [True], keeper.step

    def once() -> float:
        if broken.pop() if broken else False:
            raise KeyError("a bug")
        keeper._stop.set()
        return step()

    monkeypatch.setattr(keeper, "step", once)
    keeper.start()
    keeper._thread.join(10)
    assert not keeper._thread.is_alive()
    assert "KeyError: 'a bug'" in caplog.text
    assert [w.id for w in store.workers.live()] == ["me"]


def test_what_a_report_has_confirmed_is_not_asked_for_until_the_next_one_is_missing(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock
) -> None:
    """A cancellation is noticed half a second after the next report was due, or by that report."""
    quiet, reporting = (keeper.hold(claim(store, token), 10.0) for token in ("quiet", "reporting"))
    clock.advance(1.0)
    reporting.confirmed(3.0)
    store.trials.cancel("demo")
    clock.advance(0.5)
    keeper.check()
    assert keeper.step() == pytest.approx(3.0)
    assert quiet.lost.is_set()
    assert not reporting.lost.is_set()
    clock.advance(2.9)
    keeper.step()
    assert not reporting.lost.is_set()
    clock.advance(0.1)
    keeper.step()
    assert reporting.lost.is_set()


def test_something_heard_is_asked_for_whatever_reports_have_confirmed(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock
) -> None:
    held = keeper.hold(claim(store, "mine"), 10.0)
    clock.advance(1.0)
    held.confirmed(3.0)
    store.trials.cancel("demo")
    keeper.check(heard=True)
    keeper.check()  # takes nothing back
    keeper.step()
    assert held.lost.is_set()


def test_the_confirmation_of_a_lease_that_was_dropped_is_nothing(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock
) -> None:
    held = keeper.hold(claim(store, "mine"), 10.0)
    keeper.drop(held.lease)
    held.confirmed(3.0)
    keeper.check()
    assert keeper.step() == SEEN_S


def test_what_is_heard_while_the_store_is_asked_is_asked_for_again(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, ask = keeper.hold(claim(store, "mine"), 10.0), store.trials.held

    def cancelled_meanwhile(tokens: list[str]) -> set[str]:
        found = ask(tokens)
        store.trials.cancel("demo")
        keeper.check(heard=True)
        return found

    clock.advance(1.0)
    keeper.check()
    with monkeypatch.context() as patched:
        patched.setattr(store.trials, "held", cancelled_meanwhile)
        keeper.step()
    assert not held.lost.is_set()
    clock.advance(1.0)
    keeper.step()
    assert held.lost.is_set()


@pytest.mark.parametrize("due", [False, True])
def test_what_could_not_be_asked_is_asked_for_later(
    store: MongoStore, keeper: LeaseKeeper, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, due: bool
) -> None:
    """Whether its renewal was due as well or not."""
    held = keeper.hold(claim(store, "mine"), 1.0 if due else 10.0)
    clock.advance(1.0)
    store.trials.cancel("demo")
    keeper.check(heard=True)

    def away(_: list[str]) -> set[str]:
        raise StoreError("away")

    with monkeypatch.context() as patched:
        patched.setattr(store.trials, "renew" if due else "held", away)
        with pytest.raises(StoreError):
            keeper.step()
    assert keeper._checked == {"mine": True}
    keeper.step()
    assert held.lost.is_set()
