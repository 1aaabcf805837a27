"""Logistic regression on labelled cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from autotune.errors import CampaignError, DataError, ObjectiveError
from workers.reporting import Trial, TrialStopped
from workers.workloads.baseline.features import log_normalised
from workers.workloads.baseline.scores import bootstrap_se, macro_f1
from workers.workloads.baseline.training import standardised
from workers.workloads.cells.simulate import simulate_cells
from workers.workloads.registry import get_workload

WORKLOAD = get_workload("baseline")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate_cells(300, 80, 3, seed=1).write_h5ad(made)
    return made


@pytest.fixture(scope="module")
def prepared(path: Path) -> Any:
    return WORKLOAD.prepare({"path": str(path), "labels": "cell_type"}, {"by": "donor_id"})


def test_types_that_differ_are_told_apart(prepared: Any) -> None:
    sent: list[tuple[int, Mapping[str, float]]] = []
    trial = Trial(
        params={"C": 0.1, "n_genes": 50}, data=prepared, send=lambda step, values: sent.append((step, values))
    )
    result = WORKLOAD.run(trial)
    score = result.metrics["macro_f1"]
    assert score.value > 0.8
    assert score.se is not None
    assert 0 <= score.se < 0.1
    assert (score.split, score.n) == ("validation", len(prepared.prepared.split.validation))
    assert score.draws is None
    assert score.estimator == "mean F1 of 3 classes (se by 200 bootstrap draws)"
    assert result.facts["n_genes_used"] == 50
    assert result.facts["converged"] is True
    assert sent == [(1, {"macro_f1": score.value, "accuracy": result.metrics["accuracy"].value})]


def test_same_trial_same_result(prepared: Any) -> None:
    trial = Trial(params={"class_weight": "balanced"}, data=prepared, seed=7)
    assert WORKLOAD.run(trial) == WORKLOAD.run(trial)


def test_more_genes_than_there_are_means_all(prepared: Any) -> None:
    assert WORKLOAD.run(Trial(params={"n_genes": 500}, data=prepared)).facts["n_genes_used"] == 80


def test_too_few_iterations_is_a_fact_not_a_warning(prepared: Any) -> None:
    facts = WORKLOAD.run(Trial(params={"C": 100.0, "max_iter": 2}, data=prepared)).facts
    assert facts["converged"] is False
    assert facts["n_iter"] == 2


def test_stop_passes_through(prepared: Any) -> None:
    def stop(step: int, values: Mapping[str, float]) -> None:
        raise TrialStopped

    with pytest.raises(TrialStopped):
        WORKLOAD.run(Trial(params={}, data=prepared, send=stop))


def test_unknown_parameter_is_refused_at_run_too(prepared: Any) -> None:
    with pytest.raises(CampaignError, match="'gamma'"):
        WORKLOAD.run(Trial(params={"gamma": 1}, data=prepared))


def test_fold_that_does_not_exist_is_refused(prepared: Any) -> None:
    with pytest.raises(ObjectiveError, match="fold 1 does not exist"):
        WORKLOAD.run(Trial(params={}, data=prepared, fold=1))


def test_labels_are_asked_for_with_the_names_of_columns(path: Path) -> None:
    with pytest.raises(CampaignError, match=r"set data\.labels.*\(cell_type, donor_id\)"):
        WORKLOAD.inspect({"path": str(path)}, {})


def test_one_label_in_training_is_refused(tmp_path: Path) -> None:
    simulate_cells(50, 20, 1).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="two or more labels"):
        WORKLOAD.inspect({"path": str(tmp_path / "a.h5ad"), "labels": "cell_type"}, {})


def test_labels_missing_from_a_part_are_said(tmp_path: Path) -> None:
    cells = simulate_cells(90, 20, 3)
    cells.obs["donor_id"] = [
        "a" if kind == "type_0" else "b" if kind == "type_1" else "c" for kind in cells.obs.cell_type
    ]
    cells.write_h5ad(tmp_path / "a.h5ad")
    data = {"path": str(tmp_path / "a.h5ad"), "labels": "cell_type"}
    found = WORKLOAD.inspect(data, {"by": "donor_id", "validation": 0.3})
    assert len(found["data"]["labels"]["not_in_train"]) == 1
    assert len(found["data"]["labels"]["not_in_validation"]) == 2
    assert sum("F1 = 0" in text for text in found["data"]["warnings"]) == 2


def test_macro_f1_is_sklearns_over_all_classes() -> None:
    rng = np.random.RandomState(0)
    for _ in range(20):
        truth, predicted = rng.randint(0, 4, 30), rng.randint(0, 5, 30)
        expected = f1_score(truth, predicted, average="macro", labels=range(6), zero_division=0)
        assert macro_f1(truth, predicted, 6) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_error_of_accuracy_is_the_binomial_one() -> None:
    truth = np.zeros(400, dtype=int)
    predicted = np.r_[np.zeros(320, dtype=int), np.ones(80, dtype=int)]
    _, se = bootstrap_se(truth, predicted, 2, draws=2000, seed=0)
    assert se == pytest.approx(np.sqrt(0.8 * 0.2 / 400), rel=0.1)


def test_only_training_cells_choose_and_scale_genes(prepared: Any) -> None:
    train = prepared.expression[prepared.prepared.split.train].toarray().astype(np.float64)
    assert list(prepared.gene_order[:10]) == list(np.argsort(-train.var(axis=0), kind="stable")[:10])
    scaled, other = standardised(np.float32([[0, 1], [2, 1]]), np.float32([[4, 3]]))
    assert scaled.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[3, 2]]


def test_log_normalised_has_ten_thousand_counts_per_cell(prepared: Any) -> None:
    expression = log_normalised(prepared.prepared.cells.counts)
    np.testing.assert_allclose(np.expm1(expression.toarray()).sum(axis=1), 1e4, rtol=1e-4)
