"""Evaluations of scVI: the score of a run, that of cells which no training saw, and imputation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from autotune.errors import CampaignError, DataError, ObjectiveError
from workers.reporting import Result, Trial
from workers.workloads.cells.corruption import corrupt
from workers.workloads.cells.prepared import prepare_cells
from workers.workloads.registry import get_workload
from workers.workloads.scvi import evaluation, training
from workers.workloads.scvi.evaluation import (
    METRICS,
    check_evaluation,
    evaluate_trial,
    evaluation_metrics,
    evaluation_settings,
)

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
WORKLOAD = get_workload("scvi")
SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 3, "max_epochs": 2, "lr": 0.01, "n_epochs_kl_warmup": None}
FEW: dict[str, Any] = {"marginal_ll_draws": 10, "imputation_rate": 0.3}
SPLIT: dict[str, Any] = {"validation": 0.25, "test": 0.2, "seed": 1}


def prepare(cells_path: Path, *, sealed: bool = False, labels: str | None = None, **split: Any) -> Any:
    data = {"path": str(cells_path), "genes": {"top_variance": 40}, "labels": labels}
    return prepare_cells(data, {**SPLIT, **split}, sealed=sealed)


@pytest.fixture(scope="module")
def three(cells_path: Path) -> Any:
    """Cells in three parts, unsealed."""
    return prepare(cells_path)


@pytest.fixture(scope="module")
def two(cells_path: Path) -> Any:
    """Cells in two parts."""
    return prepare(cells_path, test=0.0)


def evaluate(prepared: Any, settings: dict[str, Any] | None = None, **params: Any) -> Result:
    return WORKLOAD.evaluate(Trial(params={**SMALL, **params}, data=prepared, seed=5), {**FEW, **(settings or {})})


@pytest.fixture(scope="module")
def result(three: Any) -> Result:
    """An evaluation with few draws."""
    return evaluate(three)


# --- what comes out


def test_each_metric_says_what_it_is(three: Any, result: Result) -> None:
    split = three.split
    assert set(result.metrics) == set(METRICS) - {"accuracy_validation", "accuracy_test"}
    for name in ("marginal_ll_test", "elbo_test", "reconstruction_test"):
        metric = result.metrics[name]
        assert (metric.split, metric.draws, metric.n) == ("test", 10, len(split.test))
        assert metric.epoch == result.facts["n_epochs"]
        assert metric.se is not None
    for name in ("imputation_median", "imputation_mean"):
        metric = result.metrics[name]
        assert (metric.split, metric.draws, metric.n) == ("test", 25, result.facts["n_scored_cells"])
        assert metric.estimator is not None
        assert metric.estimator.startswith("fresh model on corrupted counts")
        assert metric.value > 0
        assert metric.se is not None
    assert result.metrics["marginal_ll_test"].value < result.metrics["elbo_test"].value
    facts = result.facts
    assert facts["n_test"] == len(split.test) == split.n_test
    made = corrupt(three.cells.counts, "uniform", 0.3, 0)
    tested = made.rows[np.isin(made.rows, split.test)]
    assert (facts["n_scored_cells"], facts["n_compared"]) == (len(np.unique(tested)), len(tested))
    assert (facts["n_corrupted"], facts["corruption_sha256"]) == (len(made.rows), made.sha256)
    assert facts["imputation"] == {"kind": "uniform", "rate": 0.3, "seed": 0, "draws": 25, "protocol": "honest"}
    assert "test_groups" not in facts


def test_metrics_of_the_run_are_the_runs_own(three: Any, result: Result) -> None:
    ran = WORKLOAD.run(Trial(params={**SMALL, "marginal_ll_draws": 10}, data=three, seed=5))
    assert {name: result.metrics[name] for name in ran.metrics} == ran.metrics
    assert {name: result.facts[name] for name in ran.facts} == ran.facts


def test_same_evaluation_gives_the_same_bits(three: Any, result: Result) -> None:
    assert evaluate(three) == result


def test_draws_are_those_of_the_search_when_null(three: Any) -> None:
    found = evaluate(three, {"marginal_ll_draws": None, "imputation": None}, marginal_ll_draws=3)
    assert found.metrics["marginal_ll"].draws == found.metrics["marginal_ll_test"].draws == 3


def test_imputation_can_be_left_out(three: Any, result: Result) -> None:
    found = evaluate(three, {"imputation": None})
    left = set(result.metrics) - set(found.metrics)
    assert left == {"imputation_median", "imputation_mean"}
    assert found.metrics == {name: result.metrics[name] for name in found.metrics}
    assert "corruption_sha256" not in found.facts


# --- cells that no training saw


def test_test_cells_take_no_part_in_training(three: Any, result: Result) -> None:
    """With other counts in the test cells everything but their own scores stays the same, bit for bit."""
    counts = three.cells.counts.tolil()
    counts[three.split.test] = np.roll(counts[three.split.test].toarray(), 1, axis=1) + 1
    other = replace(three, cells=replace(three.cells, counts=sparse.csr_matrix(counts, dtype=np.float32)))
    found = evaluate(other, {"imputation": None})
    for name, metric in found.metrics.items():
        assert (metric == result.metrics[name]) == (not name.endswith("_test")), name


def test_sealed_test_part_is_refused(cells_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("nothing is trained"))
    with pytest.raises(ObjectiveError, match="the test part is sealed"):
        evaluate(prepare(cells_path, sealed=True))


def test_without_a_test_part_the_validation_part_stands_in_and_says_so(two: Any) -> None:
    found = evaluate(two)
    for name, own in (("marginal_ll_test", "marginal_ll"), ("elbo_test", "elbo_validation")):
        assert found.metrics[name] == found.metrics[own]
        assert found.metrics[name].split == "validation"
    assert found.facts["n_test"] == 0
    scored = found.metrics["imputation_mean"]
    assert scored.split == "all"
    assert scored.n == found.facts["n_scored_cells"] > len(two.split.validation)


def test_groups_of_the_test_part_have_means_of_their_own(cells_path: Path) -> None:
    prepared = prepare(cells_path, by="donor_id")
    found = evaluate(prepared, {"imputation": None})
    groups = found.facts["test_groups"]
    assert tuple(groups) == prepared.split.test_groups
    assert sum(number for number, _ in groups.values()) == len(prepared.split.test)
    mean = sum(number * value for number, value in groups.values()) / len(prepared.split.test)
    assert mean == pytest.approx(found.metrics["marginal_ll_test"].value, rel=1e-9)
    assert "marginal_ll_test_se_groups" in found.facts


# --- imputation


def test_mask_depends_on_the_seed_of_imputation_alone(three: Any, result: Result) -> None:
    other = WORKLOAD.evaluate(Trial(params={**SMALL, "n_hidden": 8, "max_epochs": 1}, data=three, seed=9), FEW)
    again = evaluate(three, {"imputation_seed": 1}, max_epochs=1)
    assert other.facts["corruption_sha256"] == result.facts["corruption_sha256"]
    assert other.facts["n_compared"] == result.facts["n_compared"]
    assert other.metrics["imputation_mean"].value != result.metrics["imputation_mean"].value
    assert again.facts["corruption_sha256"] != result.facts["corruption_sha256"]


def test_published_way_is_labelled(three: Any, result: Result) -> None:
    found = evaluate(three, {"imputation_protocol": "published"})
    split = three.split
    for name in ("imputation_median", "imputation_mean"):
        metric = found.metrics[name]
        assert metric.estimator is not None
        assert metric.estimator.startswith("2019: clean model trained on, cells without corrupted entries count 0")
        n_cells = len(split.train) + len(split.validation) + len(split.test)
        assert (metric.split, metric.draws, metric.n) == ("all", 1, n_cells)
    assert found.facts["corruption_sha256"] == result.facts["corruption_sha256"]
    assert found.facts["imputation"]["protocol"] == "published"
    assert found.metrics["marginal_ll_test"] == result.metrics["marginal_ll_test"]


def test_corruption_that_cannot_be_scored_costs_no_training(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("nothing is trained"))
    with pytest.raises(DataError, match="no held-out cell has a corrupted entry"):
        evaluate(three, {"imputation_rate": 1e-9})


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ({"model": "LinearSCVI", "reconstruction_loss": "nb"}, {"imputation": "binomial"}),
        ({"reconstruction_loss": "poisson", "use_observed_lib_size": False}, {"imputation": "binomial"}),
        ({"reconstruction_loss": "poisson"}, {"imputation_protocol": "published"}),
        ({"use_observed_lib_size": False}, {"imputation_protocol": "published"}),
    ],
)
def test_other_models_and_kinds_are_evaluated_too(three: Any, params: dict[str, Any], settings: dict[str, Any]) -> None:
    found = evaluate(three, {"imputation_rate": 0.1, **settings}, **params)
    assert all(np.isfinite(metric.value) for metric in found.metrics.values())


def test_labels_of_test_cells_are_scored_with_scanvi(cells_path: Path) -> None:
    prepared = prepare(cells_path, labels="cell_type")
    found = evaluate(prepared, model="SCANVI")
    assert set(found.metrics) == set(METRICS)
    assert found.metrics["accuracy_test"].n == len(prepared.split.test)
    with pytest.raises(CampaignError, match="not there for SCANVI"):
        evaluate(prepared, {"imputation_protocol": "published"}, model="SCANVI")


# --- settings


def test_defaults_are_right_and_complete() -> None:
    check_evaluation(evaluation_settings())
    assert evaluation_settings() == {
        "imputation": "uniform",
        "imputation_rate": 0.1,
        "imputation_draws": 25,
        "imputation_seed": 0,
        "imputation_protocol": "honest",
        "marginal_ll_draws": 1000,
    }
    assert set(WORKLOAD.metrics()) < set(evaluation_metrics())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imputation": "normal"}, "imputation must be one of uniform, binomial or null"),
        ({"imputation_rate": 0}, "imputation_rate must be a number > 0 and <= 1"),
        ({"imputation_draws": 10}, "imputation_draws must be a whole number >= 25"),
        ({"imputation_seed": -1}, "imputation_seed must be a whole number >= 0"),
        ({"imputation_seeds": 1}, "did you mean 'imputation_seed'"),
        ({"imputation_protocol": "2019"}, "imputation_protocol must be one of honest, published"),
    ],
)
def test_wrong_settings_are_said(three: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        check_evaluation(settings)
    with pytest.raises(CampaignError, match=message):
        evaluate_trial(Trial(params={}), three, {}, settings)


def test_settings_are_checked_without_torch() -> None:
    lines = "import sys", "from workers.workloads.scvi import evaluation", "evaluation.check_evaluation({})"
    code = "\n".join((*lines, "print('torch' in sys.modules)"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_every_metric_has_its_words() -> None:
    for name, spec in evaluation.METRICS.items():
        assert spec.split in ("train", "validation", "test"), name
        assert spec.description
