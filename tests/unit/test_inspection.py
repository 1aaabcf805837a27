"""What a campaign's space may hold is checked before any trial."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.campaign import load_campaign
from autotune.errors import CampaignError, SpaceError
from workers import inspection
from workers.inspection import check_values, inspect
from workers.workloads.cells.named import NAMED, Named
from workers.workloads.cells.simulate import simulate_cells
from workers.workloads.registry import get_workload

SCVI = get_workload("scvi")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"n_latent": {"choice": [-3, 5]}}, "space.n_latent: must be a whole number >= 1, not -3"),
        ({"n_latent": {"choice": [5, "ten"]}}, "space.n_latent: must be a whole number >= 1, not 'ten'"),
        ({"n_latent": {"choice": [5, 5.5]}}, "space.n_latent: must be a whole number >= 1, not 5.5"),
        ({"n_latent": {"choice": [5, {"float": [6, 7]}]}}, "space.n_latent: must be a whole number >= 1, not 6.0"),
        ({"n_latent": {"choice": [5, [{"int": [6, 6]}]]}}, "space.n_latent: must be a whole number >= 1, not [6]"),
        ({"n_latent": {"float": [5, 15]}}, "space.n_latent: must be a whole number >= 1, not 5.0"),
        ({"n_latent": {"float": [5, 15], "step": 1}}, "space.n_latent: must be a whole number >= 1, not 5.0"),
        ({"n_latent": {"log_float": [5, 15]}}, "space.n_latent: must be a whole number >= 1, not 5.0"),
        ({"n_latent": {"normal": [10, 1], "step": 1}}, "space.n_latent: must be a whole number >= 1, not 10.0"),
        ({"n_latent": {"int": [0, 15]}}, "space.n_latent: must be a whole number >= 1, not 0"),
        ({"n_latent": {"const": None}}, "space.n_latent: must be a whole number >= 1, not null"),
        ({"n_latent": {"nested": {"a": {"int": [1, 1]}}}}, "space.n_latent: must be a whole number >= 1, not {'a': 1}"),
        ({"batch_size": {"log_int": [1, 512]}}, "space.batch_size: must be a whole number >= 2, not 1"),
        ({"lr": {"float": [-1, 5]}}, "space.lr: must be a number > 0, not -1.0"),
        ({"lr": {"normal": [-1, 0.1]}}, "space.lr: must be a number > 0, not -1.0"),
        ({"lr": {"choice": ["1e-3", 0.01]}}, "not '1e-3' (text: write a number, without quotes)"),
        ({"dropout_rate": {"float": [0, 1]}}, "space.dropout_rate: must be a number >= 0 and < 1, not 1.0"),
        ({"reconstruction_loss": {"choice": ["zinb", "znb"]}}, "not 'znb'"),
    ],
)
def test_values_that_would_fail_each_trial_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError) as caught:
        check_values(SCVI, space)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "space",
    [
        SCVI.default_space(),
        {"n_latent": {"log_int": [1, 64], "step": 2}, "lr": {"log_normal": [-7, 1]}},
        {"n_latent": {"choice": [{"int": [2, 4]}, 10]}, "lr": {"choice": [1, 0.5]}},
        {"dropout_rate": {"float": [0, 1], "step": 0.3}, "lr": {"normal": [0.01, 0.001]}},
        {"lr": {"log_float": [1e-4, 1e-2]}, "n_epochs_kl_warmup": {"choice": [None, 10]}},
    ],
)
def test_values_that_are_right_pass(space: dict[str, Any]) -> None:
    check_values(SCVI, space)


def test_space_that_is_none_says_so() -> None:
    with pytest.raises(SpaceError, match="parameter 'lr'"):
        check_values(SCVI, {"lr": {"flaot": [0, 1]}})


def test_campaign_is_refused_before_its_data_are_read() -> None:
    campaign = {"objective": "scvi", "data": {"path": "no.h5ad"}, "space": {"n_latent": {"choice": [-3, "ten"]}}}
    with pytest.raises(CampaignError, match=r"space\.n_latent"):
        inspect(campaign)


def test_program_prints_the_error_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = {"objective": "scvi", "space": {"lr": {"float": [-1, 5]}}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(campaign)))
    inspection.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"error": "CampaignError", "message": "space.lr: must be a number > 0, not -1.0"}


def test_right_campaign_gives_facts(tmp_path: Path) -> None:
    simulate_cells(60, 20, 2).write_h5ad(tmp_path / "a.h5ad")
    campaign = {
        "objective": "baseline",
        "data": {"path": str(tmp_path / "a.h5ad"), "labels": "cell_type"},
        "space": {"C": {"log_float": [0.01, 1]}},
    }
    found = inspect(campaign)
    assert found["facts"]["settings"]["max_iter"] == 1000
    assert found["facts"]["data"]["n_cells"] == 60


def test_a_10x_folder_and_a_named_data_set_are_found_from_a_campaign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "10x"
    folder.mkdir()
    entries = "".join(f"{gene} {cell} {gene + cell}\n" for gene in (1, 2) for cell in range(1, 13))
    (folder / "matrix.mtx").write_text(f"%%MatrixMarket matrix coordinate integer general\n2 12 24\n{entries}")
    (folder / "genes.tsv").write_text("E1\tActb\nE2\tXist\n")
    (folder / "barcodes.tsv").write_text("".join(f"C{i}\n" for i in range(12)))
    file = tmp_path / "campaign.yaml"
    file.write_text("name: a\nobjective: scvi\ndata: {path: 10x}\nsplit: {test: 0.25}\nbudget: {max_trials: 1}\n")
    found = inspect(load_campaign(file).to_json())["facts"]
    assert (found["data"]["n_cells"], found["data"]["n_genes"], found["data"]["name"]) == (12, 2, "10x")
    assert (found["split"]["n_train"], found["split"]["n_test"]) == (6, 3)

    monkeypatch.setitem(NAMED, "cortex", Named(n_cells=60, top_variance=10, from_where="", gigabytes=0))
    (tmp_path / "home" / "named").mkdir(parents=True)
    simulate_cells(60, 20, 2).write_h5ad(tmp_path / "home" / "named" / "cortex.h5ad")
    campaign = load_campaign(file, ["data={dataset: cortex}"])
    assert campaign.data == {"dataset": "cortex"}
    found = inspect(campaign.to_json())["facts"]["data"]
    assert (found["name"], found["n_genes"], len(found["sha256"])) == ("cortex", 10, 64)
