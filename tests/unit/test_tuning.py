"""What of an AnnData goes into a campaign, and what is said of one that cannot be used. No training, no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from autotune.errors import DataError, InputError
from workers.tuning import Table, check_unique, table_of
from workers.workloads.cells import prepare_cells
from workers.workloads.cells.simulate import simulate_cells

NO_KEYS: dict[str, str | None] = {"batch_key": None, "labels_key": None}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def cells() -> Any:
    """120 simulated cells of 4 donors, with an embedding that is nobody's business."""
    table = simulate_cells(120, 30, 3, seed=5)
    table.obsm["X_pca"] = np.ones((120, 50))
    table.obs["run"] = np.arange(120) % 3
    return table


def _table(adata: Any, layer: str | None = None, **keys: str) -> Table:
    return table_of(adata, layer=layer, keys={**NO_KEYS, **keys})


def test_only_counts_and_the_needed_columns_are_written(cells: Any) -> None:
    table = _table(cells, batch_key="run", labels_key="cell_type")
    table.write()
    written = anndata.read_h5ad(table.path)
    assert (written.X != cells.X).nnz == 0
    assert list(written.obs.columns) == ["donor_id", "run", "cell_type"]
    assert list(written.obs["run"]) == [str(i % 3) for i in range(120)]
    assert list(written.obs["cell_type"]) == list(cells.obs["cell_type"])
    assert list(written.obs_names) == list(cells.obs_names)
    assert list(written.var_names) == list(cells.var_names)
    assert (len(written.obsm), len(written.layers)) == (0, 0)
    assert "donor_0" not in set(written.obs["donor_id"]), "who the donors are is not needed"
    assert [path.name for path in table.path.parent.iterdir()] == [table.path.name]


def test_workloads_read_it_and_still_warn_of_divided_donors(cells: Any) -> None:
    cells.layers["raw"] = cells.X.copy()
    cells.X.data[:] = np.log1p(cells.X.data)
    table = _table(cells, layer="raw", batch_key="run")
    table.write()
    prepared = prepare_cells({"path": str(table.path), "layer": "raw", "batch": "run"}, {"seed": 0})
    assert (prepared.cells.counts != cells.layers["raw"]).nnz == 0
    assert set(prepared.cells.obs["run"]) == {"0", "1", "2"}
    assert prepared.cells.simulated
    assert set(prepared.cells.people) == {"donor_id"}
    np.testing.assert_array_equal(prepared.cells.people["donor_id"], cells.obs["donor_id"].factorize()[0])


def test_the_same_content_is_the_same_file_however_it_is_stored(cells: Any) -> None:
    first = _table(cells).path
    dense = anndata.AnnData(X=cells.X.toarray(), obs=cells.obs, var=cells.var, uns=cells.uns)
    columns = anndata.AnnData(X=cells.X.tocsc().astype(int), obs=cells.obs, var=cells.var, uns=cells.uns)
    cells.obs["cluster"] = "found later"
    cells.obsm.clear()
    assert {_table(dense).path, _table(columns).path, _table(cells).path} == {first}


def _another_count(table: Any) -> None:
    table.X[0, 0] += 1


def _another_order(table: Any) -> None:
    table.X = table.X[::-1].copy()


def _another_gene(table: Any) -> None:
    table.var_names = ["x", *table.var_names[1:]]


def _another_cell(table: Any) -> None:
    table.obs_names = ["x", *table.obs_names[1:]]


def _another_batch(table: Any) -> None:
    table.obs["run"] = np.roll(table.obs["run"], 1)


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
@pytest.mark.parametrize("change", [_another_count, _another_order, _another_gene, _another_cell, _another_batch])
def test_other_content_is_another_file(cells: Any, change: Callable[[Any], None]) -> None:
    before = _table(cells, batch_key="run").path
    change(cells)
    assert _table(cells, batch_key="run").path != before


def test_a_name_that_moves_from_one_column_to_another_is_another_file(cells: Any) -> None:
    assert _table(cells, batch_key="run").path != _table(cells).path
    cells.layers["raw"] = cells.X
    assert _table(cells, layer="raw").path != _table(cells).path


def test_the_users_table_is_left_alone(cells: Any) -> None:
    unsorted = sparse.csr_matrix(
        (np.array([2.0, 0.0, 1.0], dtype=np.float32), np.array([1, 0, 0]), np.array([0, 3])), shape=(1, 2)
    )
    table = anndata.AnnData(X=unsorted, obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["x", "y"]))
    before = table.X.data.copy(), table.X.indices.copy()
    assert _table(table).counts.toarray().tolist() == [[1.0, 2.0]]
    np.testing.assert_array_equal(table.X.data, before[0])
    np.testing.assert_array_equal(table.X.indices, before[1])


def test_a_file_that_is_there_is_not_written_again(cells: Any) -> None:
    table = _table(cells)
    table.write()
    stamp = table.path.stat().st_mtime_ns
    _table(cells).write()
    assert table.path.stat().st_mtime_ns == stamp


def test_a_home_that_cannot_be_written_is_one_line(cells: Any, tmp_path: Path) -> None:
    table = _table(cells)
    (tmp_path / "home" / "cells").touch()
    with pytest.raises(DataError, match="cannot write the cells to"):
        table.write()


def _normalised(table: Any) -> None:
    table.X.data = np.log1p(table.X.data)


def _normalised_beside_counts(table: Any) -> None:
    table.layers["counts"] = table.X.copy()
    _normalised(table)


def _negative(table: Any) -> None:
    table.X.data[3] = -1


def _infinite(table: Any) -> None:
    table.X.data[3] = np.inf


WRONG: list[tuple[Callable[[Any], None], dict[str, Any], str]] = [
    (_normalised, {}, r"adata\.X holds values that are no counts \(for example [0-9.]+\); scVI needs raw counts$"),
    (_normalised_beside_counts, {}, r"layer named counts: pass layer='counts'"),
    (_negative, {}, r"no counts \(for example -1\)"),
    (_infinite, {}, r"no counts \(for example inf\)"),
    (_normalised_beside_counts, {"layer": "count"}, r"no layer 'count'; did you mean 'counts'\?"),
    (lambda _: None, {"layer": "counts"}, r"no layer 'counts'; it has no layers"),
    (lambda _: None, {"batch_key": "donor"}, r"batch_key: adata\.obs has no column 'donor'; did you mean 'donor_id'\?"),
    (lambda _: None, {"labels_key": ["cell_type"]}, r"labels_key must name a column of adata\.obs"),
]


@pytest.mark.parametrize(("change", "arguments", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_wrong_cells(cells: Any, change: Callable[[Any], None], arguments: dict[str, Any], message: str) -> None:
    change(cells)
    with pytest.raises(InputError, match=message):
        _table(cells, **arguments)


def test_missing_values_of_a_batch(cells: Any) -> None:
    cells.obs["half"] = [None if i % 2 else "a" for i in range(120)]
    with pytest.raises(DataError, match=r"batch_key: 60 cells have no value in adata\.obs\['half'\]"):
        _table(cells, batch_key="half")


def test_what_is_no_table_of_cells(cells: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes an AnnData, not csr_matrix"):
        _table(sparse.csr_matrix(cells.X))
    with pytest.raises(DataError, match=r"adata\.X holds nothing"):
        _table(anndata.AnnData(obs=cells.obs))
    with pytest.raises(DataError, match="0 cells x 30 genes"):
        _table(cells[:0].copy())
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        with pytest.raises(DataError, match=r"adata\.to_memory\(\)"):
            _table(backed)
    finally:
        backed.file.close()


def test_genes_of_one_name_cannot_be_chosen() -> None:
    check_unique(("a", "b"))
    with pytest.raises(InputError, match="var_names_make_unique"):
        check_unique(("a", "b", "a"))


def test_labels_that_training_did_not_know_become_the_unlabelled_one() -> None:
    import anndata
    import numpy as np
    import pandas as pd

    from workers.tuning import _with_known_labels

    cells = anndata.AnnData(
        X=np.ones((4, 2), dtype=np.float32),
        obs=pd.DataFrame({"type": pd.Categorical(["a", "b", "rare", "a"])}, index=list("wxyz")),
    )
    known = np.array(["a", "b", "Unknown"])
    own = _with_known_labels(cells, "type", known, {"unlabeled_category": "Unknown"})
    assert list(own.obs["type"]) == ["a", "b", "Unknown", "a"]
    assert list(cells.obs["type"]) == ["a", "b", "rare", "a"], "the user's own table stays as it was"
    assert _with_known_labels(own, "type", known, {"unlabeled_category": "Unknown"}) is own
