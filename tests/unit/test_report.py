"""Rankings, captions and files of a report."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from autotune.errors import InputError
from autotune.report import Report
from autotune.report.formatting import cell_text, number_text, score_text
from autotune.report.markup import latex_text, markdown_text
from autotune.report.run_time import run_time
from autotune.report.tables import NOTHING, best_and_worst, ranking
from autotune.store.base import CampaignRecord
from autotune.trial import Attempt, Cause, Trial, TrialState

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
START = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = {
    "data": {"name": "cortex", "sha256": "ab" * 32, "n_cells": 3005, "n_genes": 558, "simulated": False},
    "split": {
        "by": "donor",
        "seed": 3,
        "n_train": 2254,
        "n_validation": 751,
        "sha256": "cd" * 32,
        "fractions": {"train": 0.75, "validation": 0.25},
    },
}


def campaign(mode: str = "min", metric: str = "loss", **values: Any) -> CampaignRecord:
    defaults: dict[str, Any] = {"spec": {"fixed": {}}, "spec_hash": "", "space": {}, "max_trials": 10}
    return CampaignRecord(name="c", metric={"name": metric, "mode": mode}, **(defaults | values))


def trial(number: int, score: float | None, state: TrialState = TrialState.FINISHED, **values: Any) -> Trial:
    defaults: dict[str, Any] = {"campaign": "c", "params": {"x": number}, "config_hash": str(number)}
    return Trial(number=number, score=score, state=state, **(defaults | values))


def simulated() -> CampaignRecord:
    return campaign(facts=FACTS | {"data": FACTS["data"] | {"simulated": True}})


def shown(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    report.show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("mode", "order"), [("min", [1, 2, 0, 6, 3, 4, 5]), ("max", [0, 2, 1, 6, 3, 4, 5])], ids=["min", "max"]
)
def test_order(mode: str, order: list[int]) -> None:
    trials = [
        trial(9, None, TrialState.RUNNING),
        trial(8, None, TrialState.CANCELLED),
        trial(7, 0.0, TrialState.PAUSED),
        trial(6, 0.1, TrialState.PRUNED),
        trial(5, math.inf),
        trial(4, None, TrialState.FAILED),
        trial(3, math.nan),
        trial(2, 2.0),
        trial(1, 1.0),
        trial(0, 3.0),
    ]
    table = ranking(campaign(mode), trials)
    assert table["run index"].tolist() == order
    assert table.index.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert math.isnan(table["loss"].tolist()[-2])


@QUIET
@given(
    scores=st.lists(st.floats() | st.none(), max_size=12),
    best=st.integers(0, 4),
    worst=st.integers(0, 4),
    mode=st.sampled_from(["min", "max"]),
)
def test_no_row_is_shown_twice(scores: list[float | None], best: int, worst: int, mode: str) -> None:
    trials = [
        trial(i, score, TrialState.FINISHED if score is not None else TrialState.FAILED)
        for i, score in enumerate(scores)
    ]
    first, last = best_and_worst(campaign(mode), trials, best, worst)
    ranks = first.index.tolist() + last.index.tolist()
    assert len(set(ranks)) == len(ranks) == min(len(scores), best + worst)
    assert last.empty or len(scores) > best + worst
    whole = ranking(campaign(mode), trials)["loss"]
    finite = [value if mode == "min" else -value for value in whole.tolist() if math.isfinite(value)]
    assert finite == sorted(finite)
    assert all(math.isfinite(value) for value in whole.tolist()[: len(finite)])


def test_negative_numbers_of_rows_are_refused() -> None:
    with pytest.raises(InputError):
        best_and_worst(campaign(), [], best=-1)
    with pytest.raises(InputError):
        Report(campaign=campaign(), trials=[], n_worst=-1)


def test_folds_are_one_row() -> None:
    trials = [
        trial(0, 1.0, config_hash="a", params={"x": 1}, facts={"n_epochs": 10, "n_params": 5}),
        trial(1, 2.0, config_hash="a", params={"x": 1}, fold=1, facts={"n_epochs": 20, "n_params": 5}),
        trial(2, 1.2, config_hash="b", params={"x": 2}),
        trial(3, None, TrialState.RUNNING, config_hash="b", params={"x": 2}, fold=1),
        trial(4, 0.1, config_hash="d", params={"x": 3}),
        trial(5, None, TrialState.FAILED, config_hash="d", params={"x": 3}, fold=1),
    ]
    table = ranking(campaign(), trials)
    assert table["run index"].tolist() == [0, 4]
    assert table["loss"].tolist()[0] == 1.5
    assert math.isnan(table["loss"].tolist()[1])
    assert table["n_epochs"].tolist()[0] == 15
    assert any("mean over its folds" in line for line in Report(campaign=campaign(), trials=trials).caption)


def test_columns_of_any_space() -> None:
    record = campaign(
        space={"b": {}, "net": {}, "a": {}}, spec={"fixed": {"n_layers": 2, "max_epochs": 7, "optimizer": "adam"}}
    )
    params = {"a": 1, "net": {"act": "relu"}, "b": 0.5, "lr": 0.1, "max_epochs": 7, "optimizer": "adam", "loss": "nb"}
    table = ranking(record, [trial(0, 1.0, params=params, facts={"n_params": 9, "other": 1})])
    assert list(table.columns) == [
        "loss",
        "n_layers",
        "lr",
        "b",
        "net.act",
        "a",
        "params.loss",
        "n_params",
        "run index",
    ]
    assert table["n_layers"].tolist() == [2]


def test_whole_numbers_stay_whole_beside_missing_ones() -> None:
    trials = [trial(0, 1.0, facts={"n_epochs": 3}), trial(1, None, TrialState.FAILED)]
    report = Report(campaign=campaign(), trials=trials)
    assert re.search(r"\| +2 \| +NaN \| +1 \| +- \| +1 \|", report.to_markdown())
    assert re.search(r"\| +1 \| +1.00000 \| +0 \| +3 \| +0 \|", report.to_markdown())


def test_run_time() -> None:
    def ran(number: int, host: str, device: str, start_s: float, end_s: float | None) -> Trial:
        start = START + timedelta(seconds=start_s)
        end = None if end_s is None else START + timedelta(seconds=end_s)
        tried = Attempt(token="t", owner="w", host=host, device=device, started_at=start, ended_at=end)
        state = TrialState.RUNNING if end is None else TrialState.FINISHED
        return trial(
            number, 1.0, state, attempts=(tried,), started_at=start, ended_at=end, facts={"n_epochs": 10 * (number + 1)}
        )

    trials = [
        ran(0, "h1", "cuda:0", 5, 100),
        ran(1, "h1", "cuda:1", 0, 100_000),
        ran(2, "h2", "cuda:0", 10, 20),
        ran(3, "h2", "cuda:0", 10, None),
    ]
    record = campaign(facts=FACTS, spec={"fixed": {"max_epochs": 50}})
    row = run_time(record, trials).iloc[0].to_dict()
    assert row == {
        "dataset": "cortex",
        "cells": 3005,
        "genes": 558,
        "wall time": "27:46:40",
        "device time": "55:34:55",
        "average epochs": 20.0,
        "average epochs to best": 20.0,
        "number of devices": 3,
        "parallel efficiency": 0.667,
        "max epochs": 50,
    }


def spans(*attempts: tuple[float, float | None]) -> list[Trial]:
    """One trial per attempt, from second to second; None: it runs."""
    made = []
    for number, (first, last) in enumerate(attempts):
        start, end = START + timedelta(seconds=first), None if last is None else START + timedelta(seconds=last)
        tried = Attempt(token="t", owner="w", started_at=start, ended_at=end)
        state = TrialState.RUNNING if end is None else TrialState.FINISHED
        made.append(trial(number, 1.0, state, attempts=(tried,), started_at=start, ended_at=end))
    return made


@pytest.mark.parametrize(
    ("attempts", "idle"),
    [
        ([(0, 60), (641, 700)], "0:09:41"),
        ([(0, 60), (30, 50), (50, 700)], None),
        ([(0, 10), (40, 50), (45, 60), (90, 100)], "0:01:00"),
        ([(0, 100), (109, 120)], None),
        ([(0, 1000), (1040, 2000)], None),
        ([(0, 60), (70, None), (641, 700)], None),
        ([(0, None)], None),
        ([], None),
    ],
    ids=["pause", "overlap", "two gaps", "short gap", "small share", "running", "no end", "no trial"],
)
def test_pauses_in_the_wall_time_are_said(attempts: list[tuple[float, float | None]], idle: str | None) -> None:
    text = "\n".join(Report(campaign=campaign(), trials=spans(*attempts)).caption)
    if idle is None:
        assert "Wall time" not in text
    else:
        assert f"Wall time includes {idle} in which no trial ran." in text


def test_time_between_attempts_of_one_trial_is_a_pause() -> None:
    first, second = (one.attempts[0] for one in spans((0, 60), (641, 700)))
    one = trial(0, 1.0, attempts=(first, second), started_at=first.started_at, ended_at=second.ended_at)
    assert run_time(campaign(), [one])["wall time"].tolist() == ["0:11:40"]
    assert any("includes 0:09:41" in line for line in Report(campaign=campaign(), trials=[one]).caption)


def test_trials_without_attempts_ran_from_start_to_end() -> None:
    kept = [trial(0, 1.0, started_at=START, ended_at=START + timedelta(hours=1))]
    assert not any("Wall time" in line for line in Report(campaign=campaign(), trials=kept).caption)


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ({"spec": {"fixed": {"max_epochs": 50}}, "facts": {"settings": {"max_epochs": 400}}}, 50),
        ({"facts": {"settings": {"max_epochs": 400}}}, 400),
        ({"facts": {"settings": {"max_epochs": 400}}, "space": {"max_epochs": {"int": [1, 9]}}}, None),
        ({}, None),
    ],
)
def test_max_epochs_are_the_default_where_not_fixed(values: dict[str, Any], epochs: int | None) -> None:
    assert run_time(campaign(**values), [])["max epochs"].tolist() == [epochs]


def test_what_a_function_without_data_has_not_is_a_dash() -> None:
    report = Report(campaign=campaign(), trials=[trial(0, 1.0)])
    assert report.run_time.iloc[0].tolist() == [None] * 10
    assert re.search(r"\| -\s+\| -\s+\| -", report.to_markdown())
    assert any(
        "does not say" in line
        for line in Report(campaign=campaign(), trials=[trial(0, 1.0, metrics={"loss": {"value": 1.0}})]).caption
    )


def test_caption_says_what_the_score_is() -> None:
    said = {"split": "validation", "estimator": "importance sampling", "draws": 100, "n": 751, "se": 0.4123}
    trials = [
        trial(0, 2.0, metrics={"loss": said | {"value": 2.0, "epoch": 12}}),
        trial(1, 1.0, metrics={"loss": said | {"value": 1.0, "epoch": 248, "se": 0.25}}),
        trial(2, None, TrialState.FAILED, attempts=(Attempt(token="t", owner="w", cause=Cause.OUT_OF_MEMORY),)),
        trial(3, None, TrialState.QUEUED),
        trial(4, 9.0, TrialState.PRUNED),
    ]
    warned = {"data": FACTS["data"] | {"warnings": ["cells of one donor are in both parts"]}}
    text = "\n".join(Report(campaign=campaign(facts=FACTS | warned), trials=trials).caption)
    for part in (
        "loss (lower is better), importance sampling, 100 draws, measured on the validation part,",
        "after 12 to 248 epochs",
        "on 751 cells",
        "standard error 0.25",
        "whole groups of donor held out together, seed 3",
        "train 2254 cells (75%), validation 751 cells (25%), sha256 cdcdcdcdcdcd",
        "search has seen the validation part: the best score is optimistic",
        "2 finished, 1 failed (1 out-of-memory), 1 pruned, 1 not ended (not ranked); budget 10",
        "Pruned trials stand after",
        "sha256 abababababab",
        "Note: cells of one donor are in both parts.",
    ):
        assert part in text
    assert "simulated" not in text


def test_no_finished_trial_is_a_sentence(tmp_path: Path) -> None:
    report = Report(campaign=campaign(), trials=[trial(0, None, TrialState.RUNNING)])
    assert report.best.empty
    assert report.worst.empty
    assert NOTHING in shown(report)
    assert NOTHING in report.to_markdown()
    report.write(tmp_path, figures=False)
    assert NOTHING in (tmp_path / "best.md").read_text()
    assert (tmp_path / "best.csv").read_text() == "rank,loss,run index\n"
    assert Report(campaign=campaign(), trials=[]).to_markdown()


def test_few_trials_are_one_table() -> None:
    report = Report(campaign=campaign(), trials=[trial(i, float(i)) for i in range(20)])
    assert len(report.best) == 20
    assert report.worst.empty
    assert "All 20 configurations" in shown(report)
    assert "Worst" not in shown(report)
    more = Report(campaign=campaign(), trials=[trial(i, float(i)) for i in range(21)])
    assert (len(more.best), len(more.worst)) == (10, 10)


def test_simulated_is_in_every_file_and_on_the_screen(tmp_path: Path) -> None:
    report = Report(campaign=simulated(), trials=[trial(i, float(i)) for i in range(25)])
    paths = report.write(tmp_path / "new" / "folder", figures=False)
    assert {path.suffix for path in paths} == {".csv", ".html", ".md", ".tex"}
    for path in paths:
        assert "simulated" in path.read_text(encoding="utf-8"), path.name
    assert "cortex (simulated)" in shown(report)
    assert "The data are simulated" in shown(report)
    with (tmp_path / "new" / "folder" / "ranking.csv").open(newline="") as file:
        assert [row["data"] for row in csv.DictReader(file)] == ["simulated"] * 25
    assert "data" not in Report(campaign=campaign(), trials=report.trials).ranking.columns


def test_files_are_whole_and_in_full_precision(tmp_path: Path) -> None:
    score = 0.1234567890123456
    report = Report(campaign=campaign(), trials=[trial(0, score), trial(1, None, TrialState.FAILED)])
    (tmp_path / "best.csv").write_text("old")
    paths = report.write(tmp_path, figures=False)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert (tmp_path / "ranking.csv").read_text() == f"rank,loss,x,run index\n1,{score!r},0,0\n2,NaN,1,1\n"
    assert "0.123457" in (tmp_path / "best.md").read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the report to") as caught:
        Report(campaign=campaign(), trials=[]).write(tmp_path / "file")
    assert "\n" not in str(caught.value)
    (tmp_path / "out" / "best.csv").mkdir(parents=True)
    with pytest.raises(InputError):
        Report(campaign=campaign(), trials=[]).write(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("text", "markdown", "latex"),
    [
        ("n_layers", "n_layers", r"n\_layers"),
        ("_x_", r"\_x\_", r"\_x\_"),
        ("a|b", r"a\|b", r"a\textbar{}b"),
        ("50%", "50%", r"50\%"),
        ("R&D", "R&D", r"R\&D"),
        ("&lt;", r"\&lt;", r"\&lt;"),
        ("a\\b", r"a\\b", r"a\textbackslash{}b"),
        ("{x}^2~$#", r"{x}^2\~\$#", r"\{x\}\textasciicircum{}2\textasciitilde{}\$\#"),
        ("[a]*`<b>`", r"\[a\]\*\`\<b\>\`", r"{[}a{]}*`\textless{}b\textgreater{}`"),
        ("two\nlines", "two lines", "two lines"),
    ],
)
def test_escaping(text: str, markdown: str, latex: str) -> None:
    assert markdown_text(text) == markdown
    assert latex_text(text) == latex


def test_odd_names_do_not_break_tables() -> None:
    params = {"a|b": "x|y", "50%_&": "[red]bold[/red]", "multi": "one\ntwo"}
    report = Report(campaign=campaign(), trials=[trial(0, 1.0, params=params), trial(1, 2.0, params=params)])
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:4]}) == 1
    assert "[red]bold[/red]" in shown(report, 120)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("marginal_ll", 1218.5199, "1218.52"),
        ("marginal_ll", 10680.4, "10680.40"),
        ("marginal_ll", math.nan, "NaN"),
        ("loss", 1218.5199, "1218.52"),
        ("loss", 0.5, "0.500000"),
        ("loss", 0.0, "0"),
        ("loss", 123456.7, "123457"),
        ("loss", 1234567.8, "1234568"),
        ("loss", 999_999.7, "1000000"),
        ("loss", 1e-9, "1.00000e-09"),
        ("loss", -math.inf, "-inf"),
    ],
)
def test_scores(name: str, value: float, text: str) -> None:
    assert score_text(name, value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "0.0001"),
        (1e-5, "0.00001"),
        (0.000123456789, "0.000123457"),
        (0.1, "0.1"),
        (0.0, "0"),
        (256.0, "256"),
        (1_717_248, "1717248"),
        (1234567.0, "1234567"),
        (1234567.8, "1234568"),
        (1e300, "1e+300"),
        (-2.5, "-2.5"),
        (True, "true"),
        (None, "-"),
        (math.nan, "-"),
        ("zinb", "zinb"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert cell_text(value) == text


@QUIET
@given(st.floats(min_value=1e-9, max_value=1e14))
def test_plain_decimals_keep_six_digits(value: float) -> None:
    text = number_text(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_many_parameters_are_cut_into_parts_and_no_number_is_lost(width: int) -> None:
    params = {f"a_rather_long_parameter_name_{i}": 123456 + i for i in range(15)} | {"text": "word " * 20}
    report = Report(campaign=campaign(), trials=[trial(0, 0.25, params=params), trial(1, 0.5, params=params)])
    text = shown(report, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    words = text.split()
    for i in range(15):
        assert words.count(str(123456 + i)) == 2


def test_importing_the_package_does_not_import_pandas() -> None:
    code = "import sys, autotune, autotune.trial, autotune.errors; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
