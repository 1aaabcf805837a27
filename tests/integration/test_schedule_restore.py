"""Backups leave checkpoints out: a paused trial begins anew in the restored store; an outage loses no checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store.artifacts import Artifacts, Reference, place_of
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, TrialState
from tests.objectives.support import (
    ENDINGS,
    QUICK_LEASE,
    ROOT,
    coordinating,
    propose_one,
    wait_for_state,
    wait_until,
    working,
)
from workers.checkpoints.carrier import Carrier

ARTIFACTS = ("artifacts.files", "artifacts.chunks", "artifacts.pushes")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def launched(make_campaign: Callable[..., CampaignRecord]) -> CampaignRecord:
    """A campaign of one trial, which is paused at steps 1 and 3 and ends at step 9."""
    return make_campaign(
        objective=f"{ENDINGS}:chosen", fixed={"do": "resumable", "steps": 9, "seconds": 0.0}, lease=QUICK_LEASE,
        schedule={"algorithm": "hyperband", "maximum": 9}, max_trials=1,
    )  # fmt: skip


def test_without_its_checkpoint_a_paused_trial_begins_anew(store: MongoStore, launched: CampaignRecord) -> None:
    """As after a restore, where trials are there and artifacts are not."""
    from autotune.store.backup import COLLECTIONS

    assert not set(ARTIFACTS) & set(COLLECTIONS)
    with working(store):
        propose_one(store)
        wait_for_state(store, 0, TrialState.PAUSED)
        for name in ARTIFACTS:
            store.connection.database[name].delete_many({})
        with coordinating(store):
            wait_until(lambda: store.campaigns.get("demo").state is CampaignState.FINISHED, "the end")
    (trial,) = store.trials.find("demo")
    assert len(trial.rung_scores) == 3
    assert [r.attempt for r in store.reports.curve("demo", 0)] == [1, 1, 1, 2, 2, 2, 2, 2, 2], "step 1 once more"


def test_a_checkpoint_that_was_taken_for_abandoned_is_carried_again(
    store: MongoStore, launched: CampaignRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause was held up so long that a collector removed what nothing referred to."""
    artifacts = Artifacts(store.connection, campaign=place_of(launched))
    carry, gone = Carrier.carry, list[Reference]()

    def slowly(self: Carrier) -> Reference | None:
        found = carry(self)
        if found is not None and not gone:
            gone.append(found)
            artifacts.collect([], grace_s=0.0)
            return None  # as at the second try: it was carried before the store went away
        return found

    monkeypatch.setattr(Carrier, "carry", slowly)
    with coordinating(store), working(store):
        wait_until(lambda: store.campaigns.get("demo").state is CampaignState.FINISHED, "the end")
    assert [r.step for r in gone] == [1]
    assert [r.attempt for r in store.reports.curve("demo", 0)] == [0, 1, 1, 2, 2, 2, 2, 2, 2], (
        "no step was trained twice"
    )
