"""The score that schedules compare trainings by after few epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.reporting import Trial
from workers.workloads.registry import get_workload
from workers.workloads.scvi.early import EARLY_METRIC, batch_elbo, held_out_batches
from workers.workloads.scvi.models import build_model
from workers.workloads.scvi.training import seed_all

pytestmark = pytest.mark.heavy

CONFIG = {"max_epochs": 3, "n_hidden": 8, "n_latent": 2, "marginal_ll_draws": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import anndata

    rng = np.random.default_rng(0)
    path: Path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    anndata.AnnData(X=rng.poisson(2.0, (150, 12)).astype(np.float32)).write_h5ad(path)
    return get_workload("scvi").prepare({"path": str(path)}, {"validation": 0.3, "seed": 0})


def curves(prepared: Any, **settings: Any) -> tuple[list[dict[str, float]], float]:
    seen: list[dict[str, float]] = []
    given = {"params": CONFIG, **settings}
    trial = Trial(seed=3, metric="marginal_ll", data=prepared, send=lambda _, m: seen.append(dict(m)), **given)
    result = get_workload("scvi").run(trial)
    return seen, result.metrics["marginal_ll"].value


def test_it_is_reported_where_something_goes_by_it_and_changes_nothing_else(prepared: Any) -> None:
    none = {"early_stopping": False, "lr_patience": None}
    plain, score = curves(prepared, params={**CONFIG, **none})
    scheduled, same = curves(prepared, params={**CONFIG, **none}, schedule_metric=EARLY_METRIC)
    for one in ({**none, "early_stopping": True}, {**none, "lr_patience": 25}):
        assert curves(prepared, params={**CONFIG, **one})[0] == scheduled
    assert same == score
    assert all(EARLY_METRIC not in one for one in plain)
    assert [{k: v for k, v in one.items() if k != EARLY_METRIC} for one in scheduled] == plain
    assert all(np.isfinite(one[EARLY_METRIC]) for one in scheduled)


def test_the_module_and_the_random_numbers_stay_as_they_were(prepared: Any) -> None:
    settings = {**get_workload("scvi").settings(), **get_workload("scvi").default_params(), **CONFIG}
    seed_all(0)
    model = build_model(prepared, settings)
    batches = held_out_batches(model, prepared.split.validation, "SCVI")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    model.module.eval()
    state = torch.get_rng_state()
    first, second = batch_elbo(model.module, batches), batch_elbo(model.module, batches)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert not model.module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_it_does_not_see_the_running_statistics_of_batch_normalisation(prepared: Any) -> None:
    settings = {**get_workload("scvi").settings(), **get_workload("scvi").default_params(), **CONFIG}
    seed_all(0)
    model = build_model(prepared, settings)
    batches = held_out_batches(model, prepared.split.validation, "SCVI")
    before = batch_elbo(model.module, batches)
    with torch.no_grad():
        for name, buffer in model.module.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1e6)
    assert batch_elbo(model.module, batches) == before


def test_it_is_of_held_out_cells_only(prepared: Any) -> None:
    settings = {**get_workload("scvi").settings(), **get_workload("scvi").default_params(), **CONFIG}
    model = build_model(prepared, settings)
    split = replace(prepared.split, train=prepared.split.train[:20])
    counts = torch.cat([b["X"] for b in held_out_batches(model, split.validation, "SCVI")])
    assert np.array_equal(counts.numpy(), prepared.cells.counts[prepared.split.validation].toarray())
    assert held_out_batches(model, split.validation, "SCANVI") == []
