"""The local processes of a campaign: which of them ended before it was at work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.errors import StoreUnreachableError
from autotune.local import crew as crew_module
from autotune.local.crew import Crew, Member
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from tests.objectives.support import ROOT, coordinating, process, worker_command

Start = Callable[..., Crew]


@pytest.fixture
def start(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes a crew of running processes; they are killed at the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    crews: list[Crew] = []

    def made(*processes: subprocess.Popen[bytes]) -> Crew:
        crew = Crew(store_uri=store_uri, campaign="demo", workers=len(processes))
        for index, one in enumerate(processes):
            crew.members.append(Member(role=f"worker-{index}", command=[], log=tmp_path / f"{index}", process=one))
        crews.append(crew)
        return crew

    yield made
    for crew in crews:
        crew.kill()


def script(text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", text])


def test_one_that_fails_late_is_found(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], start: Start
) -> None:
    """The other one goes on without a word: not all are at work before it failed."""
    make_campaign()
    crew = start(script("import time; time.sleep(600)"), script("import sys, time; time.sleep(4); sys.exit(3)"))
    assert crew.failed_at_start(store) is crew.members[1]


def test_a_worker_at_work_is_not_waited_for_long(
    store: MongoStore, store_uri: str, make_campaign: Callable[..., CampaignRecord], start: Start, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where the store does not answer for a moment."""
    make_campaign(objective="tests.objectives.endings:square")
    live, asked = store.workers.live, list[float]()

    def away_at_first(campaign: str) -> object:
        asked.append(time.monotonic())
        if len(asked) < 3:
            raise StoreUnreachableError("away")
        return live(campaign)

    monkeypatch.setattr(store.workers, "live", away_at_first)
    with coordinating(store), process(worker_command("--campaign", "demo"), store_uri, tmp_path / "log") as worker:
        crew = start(worker)
        began_s = time.monotonic()
        assert crew.failed_at_start(store, timeout_s=600.0) is None
        assert crew_module.SETTLED_S <= time.monotonic() - began_s < 300.0
    assert len(asked) >= 3


def test_nobody_is_waited_for_longer_than_the_time_limit(
    store: MongoStore, make_campaign: Callable[..., CampaignRecord], start: Start
) -> None:
    make_campaign()
    assert start(script("import time; time.sleep(600)")).failed_at_start(store, timeout_s=0.5) is None
