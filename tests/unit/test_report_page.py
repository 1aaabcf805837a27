"""The page, the further columns, the benchmark section, and what reports do without matplotlib."""

from __future__ import annotations

import builtins
import io
import math
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from autotune.report import Report
from autotune.report.run_time import device_s, run_time
from autotune.report.tables import ranking
from autotune.store.base import CampaignRecord
from autotune.trial import Attempt, Cause, Trial, TrialState

START = datetime(2026, 1, 1, tzinfo=UTC)
EVIL = '<script>alert("1")</script>'


def campaign(name: str = "c", **values: Any) -> CampaignRecord:
    defaults: dict[str, Any] = {"spec": {}, "spec_hash": "", "space": {"x": {"int": [0, 9]}}, "max_trials": 10}
    return CampaignRecord(name=name, **(defaults | {"metric": {"name": "loss", "mode": "min"}} | values))


def trial(number: int, score: float | None, state: TrialState = TrialState.FINISHED, **values: Any) -> Trial:
    defaults: dict[str, Any] = {"campaign": "c", "params": {"x": number}, "config_hash": str(number)}
    return Trial(number=number, score=score, state=state, **(defaults | values))


def failed(number: int, cause: Cause) -> Trial:
    return trial(number, None, TrialState.FAILED, attempts=(Attempt(token="t", owner="w", cause=cause),))


class Benchmarked:
    """What a report needs of a benchmark, with a name that means something to HTML."""

    def __init__(self) -> None:
        self.table = pd.DataFrame({"run": ["default", EVIL], "marginal ll": [2.0, 1.0]})
        self.caption = ["Five seeds.", EVIL]

    def to_markdown(self) -> str:
        return "| run |\n"


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("matplotlib", "sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", blocked)


def test_the_page_is_well_formed_and_asks_nobody() -> None:
    data = {"name": EVIL, "simulated": True}
    trials = [trial(i, float(i), params={EVIL: EVIL, "x": i}) for i in range(30)] + [failed(30, Cause.TIMEOUT)]
    text = Report(campaign=campaign(EVIL, facts={"data": data}), trials=trials, benchmark=Benchmarked()).to_html()
    page = Tags(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and str(value)[0] not in "#d"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    assert "The data are simulated" in text
    assert "&lt;script&gt;" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_figures_are_in_the_page_with_alternative_texts() -> None:
    pytest.importorskip("matplotlib")
    report = Report(campaign=campaign(), trials=[trial(i, float(i), params={"x": i, EVIL: i}) for i in range(3)])
    page = Tags(report.to_html(report.figures))
    sources = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert len(sources) == len(report.figures)
    assert all(str(source).startswith("data:image/") for source in sources)
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    assert "script" not in page.tags


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_there_are_tables(tmp_path: Path) -> None:
    report = Report(campaign=campaign(), trials=[trial(0, 1.0)])
    assert not report.can_draw
    names = {path.name for path in report.write(tmp_path)}
    assert {"report.html", "report.md", "best.tex", "trials.csv"} <= names
    assert not (tmp_path / "figures").exists()


def test_further_metrics_are_columns_after_the_first() -> None:
    said = {"loss": {"value": 1.0}, "elbo": {"value": 2.0}, "other": {"value": 3.0}}
    record = campaign(spec={"metrics": ["loss", "elbo", "absent"]})
    trials = [trial(0, 1.0, metrics=said), trial(1, 2.0, params={"x": 1, "elbo": 5}), failed(2, Cause.ERROR)]
    table = ranking(record, trials)
    assert table.columns.tolist() == ["loss", "elbo", "absent", "x", "params.elbo", "run index", "cause"]
    assert table["elbo"].tolist()[0] == 2.0
    assert all(math.isnan(value) for value in table["elbo"].tolist()[1:])
    assert "2.00000" in Report(campaign=record, trials=trials).to_markdown()


def test_metrics_of_folds_are_means() -> None:
    record = campaign(spec={"metrics": ["loss", "elbo"]})
    both = [trial(i, 1.0, config_hash="a", fold=i, metrics={"elbo": {"value": float(i)}}) for i in (0, 1)]
    assert ranking(record, both)["elbo"].tolist() == [0.5]


def test_failed_ones_are_last_with_their_cause() -> None:
    trials = [failed(0, Cause.NOT_A_NUMBER), trial(1, 5.0, TrialState.PRUNED), trial(2, 9.0), failed(3, Cause.TIMEOUT)]
    table = ranking(campaign(), trials)
    assert table["run index"].tolist() == [2, 1, 0, 3]
    assert table["cause"].tolist() == [None, "pruned", "not-a-number", "timeout"]
    assert "cause" not in ranking(campaign(), trials[2:3]).columns
    report = Report(campaign=campaign(), trials=[*trials[:1], *(trial(i, 1.0) for i in range(4, 20))], n_best=5,
                    n_worst=5)  # fmt: skip
    assert "cause" not in report.best.columns
    assert report.worst["cause"].tolist()[-1] == "not-a-number"


def test_run_time_of_shared_devices() -> None:
    def ran(number: int, first: float, last: float | None, share: float, device: str = "cpu") -> Trial:
        start = START + timedelta(seconds=first)
        end = None if last is None else START + timedelta(seconds=last)
        tried = Attempt(token="t", owner="w", host="h", device=device, share=share, started_at=start, ended_at=end)
        state = TrialState.RUNNING if end is None else TrialState.FINISHED
        facts = {} if end is None else {"n_epochs": 20, "n_epochs_run": 70}
        return trial(number, 1.0, state, attempts=(tried,), started_at=start, ended_at=end, facts=facts)

    trials = [ran(0, 0, 100, 0.5), ran(1, 0, 80, 0.5), ran(2, 80, None, 0.5)]
    assert device_s(trials) == 50 + 40 + 10
    row = run_time(campaign(), trials).iloc[0].to_dict()
    assert (row["wall time"], row["device time"], row["parallel efficiency"]) == ("0:01:40", "0:01:40", 1.0)
    assert (row["average epochs"], row["average epochs to best"]) == (70.0, 20.0)
    assert device_s([]) is None
    assert device_s([ran(0, 0, 9, 1.0, device="")]) is None


def test_published_run_times_give_the_published_efficiency() -> None:
    """Device time / wall time / devices of the 2019 study: 0.993, 0.965 and 0.872."""
    for wall, device, devices, wanted in (
        (9 * 3600 + 140, 8 * 3600 + 58 * 60 + 21, 1, 0.993),
        (3 * 3600 + 252, 47 * 3600 + 25 * 60, 16, 0.965),
        (21 * 3600 + 38 * 60 + 49, 12 * 86400 + 13 * 3600 + 55 * 60 + 18, 16, 0.872),
    ):
        trials = []
        for i in range(devices):
            last = START + timedelta(seconds=wall)
            first = last - timedelta(seconds=device / devices)
            tried = Attempt(token="t", owner="w", host="h", device=f"cuda:{i}", started_at=first, ended_at=last)
            trials.append(trial(i, 1.0, attempts=(tried,), started_at=START if not i else first, ended_at=last))
        assert run_time(campaign(), trials)["parallel efficiency"].tolist() == [wanted]


@pytest.mark.parametrize(
    ("split", "said", "unsaid"),
    [
        ({"seed": 0, "n_train": 9, "n_test": 0, "fractions": {"train": 1.0, "test": 0.0}}, "train 9", "test"),
        ({"n_test": 5, "protocol": "honest"}, "test part is sealed", "published"),
        ({"protocol": "published", "n_test": 0}, "selected and reported on the same held-out cells", "sealed"),
    ],
)
def test_caption_says_which_cells_judge(split: dict[str, Any], said: str, unsaid: str) -> None:
    lines = Report(campaign=campaign(facts={"split": split}), trials=[trial(0, 1.0)]).caption
    text = " ".join(line for line in lines if line.startswith(("Split", "Protocol", "The test")))
    assert said in text
    assert unsaid not in text


def test_an_opened_seal_is_said() -> None:
    record = campaign(facts={"split": {"n_test": 5}}, unsealed_at=START)
    assert any("opened by the benchmark" in line for line in Report(campaign=record, trials=[]).caption)


def test_the_benchmark_is_in_all_of_it(tmp_path: Path) -> None:
    report = Report(campaign=campaign(), trials=[trial(0, 1.0)], benchmark=Benchmarked())
    names = {path.name for path in report.write(tmp_path, figures=False)}
    assert {"benchmark.csv", "benchmark.md", "benchmark.tex"} <= names
    assert "## Benchmark" in (tmp_path / "report.md").read_text()
    assert "Five seeds." in (tmp_path / "report.html").read_text()
    console = Console(width=120, file=io.StringIO())
    report.show(console)
    assert "Five seeds." in console.file.getvalue()  # type: ignore[attr-defined]
