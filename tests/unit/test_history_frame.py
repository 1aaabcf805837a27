"""The frame of trials, and plain records."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.history import flatten, frame, metric_column, records, storable
from autotune.trial import Attempt, Cause, Trial, TrialState

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def trial(number: int, **values: Any) -> Trial:
    defaults: dict[str, Any] = {
        "campaign": "c",
        "params": {"x": number},
        "config_hash": str(number),
        "state": TrialState.FINISHED,
    }
    return Trial(number=number, **(defaults | values))


def attempt(**values: Any) -> Attempt:
    return Attempt(**({"token": "secret-token", "owner": "w1", "host": "h1", "device": "cuda:0"} | values))


def test_columns_and_order_of_a_usual_campaign() -> None:
    trials = [
        trial(1, state=TrialState.QUEUED, params={"n": 3, "net": {"act": "relu", "sizes": [64, 32]}}),
        trial(
            0,
            params={"n": 2, "net": {"act": "elu", "sizes": []}},
            score=1.5,
            metrics={"loss": {"value": 1.5, "se": 0.1}, "elbo": {"value": 2}},
            facts={"n_epochs": 12, "n": 2, "curve": [1, 2]},
            attempts=(
                attempt(cause=Cause.LOST, owner="w0"),
                attempt(started_at=START, ended_at=START + timedelta(seconds=90)),
            ),
            started_at=START,
            ended_at=START + timedelta(seconds=90),
        ),
    ]
    table = frame(trials, "loss")
    assert list(table.columns) == [
        *("number", "state", "loss", "elbo", "n", "net.act", "net.sizes", "n_epochs", "attempts", "cause", "worker"),
        *("device", "started_at", "ended_at", "duration_s"),
    ]
    assert table["number"].tolist() == [0, 1]
    assert table["net.sizes"].tolist() == ["[]", "[64,32]"]
    assert table["n"].dtype == "int64"
    assert str(table["n_epochs"].dtype) == "Int64"
    assert table["attempts"].tolist() == [2, 0]
    assert table["worker"].tolist() == ["w1", None]
    assert table["cause"].tolist() == [None, None]
    assert table["duration_s"].tolist()[0] == 90.0
    assert math.isnan(table["duration_s"].tolist()[1])
    assert table["started_at"].tolist()[0] == pd.Timestamp(START)
    assert math.isnan(table["loss"].tolist()[1])


def test_the_cause_is_that_of_a_failed_trial_only() -> None:
    gone = (attempt(cause=Cause.LOST), attempt(cause=Cause.ERROR))
    table = frame([trial(0, state=TrialState.FAILED, attempts=gone), trial(1, attempts=gone[:1])], "loss")
    assert table["cause"].tolist() == ["error", None]


def test_folds_are_columns_only_where_there_are_any() -> None:
    assert not {"fold", "replicate"} & set(frame([trial(0)], "loss").columns)
    table = frame([trial(0), trial(1, fold=1)], "loss")
    assert table["fold"].tolist() == [0, 1]
    assert "replicate" not in table.columns


def test_equal_names_do_not_hide_each_other() -> None:
    table = frame(
        [
            trial(
                0,
                params={"loss": "zinb", "state": "on", "m": 1, "f": 3},
                score=0.5,
                metrics={"loss": {"value": 0.5}, "m": {"value": 2.0}},
                facts={"f": 4, "state": "off"},
            )
        ],
        "loss",
    )
    row = table.iloc[0].to_dict()
    assert row["state"] == "finished"
    assert row["loss"] == 0.5
    assert (row["params.loss"], row["params.state"], row["facts.state"]) == ("zinb", "on", "off")
    assert (row["m"], row["metrics.m"]) == (1, 2.0)
    assert (row["f"], row["facts.f"]) == (3, 4)
    assert table.columns.is_unique
    assert metric_column("number") == "metrics.number"


def test_no_trials() -> None:
    table = frame([], "loss")
    assert table.empty
    assert list(table.columns)[:3] == ["number", "state", "loss"]
    assert records([]) == []


def test_mixed_columns_can_be_stored_as_parquet(tmp_path: Any) -> None:
    pytest.importorskip("pyarrow")
    trials = [trial(0, params={"p": "auto", "q": None}), trial(1, params={"p": 0.5, "q": 2**70})]
    path = tmp_path / "t.parquet"
    storable(frame(trials, "loss")).to_parquet(path)
    assert pd.read_parquet(path)["p"].tolist() == ['"auto"', "0.5"]


TEXT = st.text(alphabet="ab.'_\n\u00e9", max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@QUIET
@given(params=st.dictionaries(TEXT, JSON, max_size=4), facts=st.dictionaries(TEXT, JSON, max_size=4))
def test_any_json_becomes_a_frame_and_strict_json(params: dict[str, Any], facts: dict[str, Any]) -> None:
    trials = [trial(0, params=params, facts=facts, score=math.nan), trial(1, params={}, facts={})]
    table = frame(trials, "loss")
    assert len(table) == 2
    assert table.columns.is_unique
    json.dumps(records(trials), allow_nan=False)


@QUIET
@given(st.dictionaries(st.text(alphabet="ab.", max_size=4), JSON, max_size=4))
def test_flattening_loses_no_leaf(values: dict[str, Any]) -> None:
    def leaves(value: Any) -> int:
        return sum(leaves(v) for v in value.values()) if isinstance(value, dict) and value else 1

    assert len(flatten(values)) == (leaves(values) if values else 0)


def test_records_say_what_the_design_says() -> None:
    local = timezone(timedelta(hours=2))
    made = records(
        [
            trial(
                3,
                score=math.nan,
                metrics={"loss": {"value": math.inf, "se": None, "split": "validation"}},
                seed=7,
                attempts=(
                    attempt(cause=Cause.ERROR, message="boom", exit_code=-9, traceback="long", timing={"fit": 1.5}),
                ),
                started_at=datetime(2026, 1, 1, 2, tzinfo=local),
                ended_at=datetime(2026, 1, 1),  # noqa: DTZ001 - a naive time is UTC
            )
        ]
    )[0]
    assert made["number"] == 3
    assert made["state"] == "finished"
    assert made["score"] is None
    assert made["metrics"] == {"loss": {"value": None, "se": None, "split": "validation"}}
    assert made["started_at"] == made["ended_at"] == "2026-01-01T00:00:00+00:00"
    assert made["attempts"][0]["cause"] == "error"
    assert made["attempts"][0]["timing"] == {"fit": 1.5}
    assert "secret-token" not in json.dumps(made)
    assert set(made) == {
        *("number", "state", "params", "metrics", "facts", "score", "fold", "replicate", "seed", "attempts"),
        *("proposed_at", "started_at", "ended_at", "origin", "claims"),
    }
