"""How many workers live, and that each of many writes less often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import StoreUnreachableError
from autotune.store.base import CampaignRecord, WorkerRecord
from autotune.store.mongo import MongoStore
from autotune.store.workers import Workers
from autotune.trial import Lease, Report
from tests.objectives.support import wait_until
from workers import crowd as crowd_module
from workers import reports as reports_module
from workers.crowd import Crowd
from workers.journal import Journal
from workers.lease import Held
from workers.reports import ReportSender


def register(store: MongoStore, count: int) -> None:
    for i in range(count):
        store.workers.register(WorkerRecord(id=f"w{i}", host="h", pid=1, slots=2, devices=("cpu",)))


def claimed(store: MongoStore) -> Lease:
    store.trials.propose("demo", 0, {"x": 0.0}, "hash", seed=0)
    trial = store.trials.claim(["demo"], owner="w0", token="0123456789abcdef", duration_s=60.0)
    assert trial is not None
    assert trial.lease is not None
    return trial.lease


def test_slots_leave_the_more_time_the_more_workers_live(store: MongoStore) -> None:
    crowd = Crowd(store, 2)
    assert crowd.apart_s(10.0) == pytest.approx(0.2)  # it is alone until it has counted
    register(store, 5)
    store.workers.stopped("w4")
    assert crowd.count() == crowd.workers == 4
    assert crowd.apart_s(10.0) == pytest.approx(0.8)


def test_the_others_are_counted_now_and_then_and_not_while_the_store_is_away(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, 3)
    crowd = Crowd(store, 1)
    crowd.count()
    store.workers.stopped("w0")
    crowd.refresh()
    assert crowd.workers == 3  # that was a moment ago
    monkeypatch.setattr(crowd_module, "COUNT_S", 0.0)
    crowd.count()
    store.workers.stopped("w1")
    with monkeypatch.context() as away:

        def refuse(_: Any) -> int:
            raise StoreUnreachableError("away")

        away.setattr(Workers, "count_live", refuse)
        crowd.refresh()
    assert crowd.workers == 2
    crowd.refresh()
    assert crowd.workers == 1


@pytest.mark.parametrize(("others", "apart_s"), [(0, 0.5), (19, 4.75)])
def test_each_of_many_workers_writes_its_reports_less_often(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], tmp_path: Path, others: int, apart_s: float
) -> None:
    """Half a second apart where it is alone; 19 slots that may write 4 batches a second leave five seconds each."""
    pauses: list[float] = []

    class Hurry(threading.Event):
        """Notes how long a pause would be, and ends it at once."""

        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return True

    make_campaign()
    lease = claimed(store)
    register(store, others)
    crowd = Crowd(store, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports_module, "MOST_REPORTS", 4.0)
        patch.setattr(reports_module, "_SHARE", 1.0)  # however slow the store is
        if others:
            crowd.count()
        journal = Journal(tmp_path / "journal", store.address).open_attempt(lease)
        sender = ReportSender(store, Held(lease=lease, renewal_s=60.0), journal, crowd)
        sender._hurry = Hurry()
        for step in range(5):
            sender.add(Report(step=step, metrics={"loss": 1.0}))
            wait_until(lambda n=step: len(pauses) > n, "the end of a batch")
        left = sender.close()
        journal.close()
    assert left == []
    assert len(store.reports.curve("demo", 0)) == len(pauses) == 5
    assert min(pauses) == pytest.approx(apart_s), "a slow answer of the store makes a pause longer"


def test_a_training_that_reports_very_much_loses_nothing_in_a_crowd(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is written before there is too much of it, though the next batch is due in a quarter of an hour."""
    make_campaign()
    lease = claimed(store)
    monkeypatch.setattr(reports_module, "MAX_PENDING", 100)
    monkeypatch.setattr(reports_module, "MOST_REPORTS", 0.001)
    monkeypatch.setattr(reports_module, "_MOST_S", 1000.0)
    journal = Journal(tmp_path / "journal", store.address).open_attempt(lease)
    sender = ReportSender(store, Held(lease=lease, renewal_s=60.0), journal, Crowd(store, 1))
    for first in range(0, 300, 50):
        for step in range(first, first + 50):
            sender.add(Report(step=step, metrics={"loss": 1.0}))
        wait_until(lambda: len(sender._pending) < 50, "the batch")
    left = sender.close()
    journal.close()
    assert [r.step for r in [*store.reports.curve("demo", 0), *left]] == list(range(300))
