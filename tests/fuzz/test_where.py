"""Mutants of ``--where``, ``--sort`` and ``--columns``: a table, or one clear line."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest

from autotune import history
from autotune.trial import Attempt, Trial, TrialState
from tests.fuzz.mutants import PLAIN, TOKENS, Jury, cut_up, swap_tokens

MUTANTS = 250

ORIGINALS = (
    "n_layers=2",
    "loss<0.5",
    "state!=failed",
    "lr>=1e-3",
    'act="relu"',
    "started_at<2026-01-31",
    "flag=true",
    "units=[1,2]",
    "note=null",
    "model.depth>1",
    "mixed=auto",
    "cause=error",
    "number<=3",
    "big>9007199254740993",
    "duration_s!=NaN",
    "started_at>=2026-01-31T18:00:00+02:00",
)


def trials() -> list[Trial]:
    """Return trials whose columns hold all kinds of values."""
    start = datetime(2026, 1, 31, 12, tzinfo=UTC)
    found = []
    for number, state in enumerate([TrialState.FINISHED, TrialState.FAILED, TrialState.QUEUED, TrialState.FINISHED]):
        attempt = Attempt(
            token="t",
            owner="w",
            device="cpu",
            started_at=start,
            ended_at=start,
            cause="error" if state is TrialState.FAILED else None,
        )
        found.append(
            Trial(
                campaign="demo",
                number=number,
                config_hash=str(number),
                state=state,
                params={
                    "n_layers": number,
                    "lr": 10.0**-number,
                    "act": "relu",
                    "flag": number % 2 == 0,
                    "units": [1, number],
                    "note": None,
                    "model": {"kind": "mlp", "depth": number},
                    "mixed": "auto" if number else 0.5,
                    "big": 2**62 + number,
                    "odd = name": 1,
                    "huge": 10**25,
                },
                attempts=(attempt,) if state is not TrialState.QUEUED else (),
                score=[0.1, None, None, math.inf][number],
                metrics={"loss": {"value": 0.1}, "other": {"value": math.nan}},
                facts={"cells": 12, "é": "x", "state": "taken"},
                started_at=start if number else None,
                ended_at=start,
            )
        )
    return found


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """A small table of trials."""
    return history.frame(trials(), "loss")


def run(table: pd.DataFrame, where: tuple[str, ...], **options: Any) -> None:
    """Do what `autotune trials` does with its options."""
    chosen = history.query(table, where=history.parse_where(where), metric="loss", mode="min", **options)
    history.storable(chosen)


def mutants(table: pd.DataFrame, chance: random.Random) -> Iterator[str]:
    """Yield expressions without end."""
    operators = ["=", "!=", "<", "<=", ">", ">=", "==", "=<", "<>", "~", "", "= ="]
    while True:
        original = chance.choice(ORIGINALS)
        yield cut_up(original, chance)
        yield swap_tokens(original, chance)
        value = chance.choice(
            [json.dumps(chance.choice(PLAIN)), chance.choice(TOKENS), str(chance.choice(PLAIN))[:5000]]
        )
        yield f"{chance.choice([*table.columns])}{chance.choice(operators)}{value}"


@pytest.mark.parametrize("expression", ORIGINALS)
def test_the_originals_are_conditions(table: pd.DataFrame, expression: str) -> None:
    run(table, (expression,))


@pytest.mark.parametrize("seed", [0, 1])
def test_changed_conditions(table: pd.DataFrame, seed: int) -> None:
    chance = random.Random(seed)
    found = mutants(table, chance)
    with Jury() as jury:
        for _ in range(MUTANTS):
            where = tuple(next(found) for _ in range(chance.choice([1, 1, 1, 2])))
            jury.judge(lambda where=where: run(table, where), where)
        assert MUTANTS / 5 < jury.refused < MUTANTS


def test_changed_sorting_and_columns(table: pd.DataFrame) -> None:
    chance = random.Random("sort")
    names = [*table.columns, *TOKENS, "", "-", "--loss", "-number", "losss", "*"]
    with Jury() as jury:
        for _ in range(MUTANTS // 2):
            options = {
                "sort": chance.choice([None, chance.choice(names), "-" + chance.choice(names), cut_up("loss", chance)]),
                "limit": chance.choice([None, 0, 1, -1, 10**30]),
                "columns": chance.choice([None, [], [chance.choice(names)], [cut_up("loss", chance), "number"]]),
            }
            jury.judge(lambda options=options: run(table, (), **options), options)


def test_changed_conditions_before_the_first_trial() -> None:
    table, chance = history.frame([], "loss"), random.Random("empty")
    found = mutants(table, chance)
    with Jury() as jury:
        for _ in range(MUTANTS // 5):
            where = next(found)
            jury.judge(lambda where=where: run(table, (where,)), where)


HOSTILE = (
    "number=" + "9" * 5_000,
    "number=1e999",
    "number=-1e999",
    "lr=" + "[" * 100_000,
    'lr="' + "\\" * 999,
    "started_at=9999-12-31T23:59:59-23:59",
    "started_at=0001-01-01",
    "started_at>00:00",
    "started_at=2026-W01",
    "huge>1",
    "huge=" + "9" * 400,
    "mixed<1",
    "mixed<a",
    "units<[1]",
    "note<1",
    "state<failed",
    "state=\x00",
    "\x00=1",
    "=",
    "==",
    "<",
    "a" * 100_000,
    " = " * 10_000,
    "a=" + " " * 100_000 + "b",
    "<" * 50_000,
    "number!==1",
    "odd = name=1",
    "loss=inf",
    "loss=Infinity",
    "loss=-Infinity",
    "flag=1",
    "flag=True",
    "number=true",
    "number=1.0",
    "number=0x1",
    "number=1_000",
    "number=\u0661",
    "big=4611686018427387904",
)


def test_hostile_conditions(table: pd.DataFrame) -> None:
    with Jury() as jury:
        for where in HOSTILE:
            jury.judge(lambda where=where: run(table, (where,)), where)
