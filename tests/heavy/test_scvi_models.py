"""SCVI, LinearSCVI and SCANVI: each with each loss, dispersion and library size, and what they must not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from autotune.errors import CampaignError, DataError
from workers.reporting import Result, Trial
from workers.workloads.fields import defaults
from workers.workloads.registry import get_workload
from workers.workloads.scvi.models import build_model, seen_labels
from workers.workloads.scvi.space import FIELDS

pytestmark = pytest.mark.heavy

SMALL: dict[str, Any] = {
    "n_hidden": 16,
    "n_latent": 3,
    "max_epochs": 2,
    "lr": 0.01,
    "n_epochs_kl_warmup": None,
    "marginal_ll_draws": 10,
    "batch_size": 64,
}
WORKLOAD = get_workload("scvi")
SPLIT = {"validation": 0.3, "seed": 1}


@pytest.fixture(scope="module")
def labelled(cells_path: Path) -> Any:
    """Cells with labels and batches."""
    columns = {"labels": "cell_type", "batch": "donor_id"}
    return WORKLOAD.prepare({"path": str(cells_path), "genes": {"top_variance": 40}, **columns}, SPLIT)


def run(prepared: Any, **params: Any) -> Result:
    return WORKLOAD.run(Trial(params={**SMALL, **params}, data=prepared, seed=5))


def relabelled(prepared: Any, labels: Any) -> Any:
    return replace(prepared, cells=replace(prepared.cells, obs={**prepared.cells.obs, "cell_type": labels}))


def model_of(prepared: Any, **params: Any) -> Any:
    return build_model(prepared, {**defaults(FIELDS), **SMALL, **params})


@pytest.mark.parametrize("model", ["SCVI", "LinearSCVI", "SCANVI"])
@pytest.mark.parametrize("loss", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("observed", [True, False])
def test_each_model_with_each_loss(labelled: Any, model: str, loss: str, observed: bool) -> None:
    result = run(labelled, model=model, reconstruction_loss=loss, use_observed_lib_size=observed)
    expected = set(WORKLOAD.metrics()) - ({"accuracy_validation"} if model != "SCANVI" else set())
    assert set(result.metrics) == expected
    assert all(np.isfinite(metric.value) for metric in result.metrics.values())
    assert result.metrics["marginal_ll"].value < result.metrics["elbo_validation"].value
    hidden = 2 * 40 * 16 + 2 * 16 * 3
    assert result.facts["n_params"] == (2 * 40 * 3 if model == "LinearSCVI" else hidden)
    assert result.facts["n_weights"] > result.facts["n_params"]


@pytest.mark.parametrize("model", ["SCVI", "LinearSCVI", "SCANVI"])
@pytest.mark.parametrize("dispersion", ["gene-batch", "gene-cell"])
def test_each_model_with_each_dispersion(labelled: Any, model: str, dispersion: str) -> None:
    if (model, dispersion) == ("LinearSCVI", "gene-cell"):
        with pytest.raises(CampaignError, match="LinearSCVI has no dispersion gene-cell"):
            run(labelled, model=model, dispersion=dispersion)
        return
    assert np.isfinite(run(labelled, model=model, dispersion=dispersion).metrics["marginal_ll"].value)


@pytest.mark.parametrize("model", ["LinearSCVI", "SCANVI"])
def test_same_trial_gives_the_same_bits(labelled: Any, model: str) -> None:
    assert run(labelled, model=model) == run(labelled, model=model)


def test_linear_model_has_a_linear_decoder_and_a_nonlinear_encoder(labelled: Any) -> None:
    module = model_of(labelled, model="LinearSCVI", n_layers=2).module.eval()
    torch.manual_seed(0)
    z = torch.randn(2, 3)
    batch = torch.zeros(3, 1, dtype=torch.long)

    def logits(points: torch.Tensor) -> torch.Tensor:
        scale = module.decoder("gene", points, torch.zeros(len(points), 1), batch[: len(points)])[0]
        return torch.log(scale) - torch.log(scale).mean(dim=-1, keepdim=True)

    middle = logits(z.mean(dim=0, keepdim=True))
    torch.testing.assert_close(middle, logits(z).mean(dim=0, keepdim=True), rtol=0, atol=1e-5)
    assert len(module.z_encoder.encoder.fc_layers) == 2


def test_scanvi_learns_nothing_from_labels_of_held_out_cells(labelled: Any) -> None:
    """Other labels on held-out cells: the same model, bit for bit; other labels on training cells: another."""
    own = labelled.cells.obs["cell_type"]
    first = run(labelled, model="SCANVI")
    for part, same in (("validation", True), ("train", False)):
        changed = own.copy()
        positions = getattr(labelled.split, part)
        changed[positions] = np.roll(own[positions], 7)
        again = run(relabelled(labelled, changed), model="SCANVI")
        scores = [{k: v for k, v in r.metrics.items() if k != "accuracy_validation"} for r in (first, again)]
        assert (scores[0] == scores[1]) is same, part


def test_scanvi_learns_to_label(labelled: Any) -> None:
    result = run(labelled, model="SCANVI", max_epochs=15)
    accuracy = result.metrics["accuracy_validation"]
    values, numbers = np.unique(labelled.cells.obs["cell_type"][labelled.split.validation], return_counts=True)
    assert accuracy.value > numbers.max() / numbers.sum() + 0.1
    assert accuracy.n == len(labelled.split.validation)
    assert (result.facts["n_labels"], result.facts["n_labelled"]) == (len(values), len(labelled.split.train))


def test_label_of_held_out_cells_alone_is_not_known_to_the_model_and_counts_as_wrong(labelled: Any) -> None:
    own = labelled.cells.obs["cell_type"].astype("<U20")
    own[labelled.split.validation] = "only held out"
    result = run(relabelled(labelled, own), model="SCANVI")
    assert result.facts["n_labels"] == 3
    assert result.metrics["accuracy_validation"].value == 0


def test_cells_of_the_unlabelled_category_train_without_a_label_and_are_not_scored(labelled: Any) -> None:
    own = labelled.cells.obs["cell_type"]
    result = run(labelled, model="SCANVI", unlabeled_category="type_0", batch_size=32)
    train, held_out = own[labelled.split.train], own[labelled.split.validation]
    assert (result.facts["n_labels"], result.facts["n_labelled"]) == (2, int((train != "type_0").sum()))
    assert result.metrics["accuracy_validation"].n == int((held_out != "type_0").sum())


def test_last_labelled_batch_of_one_cell_is_skipped(labelled: Any) -> None:
    own = labelled.cells.obs["cell_type"].astype("<U20")
    train = labelled.split.train
    known = np.concatenate([train[own[train] == name][:11] for name in ("type_0", "type_1", "type_2")])
    assert len(known) == 33
    masked = np.full_like(own, "Unknown")
    masked[known] = own[known]
    result = run(relabelled(labelled, masked), model="SCANVI", batch_size=32)
    assert result.facts["n_labelled"] == 33
    assert "accuracy_validation" not in result.metrics  # no held-out cell has a label


def test_scanvi_without_labels_is_refused(prepared: Any) -> None:
    with pytest.raises(CampaignError, match=r"SCANVI needs labels: set data\.labels"):
        run(prepared, model="SCANVI")


@pytest.mark.parametrize("kept", [{"type_0": 20}, {"type_0": 1, "type_1": 1}])
def test_scanvi_with_too_few_labels_is_refused(labelled: Any, kept: Mapping[str, int]) -> None:
    own, train = labelled.cells.obs["cell_type"], labelled.split.train
    masked = np.full(len(own), "Unknown", dtype="<U20")
    for name, number in kept.items():
        masked[train[own[train] == name][:number]] = name
    with pytest.raises(DataError, match="SCANVI needs 3 labelled training cells of 2 labels or more"):
        run(relabelled(labelled, masked), model="SCANVI")


def test_only_training_cells_have_labels(labelled: Any) -> None:
    labels = seen_labels(labelled, "a long name of the unlabelled")
    train = labelled.split.train
    assert (labels[train] == labelled.cells.obs["cell_type"][train]).all()
    assert set(np.delete(labels, train)) == {"a long name of the unlabelled"}


def test_model_is_set_up_with_the_names_of_the_user(tmp_path: Path, cells_path: Path) -> None:
    table = anndata.read_h5ad(cells_path)
    table.layers["raw"] = table.X.copy()
    table.X = table.X * 0.5
    table.write_h5ad(tmp_path / "cells.h5ad")
    data = {"path": str(tmp_path / "cells.h5ad"), "layer": "raw", "batch": "donor_id", "labels": "cell_type"}
    prepared = WORKLOAD.prepare(data, SPLIT)
    model = model_of(prepared, model="SCANVI")
    arguments = model.adata_manager.registry["setup_args"]
    assert arguments["layer"] == "raw"
    assert (arguments["batch_key"], arguments["labels_key"]) == ("donor_id", "cell_type")
    assert list(model.adata.var_names) == list(table.var_names)
    assert np.shares_memory(model.adata.layers["raw"].data, prepared.cells.counts.data)
    assert np.isfinite(run(prepared, model="SCANVI").metrics["marginal_ll"].value)


@pytest.mark.parametrize("model", ["SCVI", "LinearSCVI"])
def test_batch_of_one_level_changes_nothing(tmp_path: Path, cells_path: Path, model: str) -> None:
    table = anndata.read_h5ad(cells_path)
    table.obs["run"] = "the only one"
    table.write_h5ad(tmp_path / "cells.h5ad")
    data = {"path": str(tmp_path / "cells.h5ad"), "genes": {"top_variance": 40}}
    with_batch = WORKLOAD.prepare({**data, "batch": "run"}, SPLIT)
    for library in (True, False):
        results = [run(cells, model=model, use_observed_lib_size=library) for cells in (with_batch, prepared_of(data))]
        assert results[0] == results[1]
    assert any("batch run has one value" in text for text in warnings_of({**data, "batch": "run"}))


def prepared_of(data: Mapping[str, Any]) -> Any:
    return WORKLOAD.prepare(data, SPLIT)


def warnings_of(data: Mapping[str, Any]) -> list[str]:
    found: list[str] = WORKLOAD.inspect(data, SPLIT)["data"]["warnings"]
    return found


@pytest.mark.parametrize("model", ["SCVI", "LinearSCVI", "SCANVI"])
def test_constant_genes_and_empty_cells_train(tmp_path: Path, cells_path: Path, model: str) -> None:
    table = anndata.read_h5ad(cells_path)
    counts = table.X.toarray()
    counts[:, :3] = 0
    counts[5:9] = 0
    table.X = counts
    table.write_h5ad(tmp_path / "zeros.h5ad")
    data = {"path": str(tmp_path / "zeros.h5ad"), "labels": "cell_type"}
    prepared = prepared_of(data)
    assert not set(range(5, 9)) & set(np.concatenate([prepared.split.train, prepared.split.validation]))
    for library in (True, False):
        result = run(prepared, model=model, use_observed_lib_size=library)
        assert all(np.isfinite(metric.value) for metric in result.metrics.values())
    assert any("3 of 60 genes have the same count in every cell" in text for text in warnings_of(data))


def test_gene_with_one_count_other_than_zero_is_constant_too(tmp_path: Path, cells_path: Path) -> None:
    table = anndata.read_h5ad(cells_path)
    counts = table.X.toarray()
    counts[:, 4] = 2
    counts[:, 5] = 1
    counts[0, 5] = 3
    table.X = counts
    table.write_h5ad(tmp_path / "twos.h5ad")
    data = {"path": str(tmp_path / "twos.h5ad")}
    assert any("1 of 60 genes have the same count" in text for text in warnings_of(data))
    assert np.isfinite(run(prepared_of(data)).metrics["marginal_ll"].value)


def test_rare_labels_and_batches_are_told(tmp_path: Path, cells_path: Path) -> None:
    table = anndata.read_h5ad(cells_path)
    labels = table.obs["cell_type"].astype(str).to_numpy()
    labels[:2] = "rare"
    table.obs["cell_type"] = table.obs["run"] = labels
    table.write_h5ad(tmp_path / "rare.h5ad")
    data = {"path": str(tmp_path / "rare.h5ad"), "labels": "cell_type", "batch": "run"}
    for role in ("labels cell_type", "batch run"):
        assert any(f"1 values of {role} have fewer than 3 training cells: rare" in text for text in warnings_of(data))
    assert np.isfinite(run(prepared_of(data), model="SCANVI").metrics["marginal_ll"].value)
