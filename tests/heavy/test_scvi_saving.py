"""A saved model is one of plain scvi-tools, and the one that was scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from workers.reporting import Trial
from workers.workloads.registry import get_workload

pytestmark = pytest.mark.heavy

WORKLOAD = get_workload("scvi")
SMALL: dict[str, Any] = {
    "n_hidden": 16,
    "n_latent": 3,
    "max_epochs": 3,
    "lr": 0.01,
    "n_epochs_kl_warmup": None,
    "marginal_ll_draws": 10,
    "dispersion": "gene-batch",
}

PLAIN = """
import sys

class Refuse:  # nothing of the service may be needed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("autotune", "workers"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import anndata, numpy, scvi
folder, cells, kind, out = sys.argv[1:]
table = anndata.read_h5ad(cells)
model = getattr(scvi.model, kind).load(folder, adata=table, accelerator="cpu")
latent = model.get_latent_representation()
numpy.save(out, latent)
if kind == "SCANVI":
    assert set(model.predict()) <= set(table.obs["cell_type"])
"""


def saved(prepared: Any, folder: Path, **params: Any) -> tuple[Any, dict[str, Any]]:
    trial = Trial(params={**SMALL, **params}, data=prepared, seed=7, campaign="c", number=4, metric="marginal_ll")
    result = WORKLOAD.save(trial, folder)
    assert result == WORKLOAD.run(trial)  # bit for bit
    described: dict[str, Any] = json.loads((folder / "autotune.json").read_text())
    return result, described


@pytest.mark.parametrize(
    ("params", "layer"),
    [
        ({"model": "SCVI"}, None),
        ({"model": "SCVI", "use_observed_lib_size": False}, "raw"),
        ({"model": "LinearSCVI", "reconstruction_loss": "nb"}, None),
        ({"model": "SCANVI"}, "raw"),
    ],
)
def test_plain_scvi_tools_opens_what_was_saved(
    cells_path: Path, tmp_path: Path, params: dict[str, Any], layer: str | None
) -> None:
    table = anndata.read_h5ad(cells_path)[:, :30].copy()
    if layer:
        table.layers[layer] = table.X.copy()
        table.X = table.X * 0.5
    table.write_h5ad(tmp_path / "cells.h5ad")
    data = {"path": str(tmp_path / "cells.h5ad"), "batch": "donor_id", "labels": "cell_type", "layer": layer}
    prepared = WORKLOAD.prepare(data, {"validation": 0.3, "seed": 1})
    folder = tmp_path / "model"
    result, described = saved(prepared, folder, **params)
    assert described["class"] == f"scvi.model.{params['model']}"
    assert described["score"] == result.metrics["marginal_ll"].value
    assert (described["campaign"], described["number"], described["seed"]) == ("c", 4, 7)
    assert described["genes"] == list(table.var_names)
    assert described["split"]["sha256"] == prepared.split.sha256
    assert described["params"]["dispersion"] == "gene-batch"
    assert described["settings"]["patience"] == 50
    assert {"scvi-tools", "torch"} <= set(described["versions"])
    assert sorted(path.name for path in folder.iterdir()) == ["autotune.json", "model.pt"]

    command = [sys.executable, "-c", PLAIN, str(folder), data["path"], params["model"], str(tmp_path / "latent.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    latent = np.load(tmp_path / "latent.npy")
    assert latent.shape == (300, 3)
    np.testing.assert_allclose(latent, _latent(prepared, {**SMALL, **params}), atol=1e-5)


def _latent(prepared: Any, params: dict[str, Any]) -> Any:
    """Return the latent positions of all cells under the trial's best weights, trained here."""
    from workers.workloads.fields import defaults
    from workers.workloads.scvi.quiet import quiet
    from workers.workloads.scvi.space import FIELDS
    from workers.workloads.scvi.training import train_and_score

    config = {**defaults(FIELDS), **params}
    trained, _ = train_and_score(Trial(params=params, seed=7), prepared, config)
    with quiet():
        return trained.model.get_latent_representation()


def test_saving_over_an_older_model_replaces_it(prepared: Any, tmp_path: Path) -> None:
    saved(prepared, tmp_path)
    result, described = saved(prepared, tmp_path, n_latent=2)
    assert described["params"]["n_latent"] == 2
    assert described["metrics"]["marginal_ll"]["value"] == result.metrics["marginal_ll"].value
