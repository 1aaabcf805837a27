"""Checkpoints on the way: reports pass them by, and an attempt ends without waiting for one that nobody needs."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import LeaseLostError, StoreUnreachableError
from autotune.mirror import Curves
from autotune.store.artifacts import Artifacts, Reference
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, failure
from autotune.trial import CampaignState, Cause, Lease, Report, TrialState
from tests.objectives.support import ENDINGS, QUICK_LEASE, ROOT, coordinating, wait_until, working
from workers.checkpoints.carrier import Carrier
from workers.checkpoints.keeper import Keeper
from workers.checkpoints.uploads import Uploads
from workers.lease import Held


class SlowShelf:
    """Artifacts that take a checkpoint only when they are let to."""

    def __init__(self) -> None:
        self.asked, self.free = threading.Event(), threading.Event()
        self.put_steps: list[int] = []
        self.used = 0

    def put(self, folder: Path, *, step: int) -> Reference:
        self.asked.set()
        assert self.free.wait(30)
        self.put_steps.append(step)
        return Reference(sha256=f"{step:064x}", size=1, step=step)

    def usage(self) -> int:
        self.asked.set()
        return self.used


@pytest.fixture
def held() -> Held:
    return Held(
        lease=Lease(campaign="c", number=0, owner="w", token="ab" * 16, attempt=0, duration_s=30.0), renewal_s=10.0
    )


def uploads_of(
    shelf: Any, held: Held, folder: Path, keep: Callable[[Reference], None]
) -> tuple[Uploads, Carrier, Keeper]:
    carrier = Carrier(shelf, folder)
    uploads = Uploads(carrier, held, keep, lambda: carrier.has_room(1e-9))
    return uploads, carrier, Keeper(carrier.own, saved=lambda step, folder: uploads.ask())


def save(keeper: Keeper, step: int) -> None:
    keeper.save(step, lambda folder: (folder / "state").write_text(str(step)) and None)


def test_one_at_a_time_and_the_newest_next(held: Held, tmp_path: Path) -> None:
    shelf, kept = SlowShelf(), list[int]()
    uploads, carrier, keeper = uploads_of(shelf, held, tmp_path / "state", lambda r: kept.append(r.step))
    save(keeper, 1)
    assert shelf.asked.wait(30)
    for step in range(2, 7):
        save(keeper, step)
    shelf.free.set()
    wait_until(lambda: kept and kept[-1] == 6, "the newest checkpoint")
    uploads.end()
    assert len(shelf.put_steps) <= 4, "those in between were passed over"
    assert carrier.carry() is None
    save(keeper, 7)
    assert kept[-1] == 6, "after the end nothing begins"


def test_the_end_waits_for_the_one_on_its_way_and_leaving_does_not(held: Held, tmp_path: Path) -> None:
    shelf, kept = SlowShelf(), list[int]()
    uploads, _, keeper = uploads_of(shelf, held, tmp_path / "state", lambda r: kept.append(r.step))
    save(keeper, 1)
    assert shelf.asked.wait(30)
    uploads.abandon()
    ended = threading.Thread(target=uploads.end)
    ended.start()
    assert ended.is_alive()
    shelf.free.set()
    ended.join(30)
    assert not ended.is_alive()


@pytest.mark.parametrize("error", [StoreUnreachableError("away"), OSError("full"), LeaseLostError("gone")])
def test_what_goes_wrong_ends_no_training(held: Held, tmp_path: Path, error: Exception) -> None:
    shelf, calls = SlowShelf(), threading.Event()
    shelf.free.set()

    def keep(reference: Reference) -> None:
        calls.set()
        raise error

    uploads, _, keeper = uploads_of(shelf, held, tmp_path / "state", keep)
    save(keeper, 1)
    assert calls.wait(30)
    if isinstance(error, LeaseLostError):
        assert held.lost.wait(30)
    uploads.end()
    assert held.lost.is_set() == isinstance(error, LeaseLostError)


def test_without_room_none_is_kept_on_the_way(held: Held, tmp_path: Path) -> None:
    shelf, kept = SlowShelf(), list[int]()
    shelf.free.set()
    shelf.used = 1
    uploads, carrier, keeper = uploads_of(shelf, held, tmp_path / "state", lambda r: kept.append(r.step))
    save(keeper, 1)
    assert shelf.asked.wait(30)
    uploads.end()
    assert (kept, shelf.put_steps) == ([], [])
    assert carrier.carry() is not None, "the end of an attempt is kept all the same"


def test_reports_pass_a_checkpoint_that_does_not_get_through(
    store: MongoStore,
    make_campaign: Callable[..., CampaignRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first upload hangs until the training has ended; all reports arrive meanwhile, and the result is not late."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    begun, free = threading.Event(), threading.Event()
    put = Artifacts.put

    def slow(self: Artifacts, folder: Path, *, step: int) -> Reference:
        begun.set()
        assert free.wait(60)
        return put(self, folder, step=step)

    monkeypatch.setattr(Artifacts, "put", slow)
    fixed = {"do": "resumable", "steps": 1000, "seconds": 0.0, "hold_at": 300, "folder": str(tmp_path)}
    make_campaign(objective=f"{ENDINGS}:chosen", fixed=fixed, checkpoints={"every": 300}, lease=QUICK_LEASE,
                  max_trials=1)  # fmt: skip
    try:
        with coordinating(store), working(store):
            assert begun.wait(60)
            (tmp_path / "go").touch()
            wait_until(lambda: store.campaigns.get("demo").state is CampaignState.FINISHED, "the end", 60)
            assert not free.is_set()
            free.set()
    finally:
        free.set()
    (trial,) = store.trials.find("demo")
    assert (trial.state, trial.claims, trial.checkpoint) == (TrialState.FINISHED, 1, None)
    assert [r.step for r in store.reports.curve("demo", 0)] == list(range(1, 1001))


def test_curves_of_running_trials_are_read_from_where_they_were(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_campaign(schedule={"algorithm": "median"}, max_trials=2)
    store.trials.propose("demo", 0, {"x": 1.0}, "hash", seed=0)
    curves, whole = Curves(store, "demo"), list[list[int]]()
    read_whole = store.reports.curves
    monkeypatch.setattr(
        store.reports, "curves", lambda campaign, numbers: whole.append(list(numbers)) or read_whole(campaign, numbers)
    )

    def losses() -> tuple[float, ...]:
        found = curves.refresh(store.trials.heads("demo"), record)
        return found[0].losses if found else ()

    def report(lease: Lease, *pairs: tuple[int, float]) -> None:
        reports = [Report(step=s, metrics={"loss": v}, attempt=lease.attempt) for s, v in pairs]
        store.reports.add(lease, reports)

    first = claim(store, "demo")
    assert losses() == ()
    report(first, (1, 9.0), (2, 8.0))
    assert losses() == (9.0, 8.0)
    assert whole[-1] == [0]
    report(first, (3, 7.0))
    assert losses() == (9.0, 8.0, 7.0)
    assert whole[-1] == [], "only what is new was read"
    store.trials.end_attempt(first, failure(Cause.LOST))
    second = claim(store, "demo")
    report(second, (1, 5.0))
    assert losses() == (5.0,), "another attempt began anew"
    report(second, (2, 4.0), (3, 3.0))
    assert losses() == (5.0, 4.0, 3.0)
    store.trials.end_attempt(second, failure(Cause.ERROR))
    assert losses() == (5.0, 4.0, 3.0)
    assert whole[-1] == [0], "an ended trial is read whole, once"
    count = len(whole)
    assert losses() == (5.0, 4.0, 3.0)
    assert [numbers for numbers in whole[count:] if numbers] == []
