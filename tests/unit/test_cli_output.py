"""How the command line prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest

from autotune.cli.exit_codes import exit_code
from autotune.cli.output import fitting, plain, show
from autotune.cli.progress import describe, duration
from autotune.cli.status import Situation, reasons
from autotune.errors import CampaignError, NotFoundError, StoreError, StoreUnreachableError, WorkerError
from autotune.local.follow import Progress
from autotune.store.base import CampaignRecord, WorkerRecord
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


def _worker(name: str, **changes: object) -> WorkerRecord:
    return WorkerRecord(**{"id": name, "host": "h", "pid": 1, "slots": 1, **changes})


def _trial(number: int, state: TrialState, **changes: object) -> Trial:
    return Trial(**{"campaign": "c", "number": number, "params": {}, "config_hash": "", "state": state, **changes})


Q, R = TrialState.QUEUED, TrialState.RUNNING
REFUSING = _worker("w2", refusals={"c": "torch 1 here, 2 in the campaign"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": CampaignState.FINISHED}, []),
        ({"state": CampaignState.PAUSED}, ["autotune resume c"]),
        ({"leader": None, "counts": {R: 1}}, ["no coordinator"]),
        ({"live": []}, ["autotune worker --campaign c"]),
        ({"live": [REFUSING]}, ["w2 refuses it: torch 1 here", "autotune worker --campaign c"]),
        ({"live": [_worker("w1"), REFUSING], "counts": {R: 1}}, ["w2 refuses it"]),
        ({}, ["about to propose"]),
        ({"counts": {R: 1}}, []),
        ({"counts": {Q: 1}}, ["queued and slots are free"]),
        ({"counts": {Q: 1}, "busy": {"w1": 1}}, ["busy with other campaigns"]),
        ({"counts": {R: 1}, "silent": [_worker("w3")]}, ["w3 was not heard of"]),
        ({"counts": {R: 1}, "overdue": [4]}, ["the lease of trial 4 ran out"]),
        ({"counts": {R: 1}, "active": [_trial(2, Q, alone=True)]}, ["trial 2 ran out of memory"]),
        (
            {"counts": {R: 1}, "active": [_trial(3, R, claims=5, ends={"lost": 4})]},
            ["trial 3 was tried 5 times (lost 4)"],
        ),
    ],
)
def test_why_nothing_runs(changes: dict[str, Any], words: list[str]) -> None:
    state = changes.pop("state", CampaignState.RUNNING)
    record = CampaignRecord(name="c", state=state, spec={}, spec_hash="", space={}, metric={}, max_trials=1)
    seen = Situation(**{"record": record, "counts": {}, "leader": "x", "live": [_worker("w1")], "busy": {}, **changes})
    found = reasons(seen)
    assert len(found) == len(words)
    for text, expected in zip(found, words, strict=True):
        assert expected in text
