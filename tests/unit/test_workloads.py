"""What the service sees of workloads: names, spaces, checks; all without model libraries."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from math import prod
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import CampaignError, ObjectiveError
from workers.reporting import Trial
from workers.workloads import registry
from workers.workloads.registry import get_workload, workload_names
from workers.workloads.scvi import ScviWorkload
from workers.workloads.scvi.best import BestEpoch
from workers.workloads.scvi.n_params import n_params

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("AUTOTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
TABLE = DATA / "reference" / "scvi_autotune_2019_best_worst.csv"
BUILT_IN = ("baseline", "scvi")


def test_workloads_are_light_to_import() -> None:
    code = (
        "import sys, json; from workers.workloads.registry import get_workload;"
        "[get_workload(n).default_space() for n in ('scvi', 'baseline')];"
        "print(json.dumps([m for m in ('torch', 'anndata', 'scipy', 'sklearn', 'scvi', 'pandas') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_workload_describes_itself(name: str) -> None:
    workload = get_workload(name)
    assert workload.name == name
    assert workload.default_metric in workload.metrics()
    assert all(spec.mode in ("min", "max") for spec in workload.metrics().values())
    space = workload.default_space()
    workload.check_space(space)
    for parameter, kind in space.items():
        values = next(iter(kind.values()))
        for value in values:
            workload.check_fixed({parameter: value})
    workload.check_fixed(workload.settings())
    json.dumps([space, workload.settings()], allow_nan=False)


def test_default_space_of_scvi_is_the_published_one() -> None:
    space = get_workload("scvi").default_space()
    sizes = [
        len(kind["choice"]) if "choice" in kind else kind["int"][1] - kind["int"][0] + 1 for kind in space.values()
    ]
    assert prod(sizes) == 8250


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"n_laten": 5}, "no parameter or setting 'n_laten'; did you mean 'n_latent'"),
        ({"max_epochs": 0}, "max_epochs must be a whole number >= 1, not 0"),
        ({"max_epochs": 1.5}, "whole number"),
        ({"max_epochs": True}, "whole number"),
        ({"max_epochs": None}, "not null"),
        ({"lr": "1e-3"}, r"> 0, not '1e-3' \(text: write a number"),
        ({"lr": float("nan")}, "must be a number > 0"),
        ({"lr": 0}, "must be a number > 0"),
        ({"dropout_rate": 1.0}, "< 1"),
        ({"reconstruction_loss": "znb"}, "must be one of zinb, nb, poisson, not 'znb'"),
        ({"reconstruction_loss": ["nb"]}, "must be one of zinb, nb"),
        ({"model": "scVI"}, "must be one of SCVI, LinearSCVI, SCANVI, not 'scVI'"),
        ({"dispersion": "gene-label"}, "must be one of gene, gene-batch, gene-cell"),
        ({"unlabeled_category": 3}, "unlabeled_category must be text, not 3"),
        ({"unlabeled_category": ""}, "must be text"),
        ({"classification_ratio": -1}, ">= 0"),
        ({"early_stopping": 1}, "true or false"),
    ],
)
def test_wrong_fixed_values(fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        get_workload("scvi").check_fixed(fixed)


def test_null_is_allowed_where_it_means_none() -> None:
    get_workload("scvi").check_fixed({"n_epochs_kl_warmup": None, "lr_patience": None})


@pytest.mark.parametrize(
    ("values", "data", "metrics", "message"),
    [
        ({"model": ["SCVI", "SCANVI"]}, {}, [], r"model SCANVI needs labels: set data\.labels"),
        ({"model": ["SCANVI"]}, {"labels": "x", "batch": "x"}, [], "'x' both as data.labels and as data.batch"),
        ({"model": ["SCVI", "LinearSCVI"], "dispersion": ["gene", "gene-cell"]}, {}, [], "no dispersion gene-cell"),
        ({"model": ["SCVI"]}, {}, ["accuracy_validation"], "metric of model SCANVI alone"),
        ({"model": ["SCVI", "SCANVI"]}, {"labels": "x"}, ["accuracy_validation"], "metric of model SCANVI alone"),
        ({}, {}, ["accuracy_validation"], "metric of model SCANVI alone"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    values: dict[str, list[str]], data: dict[str, str], metrics: list[str], message: str
) -> None:
    with pytest.raises(CampaignError, match=message) as refused:
        ScviWorkload().check_together(values, data, metrics)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "data", "metrics"),
    [
        ({}, {}, ["marginal_ll"]),
        ({"model": ["SCVI"], "dispersion": ["gene-cell"]}, {"labels": "x", "batch": "x"}, []),
        ({"model": ["SCANVI"], "dispersion": ["gene-cell"]}, {"labels": "x", "batch": "y"}, ["accuracy_validation"]),
        ({"model": ["LinearSCVI"], "dispersion": ["gene-batch"]}, {}, ["reconstruction_validation"]),
    ],
)
def test_what_goes_together_is_taken(values: dict[str, list[str]], data: dict[str, str], metrics: list[str]) -> None:
    ScviWorkload().check_together(values, data, metrics)


def test_learning_rate_falls_by_default_as_in_the_published_study() -> None:
    settings = get_workload("scvi").settings()
    assert (settings["patience"], settings["lr_patience"], settings["lr_factor"]) == (50, 25, 0.2)
    assert settings["model"] == "SCVI"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["n_latent", "n_hiden"], "never reads a parameter 'n_hiden'; did you mean 'n_hidden'"),
        (["max_epochs"], "max_epochs is a setting.*move it from space to fixed"),
        (["seed"], "never reads"),
    ],
)
def test_wrong_space_names(names: list[str], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        get_workload("scvi").check_space(names)


def test_unknown_workload_names_the_nearest() -> None:
    with pytest.raises(ObjectiveError, match="no workload 'scvy'; did you mean 'scvi'"):
        get_workload("scvy")
    assert set(BUILT_IN) <= set(workload_names())


class _NotAWorkload:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [("no_such_module_at_all:X", "cannot be imported"), (f"{__name__}:_NotAWorkload", "is not a workload")],
)
def test_broken_plugin_says_so(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    point = EntryPoint(name="mine", value=value, group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    with pytest.raises(ObjectiveError, match=message):
        get_workload("mine")


def test_plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name="mine", value="workers.workloads.baseline:BaselineWorkload", group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert "mine" in workload_names()
    assert get_workload("mine").default_metric == "macro_f1"


@pytest.mark.parametrize("name", BUILT_IN)
def test_trial_without_prepared_cells_is_refused(name: str) -> None:
    with pytest.raises(ObjectiveError, match="no prepared cells"):
        get_workload(name).run(Trial(params={}))


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not TABLE.is_file(), reason="published tables are not here (AUTOTUNE_TEST_DATA)")
def test_n_params_reproduces_all_published_rows() -> None:
    genes = {"cortex": 558, "pbmc": 3346, "brain_large": 720}
    table = rows()
    assert len(table) == 60
    for row in table:
        assert count(row, genes[row["dataset"]]) == int(row["n_params"]), row


@pytest.mark.skipif(not TABLE.is_file(), reason="published tables are not here (AUTOTUNE_TEST_DATA)")
def test_the_gene_number_in_the_text_fits_no_published_row() -> None:
    assert not any(count(row, 3446) == int(row["n_params"]) for row in rows() if row["dataset"] == "pbmc")


def count(row: dict[str, str], genes: int) -> int:
    shape = {key: int(row[key]) for key in ("n_layers", "n_hidden", "n_latent")}
    return n_params(n_genes=genes, **shape)


@pytest.mark.parametrize(
    ("genes", "layers", "hidden", "latent", "expected"),
    [
        (558, 1, 256, 10, 290816),
        (558, 1, 128, 12, 145920),
        (558, 1, 128, 10, 145408),
        (558, 5, 64, 7, 105088),
        (558, 2, 256, 9, 421376),
        (558, 3, 128, 12, 211456),
        (3346, 1, 256, 14, 1720320),
        (3346, 3, 256, 14, 1982464),
        (3346, 1, 64, 5, 428928),
        (720, 5, 256, 14, 900096),
        (720, 2, 64, 9, 101504),
        (720, 5, 64, 15, 126848),
        (720, 0, 64, 10, 14400),
        (558, 0, 128, 10, 11160),
    ],
)
def test_n_params_known_answers(genes: int, layers: int, hidden: int, latent: int, expected: int) -> None:
    assert n_params(n_genes=genes, n_layers=layers, n_hidden=hidden, n_latent=latent) == expected


@pytest.mark.parametrize(
    ("patience", "values", "best", "stopped_after"),
    [
        (2, [5, 4, 3], 3, None),
        (2, [5, 4, 4, 4], 2, 4),
        (1, [5, 5], 1, 2),
        (3, [5, 6, 4, 6, 6, 6], 3, 6),
        (None, [5, 6, 6, 6, 6], 1, None),
        (2, [float("nan"), float("nan")], 0, 2),
    ],
)
def test_best_epoch(patience: int | None, values: list[float], best: int, stopped_after: int | None) -> None:
    tracker, stopped = BestEpoch(patience=patience), None
    for epoch, value in enumerate(values, start=1):
        tracker.update(epoch, value)
        if tracker.should_stop:
            stopped = epoch
            break
    assert tracker.epoch == best
    assert stopped == stopped_after


def test_progress_of_either_score_is_progress() -> None:
    """A lucky epoch (3.0) must not hide what the next ones learn; only the score itself says which weights are kept."""
    tracker, waited = BestEpoch(patience=2), []
    for epoch, (value, steady) in enumerate([(3, 9), (5, 8), (5, 7), (5, 7), (2, 7), (5, 7), (5, 7)], start=1):
        assert tracker.update(epoch, value, steady) == (epoch in (1, 5))
        waited.append(tracker.waited)
    assert waited == [0, 0, 0, 1, 0, 1, 2]
    assert (tracker.epoch, tracker.value, tracker.steady, tracker.progressed) == (5, 2, 7, 4)
    assert tracker.should_stop
    assert not BestEpoch(patience=2).update(1, float("nan"), 1.0)
