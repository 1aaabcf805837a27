"""How the command line prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pandas as pd
import pytest

from autotune.cli.exit_codes import exit_code
from autotune.cli.output import fitting, plain, show
from autotune.cli.progress import describe, duration
from autotune.cli.query import hint
from autotune.errors import CampaignError, NotFoundError, StoreError, StoreUnreachableError, WorkerError
from autotune.local.follow import Progress
from autotune.store.base import CampaignRecord
from autotune.trial import CampaignState, Trial, TrialState


@pytest.mark.parametrize(("width", "count"), [(1, 1), (3, 1), (6, 1), (7, 2), (14, 2), (15, 3), (80, 3)])
def test_columns_that_do_not_fit_are_left_out(width: int, count: int) -> None:
    assert fitting([["abc", "x"], ["d", "12"], ["ef", "123456"]], width) == count


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (pd.NA, "-"),
        (pd.NaT, "-"),
        (0.1 + 0.2, "0.3"),
        (3, "3"),
        ("x", "x"),
        (1e-5, "1e-05"),
    ],
)
def test_values_as_people_read_them(value: object, text: str) -> None:
    assert show(value) == text


def test_json_is_strict() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1], "c": datetime(2026, 1, 2, tzinfo=UTC), 3: (None, True)}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": None, "b": [None, 1], "c": "2026-01-02T00:00:00+00:00", "3": [None, True],
    }  # fmt: skip


def test_exit_codes_tell_errors_apart() -> None:
    errors = [WorkerError("x"), CampaignError("x"), NotFoundError("x"), StoreUnreachableError("x"), StoreError("x")]
    assert [exit_code(e) for e in errors] == [1, 2, 3, 4, 5]


def test_progress_in_words() -> None:
    best = Trial(campaign="c", number=7, params={}, config_hash="", state=TrialState.FINISHED, score=1218.5234)
    counts = {TrialState.FINISHED: 3, TrialState.FAILED: 1, TrialState.RUNNING: 2, TrialState.QUEUED: 1}
    progress = Progress(state=CampaignState.RUNNING, counts=counts, max_trials=10, best=best)
    assert progress.ended == 4
    assert describe(progress, 700.0) == "best 1218.52 (trial 7), 2 running, 1 failed, about 12 min left"
    assert [duration(s) for s in (3, 100, 20000)] == ["3 s", "2 min", "5.6 h"]


@pytest.mark.parametrize(
    ("state", "leader", "workers", "running", "words"),
    [
        (CampaignState.FINISHED, None, 0, 0, ""),
        (CampaignState.PAUSED, None, 0, 0, "autotune resume c"),
        (CampaignState.RUNNING, None, 1, 1, "no coordinator"),
        (CampaignState.RUNNING, "x", 0, 0, "autotune worker --campaign c"),
        (CampaignState.RUNNING, "x", 1, 0, "nothing runs at this moment"),
        (CampaignState.RUNNING, "x", 1, 1, ""),
    ],
)
def test_why_nothing_runs(state: CampaignState, leader: str | None, workers: int, running: int, words: str) -> None:
    record = CampaignRecord(name="c", state=state, spec={}, spec_hash="", space={}, metric={}, max_trials=1)
    counts = {TrialState.RUNNING: running} if running else {}
    found = hint(record, counts, leader=leader, workers=workers)
    assert words in found
    assert bool(words) == bool(found)
