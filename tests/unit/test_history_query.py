"""Conditions, order, limit and columns of a query."""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.errors import QueryError
from autotune.history import frame, parse_where, query
from autotune.trial import Attempt, Cause, Trial, TrialState

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
START = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number: int, score: float | None, state: TrialState = TrialState.FINISHED, **params: Any) -> Trial:
    failed = state is TrialState.FAILED
    return Trial(
        campaign="c",
        number=number,
        params=params,
        config_hash=str(number),
        state=state,
        score=score,
        attempts=(Attempt(token="t", owner="w", cause=Cause.ERROR if failed else None),),
        started_at=START + timedelta(days=number),
    )


@pytest.fixture
def table() -> pd.DataFrame:
    return frame(
        [
            trial(0, 3.0, n_layers=1, lr=1e-3, loss_kind="zinb", flag=True, sizes=[64, 64], mixed="auto"),
            trial(1, 1.0, n_layers=2, lr=1e-2, loss_kind="nb", flag=False, sizes=[32], mixed=0.5),
            trial(2, math.nan, n_layers=2, lr=1e-4, loss_kind="zinb", flag=True, sizes=[64, 64], mixed=2),
            trial(3, None, TrialState.FAILED, n_layers=3, lr=1e-3, loss_kind="2", flag=True, sizes=[], mixed="x"),
            trial(4, 2.0, n_layers=1, lr=1e-3, loss_kind="nb", mixed="auto"),
        ],
        "score",
    )


@pytest.mark.parametrize(
    ("expressions", "numbers"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["n_layers=2"], [1, 2]),
        (["n_layers==2"], [1, 2]),
        (["n_layers = 2"], [1, 2]),
        (["n_layers=2.0"], [1, 2]),
        (["n_layers!=2"], [0, 3, 4]),
        (["lr>=1e-3"], [0, 1, 3, 4]),
        (["lr<.001"], [2]),
        (["score<2.5"], [1, 4]),
        (["score!=1"], [0, 4]),
        (["score=null"], [2, 3]),
        (["score=NaN"], [2, 3]),
        (["score!=null", "n_layers=1"], [0, 4]),
        (["state!=failed"], [0, 1, 2, 4]),
        (["cause=error"], [3]),
        (["cause=null"], [0, 1, 2, 4]),
        (["loss_kind=zinb"], [0, 2]),
        (['loss_kind="2"'], [3]),
        (["loss_kind>nb"], [0, 2]),
        (["flag=true"], [0, 2, 3]),
        (["flag!=true"], [1]),
        (["flag=null"], [4]),
        (["sizes=[64, 64]"], [0, 2]),
        (["mixed=auto"], [0, 4]),
        (["mixed>=0.5"], [1, 2]),
        (["mixed!=auto"], [1, 2, 3]),
        (["started_at>=2026-01-04"], [3, 4]),
        (["started_at<2026-01-02T00:00:00+02:00"], [0]),
        (["number<=1"], [0, 1]),
    ],
)
def test_conditions(table: pd.DataFrame, expressions: list[str], numbers: list[int]) -> None:
    assert parse_where(expressions).apply(table)["number"].tolist() == numbers


@pytest.mark.parametrize("expression", ["", "n_layers", "=2", "n_layers=", "n=>2", "n=!2", "n_layers 2", "<", "x=<3"])
def test_malformed_conditions_show_an_example(expression: str) -> None:
    with pytest.raises(QueryError, match="n_layers=2"):
        parse_where([expression])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("n_layer=2", "did you mean 'n_layers'"),
        ("n_layers=two", "holds a number, 'two' is text"),
        ("loss_kind=2", 'write loss_kind="2"'),
        ("n_layers=true", "is true or false"),
        ("flag=1", "holds true or false"),
        ("flag>false", "no order"),
        ("n_layers<null", "no order"),
        ("state=faild", "did you mean 'failed'"),
        ("cause=eror", "did you mean 'error'"),
        ("started_at>soon", "2026-01-31"),
    ],
)
def test_conditions_that_cannot_be_meant(table: pd.DataFrame, expression: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        parse_where([expression]).apply(table)
    assert "\n" not in str(caught.value)


def test_nothing_is_evaluated(table: pd.DataFrame) -> None:
    assert parse_where(["loss_kind=__import__('os')"]).apply(table).empty


@QUIET
@given(st.text(alphabet="xyz =<>!\"'[]{}1.e-_\n\u00e9", max_size=30))
def test_any_text_is_a_condition_or_a_query_error(text: str) -> None:
    rows = frame([trial(0, 1.0, x=1, y="a")], "score")
    with contextlib.suppress(QueryError):
        parse_where([text]).apply(rows)


@QUIET
@given(values=st.lists(st.integers(-5, 5) | st.none(), max_size=8), wanted=st.integers(-5, 5))
def test_numbers_compare_as_python_does(values: list[int | None], wanted: int) -> None:
    rows = frame([trial(i, 0.0, x=value, y=1) for i, value in enumerate(values)], "score")
    below = parse_where([f"x<{wanted}"]).apply(rows)["number"].tolist()
    above = parse_where([f"x>={wanted}"]).apply(rows)["number"].tolist()
    assert below == [i for i, value in enumerate(values) if value is not None and value < wanted]
    assert sorted(below + above) == [i for i, value in enumerate(values) if value is not None]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"descending": True}, [4, 3, 2, 1, 0]),
        ({"sort": "score"}, [1, 4, 0, 2, 3]),
        ({"sort": "-score"}, [0, 4, 1, 2, 3]),
        ({"sort": "score", "mode": "max"}, [0, 4, 1, 2, 3]),
        ({"sort": "-score", "mode": "max"}, [1, 4, 0, 2, 3]),
        ({"sort": "score", "mode": "max", "descending": False}, [1, 4, 0, 2, 3]),
        ({"sort": "n_layers", "mode": "max"}, [0, 4, 1, 2, 3]),
        ({"sort": "-n_layers"}, [3, 1, 2, 0, 4]),
        ({"sort": "mixed"}, [1, 2, 0, 4, 3]),
        ({"sort": "flag"}, [1, 0, 2, 3, 4]),
        ({"sort": "score", "limit": 2}, [1, 4]),
        ({"limit": 0}, []),
        ({"limit": 99}, [0, 1, 2, 3, 4]),
    ],
)
def test_order_and_limit(table: pd.DataFrame, options: dict[str, Any], numbers: list[int]) -> None:
    assert query(table, metric="score", **options)["number"].tolist() == numbers


@QUIET
@given(st.lists(st.floats() | st.none(), max_size=10), st.sampled_from(["min", "max"]))
def test_missing_scores_come_last_and_ties_keep_their_order(scores: list[float | None], mode: str) -> None:
    rows = query(frame([trial(i, s) for i, s in enumerate(scores)], "score"), sort="score", metric="score", mode=mode)
    numbers = rows["number"].tolist()
    finite = [i for i, s in enumerate(scores) if s is not None and math.isfinite(s)]
    sign = -1 if mode == "max" else 1
    assert numbers[: len(finite)] == sorted(finite, key=lambda i: sign * (scores[i] or 0.0))
    assert numbers[len(finite) :] == [i for i in range(len(scores)) if i not in finite]


def test_columns_are_chosen_once_in_order(table: pd.DataFrame) -> None:
    rows = query(table, parse_where(["n_layers=1"]), columns=["lr", "number", "lr"])
    assert list(rows.columns) == ["lr", "number"]
    assert rows.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "scor"}, "did you mean 'score'"),
        ({"sort": "-scor"}, "did you mean 'score'"),
        ({"columns": ["nlayers"]}, "did you mean 'n_layers'"),
        ({"limit": -1}, "negative"),
        ({"sort": "-score", "descending": True}, "already"),
    ],
)
def test_wrong_queries(table: pd.DataFrame, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        query(table, metric="score", **options)


def test_before_the_first_trial_no_name_is_unknown() -> None:
    rows = query(frame([], "score"), parse_where(["n_layers=2"]), sort="lr", columns=["number", "lr"])
    assert rows.empty
    assert list(rows.columns) == ["number"]


def test_no_row_left_still_knows_its_columns(table: pd.DataFrame) -> None:
    nothing = parse_where(["number>99"])
    assert query(table, nothing, sort="lr").empty
    with pytest.raises(QueryError):
        query(table, nothing, sort="l_r_x")
