"""Tables and captions of a benchmark, from records written by hand."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune.report.benchmark import Benchmark
from autotune.space.canonical import digest
from autotune.store.base import CampaignRecord
from autotune.trial import CampaignState, Trial, TrialState

OPENED = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
SPLIT = {"by": None, "seed": 3, "n_train": 60, "n_validation": 20, "n_test": 20, "sha256": "cd" * 32}
DATA = {"name": "cortex", "sha256": "ab" * 32, "n_cells": 100, "n_genes": 50, "simulated": False}
RUNS: dict[str, dict[str, Any]] = {"default": {"x": 0}, "tuned": {"x": 1}}
SETTINGS = {"imputation": "uniform", "imputation_rate": 0.1, "imputation_draws": 25, "imputation_protocol": "honest"}
MODES = {"marginal_ll_test": "min", "elbo_train": "min", "imputation_median": "min"}


def record(name: str, metric: str, mode: str = "min", **values: Any) -> CampaignRecord:
    defaults: dict[str, Any] = {
        "spec": {}, "spec_hash": "", "space": {"x": {"int": [0, 3]}}, "max_trials": 4,
        "state": CampaignState.FINISHED, "facts": {"split": SPLIT, "data": DATA}, "unsealed_at": OPENED,
    }  # fmt: skip
    return CampaignRecord(name=name, metric={"name": metric, "mode": mode}, **(defaults | values))


def scored(number: int, run: str, replicate: int, test: float, **values: Any) -> Trial:
    """Return a trial of the companion that finished."""
    metrics: dict[str, Any] = {
        "marginal_ll_test": {"value": test, "se": 0.4, "split": "test", "estimator": "importance sampling",
                             "draws": 1000, "epoch": 30 + replicate, "n": 20},
        "elbo_train": {"value": test - 5},
        "imputation_median": {"value": 1.25},
        "something_else": {"value": 1.0},
    }  # fmt: skip
    defaults: dict[str, Any] = {"metrics": metrics, "score": test, "state": TrialState.FINISHED}
    facts = {"n_scored_cells": 18, "n_corrupted": 90, "corruption_sha256": "ef" * 32, **values.pop("facts", {})}
    params = RUNS[run]
    return Trial(
        campaign="c-benchmark", number=number, params=params, config_hash=digest(params), replicate=replicate,
        facts=facts, **(defaults | values),
    )  # fmt: skip


TESTS = {"default": [110.0, 111.0, 112.5], "tuned": [104.0, 105.5, 106.0]}


def trials(**values: Any) -> list[Trial]:
    pairs = [(run, replicate) for replicate in range(3) for run in RUNS]
    return [scored(n, run, r, TESTS[run][r], **values) for n, (run, r) in enumerate(pairs)]


def made(found: list[Trial] | None = None, metric: str = "marginal_ll", mode: str = "min", **values: Any) -> Benchmark:
    evaluation = {"of": "c", "settings": SETTINGS, "seeds": 3, "runs": RUNS, "chosen": {"tuned": 1}, "modes": MODES}
    spec = {"metrics": [f"{metric}_test", *MODES], "evaluation": {**evaluation, **values.pop("evaluation", {})}}
    search = [
        Trial(campaign="c", number=n, params={"x": n}, config_hash=str(n), state=TrialState.FINISHED, score=score,
              metrics={metric: {"value": score, "se": 0.3}})
        for n, score in ((0, 109.0), (1, 100.0))
    ]  # fmt: skip
    return Benchmark(
        parent=record("c", metric, mode, **values.pop("parent", {})),
        trials_of_parent=search,
        companion=record("c-benchmark", f"{metric}_test", mode, spec=spec, max_trials=6),
        trials_of_companion=trials() if found is None else found,
        **values,
    )


def test_table_5() -> None:
    table = made().table
    assert list(table.columns) == [
        "dataset", "run", "marginal ll", "marginal ll se", "ELBO train", "ELBO train se", "imputation median",
        "imputation median se", "seeds", "difference", "low", "high", "p", "verdict", "optimism gap", "gap low",
        "gap high",
    ]  # fmt: skip
    default, tuned = table.to_dict("records")
    assert (default["dataset"], default["run"], tuned["run"]) == ("cortex", "default", "tuned")
    assert (tuned["marginal ll"], default["marginal ll"]) == pytest.approx((105.16667, 111.16667))
    assert tuned["marginal ll se"] == pytest.approx(math.sqrt(13 / 12) / math.sqrt(3))
    assert tuned["difference"] == pytest.approx(-6.0)
    assert (tuned["verdict"], default["verdict"]) == ("better", None)
    assert tuned["optimism gap"] == pytest.approx(100.0 - 105.16667)
    assert tuned["gap low"] < tuned["optimism gap"] < tuned["gap high"] < 0
    assert math.isnan(default["optimism gap"])


def test_cells_that_both_scores_share_are_not_in_the_gap() -> None:
    noisy = trials()
    for trial in noisy:
        trial.metrics["marginal_ll_test"]["se"] = 50.0
    shared = made(noisy, parent={"facts": {"split": {**SPLIT, "protocol": "published"}, "data": DATA}})
    gap, apart = shared.gap("tuned"), made(noisy).gap("tuned")
    assert gap is not None
    assert apart is not None
    assert gap.high - gap.low < 10 < 50 < apart.high - apart.low
    assert "bootstrap interval over seeds." in "\n".join(shared.caption)


def test_the_validation_part_counts_by_its_groups() -> None:
    benchmark = made()
    plain = benchmark.gap("tuned")
    object.__setattr__(benchmark.trials_of_parent[1], "facts", {"marginal_ll_se_groups": 30.0})
    grouped = benchmark.gap("tuned")
    assert plain is not None
    assert grouped is not None
    assert grouped.high - grouped.low > 10 * (plain.high - plain.low)


def test_what_people_read() -> None:
    text = made().readable.to_dict("records")
    assert text[1]["marginal ll"] == "105.17 ± 0.60"
    assert text[1]["imputation median"] == "1.25000"
    assert text[1]["verdict"] == "better"
    assert text[0]["verdict"] == text[0]["optimism gap"] == "-"
    assert text[1]["optimism gap"].startswith("-5.17 (-")


def test_the_caption_says_what_the_scores_are() -> None:
    said = "\n".join(made().caption)
    for words in (
        "The test part was opened at 2026-05-04 03:02:01 UTC",
        "Score: marginal_ll_test (lower is better), importance sampling, 1000 draws, measured on the test part, "
        "after 30 to 32 epochs, on 20 cells.",
        "over 3 seeds",
        "Fewer than 5 seeds",
        "paired t-test over seeds, two-sided, alpha 0.05",
        "negative: the search was too optimistic",
        "seeds, the cells of the test part and the cells of the validation part",
        "uniform corruption, rate 0.1, draws 25, protocol honest, 18 scored cells, 90 corrupted entries",
        "cell by cell, seed 3, train 60 cells, validation 20 cells, test 20 cells, sha256 cdcdcdcdcdcd",
        "cortex, 100 cells, 50 genes, sha256 abababababab",
    ):
        assert words in said
    assert "simulated" not in said
    assert "fresh" not in said
    assert "too: it is no longer fresh" in " ".join(made(opened_by=("d",)).caption)


def test_the_published_protocol_is_marked() -> None:
    facts = {"split": {**SPLIT, "n_test": 0, "protocol": "published"}, "data": {**DATA, "simulated": True}}
    said = made(parent={"facts": facts}).caption
    assert said[0].startswith("The data are simulated")
    assert said[1].startswith("Protocol: published. There is no test part")
    assert "cortex (simulated)" in made(parent={"facts": facts}).to_markdown()


def test_trials_that_are_missing() -> None:
    found = trials()
    found[3] = scored(3, "tuned", 1, 0.0, state=TrialState.FAILED, score=None, metrics={})
    found[5] = scored(5, "tuned", 2, 0.0, state=TrialState.RUNNING, score=None, metrics={})
    one = made(found[:-2] + found[-1:])
    tuned = one.table.to_dict("records")[1]
    assert (tuned["seeds"], tuned["marginal ll"], tuned["verdict"]) == (1, 104.0, None)
    assert math.isnan(tuned["marginal ll se"])
    assert one.readable["verdict"].tolist() == ["-", "not tested"]
    said = " ".join(one.caption)
    assert "2 of 6 trials have not ended yet; 1 of 6 trials failed and are left out." in said
    nothing = made([])
    assert nothing.table["run"].tolist() == ["default", "tuned"]
    assert nothing.comparisons.empty
    assert nothing.default_trial is None
    assert nothing.to_markdown()


def test_pairs_are_of_the_same_seed() -> None:
    found = trials()
    found[0] = scored(0, "default", 0, 0.0, state=TrialState.FAILED, score=None, metrics={})
    compared = made(found).compared("tuned", "marginal_ll_test")
    assert compared is not None
    assert (compared.n, compared.difference) == (2, pytest.approx((105.5 - 111.0 + 106.0 - 112.5) / 2))
    assert made(found).default_trial == found[2]


def test_without_a_default_there_is_no_verdict() -> None:
    alone = made(evaluation={"runs": {"tuned": RUNS["tuned"]}})
    assert alone.table["run"].tolist() == ["tuned"]
    assert alone.readable["verdict"].tolist() == ["not tested"]
    assert "no default configuration" in " ".join(alone.caption)


def test_the_same_configuration_twice() -> None:
    same = made(evaluation={"runs": {"default": RUNS["tuned"], "tuned": RUNS["tuned"]}})
    assert same.table["marginal ll"].tolist() == pytest.approx([105.16667] * 2)
    assert same.table["verdict"].tolist() == [None, "not distinguishable"]


@pytest.mark.parametrize(("shift", "grouped"), [(0.0, True), (1.0, False)])
def test_groups_of_the_metric_are_resampled(shift: float, grouped: bool) -> None:
    found = []
    for trial in trials():
        mean = trial.metrics["marginal_ll_test"]["value"] + shift  # shifted: the means of another metric
        groups = {"a": [10, mean - 4.0], "b": [5, mean], "c": [5, mean + 8.0]}
        found.append(scored(trial.number, ["default", "tuned"][trial.number % 2], trial.replicate,
                            trial.metrics["marginal_ll_test"]["value"], facts={"test_groups": groups}))  # fmt: skip
    benchmark = made(found)
    assert benchmark.resamples_groups is grouped
    assert ("whole groups of the test part" in " ".join(benchmark.caption)) is grouped
    gap, plain = benchmark.gap("tuned"), made().gap("tuned")
    assert gap is not None
    assert plain is not None
    assert ((gap.high - gap.low) > 2 * (plain.high - plain.low)) is grouped


def test_a_metric_that_is_better_when_larger() -> None:
    tests = [
        Trial(campaign="c-benchmark", number=2 * r + i, params=RUNS[run], config_hash=digest(RUNS[run]), replicate=r,
              state=TrialState.FINISHED, score=value, metrics={"f1_test": {"value": value}, "accuracy": {"value": 0.9}})
        for r in range(3)
        for i, (run, value) in enumerate({"default": 0.5 + r / 100, "tuned": 0.8 + r / 90}.items())
    ]  # fmt: skip
    other = made(tests, metric="f1", mode="max")
    assert list(other.readable.columns)[:5] == ["dataset", "run", "f1_test", "accuracy", "verdict"]
    assert other.table["verdict"].tolist() == [None, "better"]
    assert "positive: the search was too optimistic" in " ".join(other.caption)


def test_files(tmp_path: Path) -> None:
    benchmark = made()
    paths = benchmark.write(tmp_path / "out")
    assert [p.name for p in paths] == [
        "benchmark.md", "benchmark.csv", "benchmark.tex", "benchmark_comparisons.csv", "benchmark_trials.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "benchmark.csv").read_text())))
    assert float(rows[1]["marginal ll"]) == benchmark.table["marginal ll"][1]
    assert r"105.17 ± 0.60" in (tmp_path / "out" / "benchmark.tex").read_text()
    assert "| cortex  | tuned" in (tmp_path / "out" / "benchmark.md").read_text()
    console = Console(width=100, file=io.StringIO())
    benchmark.show(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Benchmark of c.", "Against the default, seed by seed.", "Configurations.", "better"):
        assert words in shown
