"""Reading counts: what is right is read exactly, what is wrong is one clear line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas
import pytest
from scipy import sparse

from autotune.errors import CampaignError, DataError
from workers.workloads.cells.genes import column_variance, most_variable
from workers.workloads.cells.load import load_cells, matrix_hash
from workers.workloads.cells.prepared import facts, prepare_cells
from workers.workloads.cells.spec import data_spec, split_spec

DATA = Path(os.environ.get("AUTOTUNE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

COUNTS = np.array([[1, 0, 5, 0], [0, 2, 0, 0], [3, 0, 7, 0], [0, 2, 9, 1]], dtype=np.float32)


def write(path: Path, x: Any = COUNTS, **layers: Any) -> Path:
    obs = pandas.DataFrame(
        {"cell_type": list("aabb"), "donor_id": list("xyxy")}, index=[f"c{i}" for i in range(4)]
    ).iloc[: x.shape[0]]
    var = pandas.DataFrame(index=[f"g{i}" for i in range(x.shape[1])])
    anndata.AnnData(X=x, obs=obs, var=var, layers=layers).write_h5ad(path)
    return path


def load(path: Path, **data: Any) -> Any:
    return load_cells(data_spec({"path": str(path), **data}))


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_counts_are_read_exactly_whatever_their_storage(tmp_path: Path, kind: Any, dtype: str) -> None:
    cells = load(write(tmp_path / "a.h5ad", kind(COUNTS.astype(dtype))), labels="cell_type")
    assert cells.counts.format == "csr"
    assert cells.counts.dtype == np.float32
    np.testing.assert_array_equal(cells.counts.toarray(), COUNTS)
    assert cells.names == ("c0", "c1", "c2", "c3")
    assert cells.genes == ("g0", "g1", "g2", "g3")
    assert list(cells.obs["cell_type"]) == ["a", "a", "b", "b"]
    assert not cells.simulated


def test_layer_is_read_instead_of_x(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", np.log1p(COUNTS), counts=COUNTS)
    np.testing.assert_array_equal(load(path, layer="counts").counts.toarray(), COUNTS)


def test_x_that_is_no_count_names_the_layer_that_may_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", np.log1p(COUNTS), counts=COUNTS)
    with pytest.raises(DataError, match=r"8 of 8 stored .*not whole.*0\.69.*set data\.layer: counts"):
        load(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "1 of 16 stored values are negative"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")],
)
def test_impossible_values_are_refused(tmp_path: Path, value: float, message: str) -> None:
    wrong = COUNTS + 1
    wrong[1, 1] = value
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.h5ad", wrong))


def test_missing_layer_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", counts=COUNTS)
    with pytest.raises(DataError, match="no layer 'count'; did you mean 'counts'"):
        load(path, layer="count")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'celltype' in obs; did you mean 'cell_type'"):
        load(write(tmp_path / "a.h5ad"), labels="celltype")


def test_missing_values_in_a_needed_column_are_refused(tmp_path: Path) -> None:
    obs = pandas.DataFrame({"t": pandas.Categorical(["a", None, "b", "b"])}, index=list("wxyz"))
    anndata.AnnData(X=COUNTS, obs=obs).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="1 cells have no value in obs column 't'"):
        load(tmp_path / "a.h5ad", labels="t")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*nothing\.h5ad: check data\.path"):
        load(tmp_path / "nothing.h5ad")


def test_file_that_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("gene,count\n")
    with pytest.raises(DataError, match=r"not an \.h5ad file"):
        load(tmp_path / "a.h5ad")


def test_hdf5_that_is_no_h5ad(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["matrix"] = COUNTS
    with pytest.raises(DataError, match=r"HDF5 but not an \.h5ad file: it has no obs"):
        load(tmp_path / "a.h5ad")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.h5ad")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="damaged or cut short"):
        load(path)


def test_damaged_content(tmp_path: Path) -> None:
    big = np.random.RandomState(0).poisson(1.0, size=(4, 5000)).astype(np.float32)
    obs = pandas.DataFrame(index=list("wxyz"))
    anndata.AnnData(X=sparse.csr_matrix(big), obs=obs).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        start = file["X/data"].id.get_chunk_info(0).byte_offset
    with (tmp_path / "a.h5ad").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    with pytest.raises(DataError, match="damaged or cut short"):
        load(tmp_path / "a.h5ad")


def test_no_cells(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 cells x 4 genes"):
        load(write(tmp_path / "a.h5ad", COUNTS[:0]))


def test_hash_must_match_when_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad")
    digest = load(path).sha256
    assert load(path, sha256=digest.upper()).sha256 == digest
    with pytest.raises(DataError, match="differs from the campaign's"):
        load(path, sha256="0" * 64)


def test_matrix_hash_is_of_the_content_not_of_the_file(tmp_path: Path) -> None:
    dense, packed = load(write(tmp_path / "a.h5ad")), load(write(tmp_path / "b.h5ad", sparse.csc_matrix(COUNTS)))
    assert dense.sha256 != packed.sha256
    assert matrix_hash(dense) == matrix_hash(packed)
    assert matrix_hash(dense) != matrix_hash(load(write(tmp_path / "c.h5ad", COUNTS * 2)))


def test_top_variance_keeps_gene_order_and_breaks_ties_by_position() -> None:
    matrix = sparse.csr_matrix(np.array([[0, 1, 9, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(column_variance(matrix), matrix.toarray().var(axis=0))
    assert list(most_variable(column_variance(matrix), 2)) == [1, 2]
    assert list(most_variable(column_variance(matrix), 3)) == [1, 2, 3]


def test_more_genes_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="asks for 6 genes, the file has 4"):
        load(write(tmp_path / "a.h5ad"), genes={"top_variance": 6})


def test_genes_are_chosen_by_raw_counts(tmp_path: Path) -> None:
    cells = load(write(tmp_path / "a.h5ad"), genes={"top_variance": 2})
    assert cells.genes == ("g0", "g2")
    assert cells.n_genes_total == 4
    np.testing.assert_array_equal(cells.counts.toarray(), COUNTS[:, [0, 2]])
    assert list(cells.filled) == [True, False, True, True]


def test_empty_cells_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad")
    prepared = prepare_cells({"path": str(path), "genes": {"top_variance": 2}}, {"validation": 0.5})
    found = facts(prepared, {"validation": 0.5})
    assert found["data"]["n_empty_cells"] == 1
    assert any("left out" in text for text in found["data"]["warnings"])
    assert 1 not in {*prepared.split.train, *prepared.split.validation}
    assert found["split"]["n_train"] + found["split"]["n_validation"] == 3


def test_facts_warn_of_donors_in_both_parts_and_of_batches_never_trained(tmp_path: Path) -> None:
    data = {"path": str(write(tmp_path / "a.h5ad")), "batch": "donor_id"}
    cellwise = facts(prepare_cells(data, {"validation": 0.5}), {"validation": 0.5})
    assert any("split.by: donor_id" in text for text in cellwise["data"]["warnings"])
    split = {"validation": 0.5, "by": "donor_id"}
    grouped = facts(prepare_cells(data, split), split)
    assert any("only held out" in text for text in grouped["data"]["warnings"])
    assert not any("both parts" in text for text in grouped["data"]["warnings"])
    assert grouped["split"]["validation_groups"] in (["x"], ["y"])


@pytest.mark.parametrize(
    ("columns", "by", "warning"),
    [
        ({"Donor ID": "xyxyxyxy"}, None, "groups of Donor ID have cells in both parts: split.by: Donor ID keeps"),
        ({"sampleID": "xyxyxyxy", "mouse-id": "xyxyxyxy"}, None, "groups of mouse-id, sampleID have"),
        ({"Patient": "xyxyxyxy"}, "site", "in both parts, as split.by is site: split.by: Patient keeps"),
        ({"participant.id": "x-------"}, "site", None),
        ({"SUBJECT": "xxxxxxxx"}, None, "groups of SUBJECT have cells in both parts: there is only one group"),
        ({"donor": "xxxxxxxx", "animal": "xyxyxyxy"}, None, "groups of donor, animal have .*: split.by: animal keeps"),
        ({"Sample": "abcdefgh"}, None, None),
        ({"Individual": "xxxxyyyy"}, "site", None),
        ({"Individual": "xxxxyyyy"}, "Individual", None),
        ({"donors_seen": "xyxyxyxy"}, None, None),
    ],
)
def test_every_column_of_donors_in_both_parts_is_said(
    tmp_path: Path, columns: dict[str, str], by: str | None, warning: str | None
) -> None:
    obs = pandas.DataFrame({"site": list("ppppqqqq")}, index=[f"c{i}" for i in range(8)])
    for name, values in columns.items():
        obs[name] = pandas.Categorical([None if value == "-" else value for value in values])
    anndata.AnnData(X=np.ones((8, 2), dtype=np.float32), obs=obs).write_h5ad(tmp_path / "a.h5ad")
    split = {"validation": 0.5, "by": by}
    said = facts(prepare_cells({"path": str(tmp_path / "a.h5ad")}, split), split)["data"]["warnings"]
    found = [text for text in said if not text.startswith("no training cell has site")]
    if warning is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(warning, found[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "a.h5ad", "layr": "x"}, r"unknown key data\.layr; did you mean 'layer'"),
        ({}, r"data\.path must name"),
        ({"path": "a.h5ad", "genes": 500}, r"must be `all` or `top_variance: N`"),
        ({"path": "a.h5ad", "genes": {"top_varience": 5}}, "did you mean 'top_variance'"),
        ({"path": "a.h5ad", "genes": {"top_variance": 0}}, "whole number >= 1"),
        ({"path": "a.h5ad", "layer": 3}, r"data\.layer must be text"),
    ],
)
def test_wrong_data_sections(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        data_spec(data)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"validation": 0}, "between 0 and 1"),
        ({"validation": 1}, "between 0 and 1"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"validation": True}, "between 0 and 1"),
        ({"validation": float("nan")}, "between 0 and 1"),
        ({"validation": "0.2"}, "between 0 and 1"),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"by": 3}, "name a column"),
        ({"validaton": 0.2}, "did you mean 'validation'"),
        ({"test": 1}, "at least 0 and below 1"),
        ({"test": -0.1}, "at least 0 and below 1"),
        ({"test": "0.2"}, "at least 0 and below 1"),
        ({"validation": 0.5, "test": 0.5}, "leave no cells to train on"),
        ({"protocol": "puplished"}, "must be honest or published, not 'puplished'"),
        ({"protocol": "published", "test": 0.2}, "published has validation 0.25 and no test part"),
        ({"protocol": "published", "validation": 0.3}, "published has validation 0.25 and no test part"),
        ({"unsealed": "yes"}, "set by the service alone"),
        ({"unsealled": True}, "unknown key split.unsealled; did you mean 'seed'"),
    ],
)
def test_wrong_split_sections(split: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        split_spec(split)


def test_a_published_split_is_todays_default() -> None:
    assert split_spec({"protocol": "published"}).validation == 0.25
    assert split_spec({"protocol": "published", "validation": 0.25, "test": 0}).test == 0.0


def many(path: Path, n: int = 60) -> Path:
    rng = np.random.RandomState(0)
    obs = pandas.DataFrame({"donor_id": [f"d{i % 6}" for i in range(n)]}, index=[f"c{i}" for i in range(n)])
    anndata.AnnData(X=rng.poisson(2.0, size=(n, 6)).astype(np.float32) + 1, obs=obs).write_h5ad(path)
    return path


@pytest.mark.parametrize("by", [None, "donor_id"])
def test_a_sealed_preparation_tells_nothing_of_who_is_tested(tmp_path: Path, by: str | None) -> None:
    data, split = {"path": str(many(tmp_path / "a.h5ad"))}, {"validation": 0.25, "test": 0.2, "by": by}
    opened, sealed = prepare_cells(data, split, sealed=False), prepare_cells(data, split)
    tested = set(opened.split.test.tolist())
    assert len(tested) in (10, 12)
    for name, value in vars(sealed.split).items():
        if isinstance(value, np.ndarray):
            assert not tested & set(value.tolist()), name
    assert sealed.split.n_test == len(tested)
    assert facts(sealed, split) == facts(opened, split)
    assert str(sorted(tested)) not in str(facts(opened, split))
    found = facts(sealed, split)["split"]
    assert found["n_train"] + found["n_validation"] + found["n_test"] == 60
    assert found["fractions"]["test"] == round(found["n_test"] / 60, 6)
    assert found["protocol"] == "honest"
    assert found["n_test_groups"] == len(found["test_groups"]) == (0 if by is None else 1)


def test_genes_are_chosen_without_the_test_cells(tmp_path: Path) -> None:
    counts = np.ones((40, 3), dtype=np.float32)
    counts[:, 1] += np.arange(40) % 2  # varies everywhere
    split = {"validation": 0.25, "test": 0.2}
    names = pandas.DataFrame(index=[f"c{i}" for i in range(40)])
    anndata.AnnData(X=counts, obs=names).write_h5ad(tmp_path / "a.h5ad")
    tested = prepare_cells({"path": str(tmp_path / "a.h5ad")}, split, sealed=False).split.test
    counts[tested[0], 2] = 100  # varies much, in one test cell only
    anndata.AnnData(X=counts, obs=names).write_h5ad(tmp_path / "a.h5ad")
    data = {"path": str(tmp_path / "a.h5ad"), "genes": {"top_variance": 1}}
    assert prepare_cells(data, {}).cells.genes == ("2",)
    prepared = prepare_cells(data, split)
    assert prepared.cells.genes == ("1",)
    assert facts(prepared, split)["data"]["genes"]["chosen_on"] == "train and validation cells"
    assert facts(prepare_cells(data, {}), {})["data"]["genes"]["chosen_on"] == "all cells"


def test_facts_warn_of_groups_in_any_two_parts_and_of_a_batch_with_one_level(tmp_path: Path) -> None:
    data = {"path": str(many(tmp_path / "a.h5ad"))}
    split = {"validation": 0.25, "test": 0.2}
    [said] = facts(prepare_cells(data, split), split)["data"]["warnings"]
    assert "donor_id have cells in more than one part" in said
    obs = pandas.DataFrame({"lane": ["one"] * 4}, index=list("wxyz"))
    anndata.AnnData(X=COUNTS + 1, obs=obs).write_h5ad(tmp_path / "b.h5ad")
    found = facts(prepare_cells({"path": str(tmp_path / "b.h5ad"), "batch": "lane"}, {}), {})
    assert found["data"]["warnings"] == [
        "batch lane has one level, one: the model learns nothing from it; remove data.batch"
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason="no real cells here (AUTOTUNE_TEST_DATA)")
def test_real_cells() -> None:
    path = str(DATA / "zeisel_cortex_1464x1000.h5ad")
    data = {"path": path, "genes": {"top_variance": 558}, "labels": "cell_type"}
    found = facts(prepare_cells(data, {}), {})
    assert (found["data"]["n_cells"], found["data"]["n_genes"], found["data"]["n_genes_total"]) == (1464, 558, 1000)
    assert (found["split"]["n_train"], found["split"]["n_validation"]) == (1098, 366)
    assert found["data"]["labels"]["n_values"] == 3
    assert found["data"]["simulated"] is False


def test_facts_warn_where_held_out_groups_have_what_no_training_cell_has(tmp_path: Path) -> None:
    donors = [f"d{i // 5}" for i in range(40)]
    split = {"validation": 0.25, "test": 0.25, "by": "donor", "seed": 1}
    obs = pandas.DataFrame({"donor": donors, "depth": np.arange(40) / 7}, index=[f"c{i}" for i in range(40)])
    counts = np.ones((40, 3), dtype=np.float32)
    path = tmp_path / "a.h5ad"
    anndata.AnnData(X=counts, obs=obs).write_h5ad(path)
    prepared = prepare_cells({"path": str(path)}, split, sealed=False)
    trained = set(obs["donor"].iloc[prepared.split.train])
    obs["treated"] = pandas.Categorical(["no" if d in trained else "yes" for d in donors])
    obs["kind"] = pandas.Categorical(["B", "T"] * 20)
    obs.loc["c0", "kind"] = None
    anndata.AnnData(X=counts, obs=obs).write_h5ad(path)
    for sealed in (True, False):
        said = facts(prepare_cells({"path": str(path)}, split, sealed=sealed), split)["data"]["warnings"]
        assert said == [
            "no training cell has treated yes, but 100% of the held-out cells: scores are of transfer to that; another"
            " split.seed may divide the groups of donor differently"
        ]
    by_cells = {"validation": 0.25, "test": 0.25, "seed": 1}
    assert "treated" not in str(facts(prepare_cells({"path": str(path)}, by_cells), by_cells)["data"]["warnings"])
