"""The sixty published rows of the 2019 tables come out as they were printed."""

from __future__ import annotations

import csv
import math
import os
import random
from pathlib import Path

import pytest
from rich.console import Console

from autotune.report import Report
from autotune.report.formatting import as_text
from autotune.store.base import CampaignRecord
from autotune.trial import Trial, TrialState

DATA = Path(os.environ.get("AUTOTUNE_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
TABLE = DATA / "reference" / "scvi_autotune_2019_best_worst.csv"
COLUMNS = [
    "marginal_ll",
    "n_layers",
    "n_hidden",
    "n_latent",
    "reconstruction_loss",
    "dropout_rate",
    "lr",
    "n_epochs",
    "n_params",
    "run index",
]
INTEGERS = ("n_layers", "n_hidden", "n_latent", "n_epochs", "n_params")

pytestmark = pytest.mark.skipif(not TABLE.exists(), reason=f"no {TABLE}")


def published(dataset: str) -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["dataset"] == dataset]


def as_trial(row: dict[str, str], place: int, middle: float | None = None) -> Trial:
    """Return the trial of a printed row; ties of the rounded scores are broken as the original had them."""
    score = float(row["marginal_ll"]) + place * 1e-6 if middle is None else middle
    facts = {"n_epochs": int(row["n_epochs"]), "n_params": int(row["n_params"])}
    params = {
        "lr": float(row["lr"]),
        "dropout_rate": float(row["dropout_rate"]),
        "reconstruction_loss": row["reconstruction_loss"],
        "n_latent": int(row["n_latent"]),
        "n_hidden": int(row["n_hidden"]),
        "n_layers": int(row["n_layers"]),
    }
    number = int(row["run_index"])
    return Trial(
        campaign="c",
        number=number,
        params=params,
        config_hash=str(number),
        state=TrialState.FAILED if math.isnan(score) else TrialState.FINISHED,
        score=None if math.isnan(score) else score,
        facts=facts,
    )


def report(dataset: str, seed: int = 0) -> Report:
    """Return a report over a hundred trials: the twenty printed ones, and eighty between them that were not printed."""
    rows = published(dataset)
    trials = [as_trial(row, place) for place, row in enumerate(rows)]
    best, worst = float(rows[9]["marginal_ll"]), float(rows[10]["marginal_ll"])
    free = [number for number in range(100) if number not in {trial.number for trial in trials}]
    for place, number in enumerate(free, start=1):
        score = best + (worst - best) * place / (len(free) + 1)
        trials.append(as_trial(rows[0] | {"run_index": str(number)}, 0, score))
    random.Random(seed).shuffle(trials)
    campaign = CampaignRecord(
        name="c",
        spec={"fixed": {"max_epochs": 1000}},
        spec_hash="",
        space={"n_latent": {}, "lr": {}},
        metric={"name": "marginal_ll", "mode": "min"},
        max_trials=100,
    )
    return Report(campaign=campaign, trials=trials)


@pytest.mark.parametrize("dataset", ["cortex", "pbmc", "brain_large"])
@pytest.mark.parametrize("seed", [0, 1])
def test_tables_are_the_published_ones(dataset: str, seed: int) -> None:
    made = report(dataset, seed)
    rows = published(dataset)
    for table, expected in ((made.best, rows[:10]), (made.worst, rows[10:])):
        assert list(table.columns) == COLUMNS
        assert table.index.tolist() == [int(row["rank"]) for row in expected]
        assert table["run index"].tolist() == [int(row["run_index"]) for row in expected]
        assert table["marginal_ll"].round(2).fillna(-1.0).tolist() == [
            -1.0 if row["marginal_ll"] == "NaN" else round(float(row["marginal_ll"]), 2) for row in expected
        ]
        for name in COLUMNS[1:-1]:
            values = table[name].tolist()
            assert [str(value) for value in values] == [
                row[name] if name in (*INTEGERS, "reconstruction_loss") else str(float(row[name])) for row in expected
            ]


def test_numbers_are_printed_as_people_write_them() -> None:
    texts = as_text(report("cortex").best, "marginal_ll")
    assert texts.iloc[0].tolist() == ["1218.52", "1", "256", "10", "zinb", "0.1", "0.01", "248", "290816", "92"]
    worst = as_text(report("cortex").worst, "marginal_ll")
    assert worst["lr"].tolist()[1] == "0.0001"
    assert worst["marginal_ll"].tolist()[-2:] == ["10680.40", "NaN"]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_number_is_on_the_screen(width: int) -> None:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), force_terminal=False)  # noqa: SIM115
    with console.file:
        made = report("cortex")
        made.show(console)
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    for table in (made.best, made.worst):
        for rank, row in as_text(table, "marginal_ll").iterrows():
            wanted = [str(rank), *row.tolist()]
            assert any(line.split() == wanted for line in lines), wanted
    assert "…" not in console.export_text(clear=False)
