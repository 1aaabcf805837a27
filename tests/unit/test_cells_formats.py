"""Counts in .loom files, 10x .h5 files and 10x folders: the same cells as in an .h5ad, the same one-line errors."""

from __future__ import annotations

import gzip
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import io, sparse

from autotune.errors import DataError
from workers.workloads.cells import sources
from workers.workloads.cells.conversion import convert
from workers.workloads.cells.formats import content_hash
from workers.workloads.cells.load import load_cells, matrix_hash
from workers.workloads.cells.prepared import facts, prepare_cells
from workers.workloads.cells.spec import data_spec

COUNTS = np.array([[1, 0, 5, 0], [0, 2, 0, 0], [3, 0, 7, 0], [0, 2, 9, 1], [0, 0, 0, 0]], dtype=np.int64)
CELLS = ("AAA-1", "CCC-1", "GGG-1", "TTT-1", "ACG-1")
GENES = ("Actb", "Gad1", "Actb", "Xist")
IDS = ("E1", "E2", "E3", "E4")
UNIQUE = ("Actb", "Gad1", "Actb-1", "Xist")
PROTEIN = np.array([[9], [8], [7], [6], [5]])


def load(path: Path, **data: Any) -> Any:
    return load_cells(data_spec({"path": str(path), **data}))


def loom(path: Path, **layers: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["matrix"] = COUNTS.T.astype(np.float32)
        file.create_group("layers")
        for name, values in layers.items():
            file[f"layers/{name}"] = values.T
        file["row_attrs/Gene"] = np.array(GENES, dtype="S")
        file["col_attrs/CellID"] = np.array(CELLS, dtype="S")
        file["col_attrs/donor"] = np.array(["x", "y", "x", "y", "x"], dtype="S")
        file["col_attrs/age"] = np.arange(5)
        file["col_attrs/embedding"] = np.zeros((5, 2))
    return path


def tenx(path: Path, *, release: int = 3, genomes: tuple[str, ...] = ("mm10",)) -> Path:
    """Write a 10x file; release 3 has a feature that is no gene."""
    stored = sparse.csr_matrix(np.hstack([COUNTS, PROTEIN]) if release == 3 else COUNTS)
    with h5py.File(path, "w") as file:
        for name in ("matrix",) if release == 3 else genomes:
            group = file.create_group(name)
            group["barcodes"] = np.array(CELLS, dtype="S")
            group["data"], group["indices"] = stored.data.astype(np.int32), stored.indices.astype(np.int64)
            group["indptr"], group["shape"] = stored.indptr.astype(np.int64), np.array(stored.shape[::-1])
            if release == 3:
                group["features/id"] = np.array([*IDS, "P"], dtype="S")
                group["features/name"] = np.array([*GENES, "CD3"], dtype="S")
                group["features/feature_type"] = np.array(["Gene Expression"] * 4 + ["Antibody Capture"], dtype="S")
                group["features/genome"] = np.array(["mm10"] * 5, dtype="S")
            else:
                group["genes"], group["gene_names"] = np.array(IDS, dtype="S"), np.array(GENES, dtype="S")
    return path


def folder(path: Path, *, release: int = 3, gz: bool = True) -> Path:
    path.mkdir()
    values = np.hstack([COUNTS, PROTEIN]) if release == 3 else COUNTS
    lines = [f"{i}\t{n}" for i, n in zip(IDS, GENES, strict=True)]
    if release == 3:
        lines = [f"{line}\tGene Expression" for line in lines] + ["P\tCD3\tAntibody Capture"]
    io.mmwrite(path / "matrix.mtx", sparse.coo_matrix(values.T), field="integer")
    (path / ("features.tsv" if release == 3 else "genes.tsv")).write_text("\n".join(lines) + "\n")
    (path / "barcodes.tsv").write_text("\n".join(CELLS) + "\n")
    for file in list(path.iterdir()) if gz else []:
        with gzip.open(f"{file}.gz", "wb") as packed:
            packed.write(file.read_bytes())
        file.unlink()
    return path


def written(kind: str, path: Path) -> Path:
    """Write the same counts in a format."""
    match kind.split():
        case ["loom"]:
            return loom(path / "a.loom")
        case ["h5", release]:
            return tenx(path / "a.h5", release=int(release))
        case ["folder", release, *gz]:
            return folder(path / "a", release=int(release), gz=bool(gz))
        case _:
            raise AssertionError(kind)


KINDS = ["loom", "h5 2", "h5 3", "folder 2", "folder 2 gz", "folder 3", "folder 3 gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_counts(tmp_path: Path, kind: str) -> None:
    path = written(kind, tmp_path)
    cells = load(path)
    assert cells.counts.dtype == np.float32
    np.testing.assert_array_equal(cells.counts.toarray(), COUNTS)
    assert cells.names == CELLS
    assert cells.genes == (GENES if kind == "loom" else UNIQUE)
    assert list(cells.filled) == [True, True, True, True, False]
    assert load(path, sha256=cells.sha256).sha256 == cells.sha256
    chosen = load(path, genes={"top_variance": 2})
    np.testing.assert_array_equal(chosen.counts.toarray(), COUNTS[:, [0, 2]])
    with pytest.raises(DataError, match="differs from the campaign's"):
        load(path, sha256="0" * 64)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_any_size_give_the_same_counts(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(kind, tmp_path)
    for name in ("compressed_blocks", "memory_blocks", "dense_blocks"):
        *rest, _ = getattr(sources, name).__defaults__ or (None,)
        monkeypatch.setattr(getattr(sources, name), "__defaults__", (*rest, 1))
        if name == "dense_blocks":
            monkeypatch.setattr(sources.dense_blocks, "__kwdefaults__", {"genes_first": False, "most": 1})
    assert len(list(open_blocks(path))) == 5
    np.testing.assert_array_equal(load(path, genes={"top_variance": 3}).counts.toarray(), COUNTS[:, [0, 1, 2]])


def open_blocks(path: Path) -> list[Any]:
    from workers.workloads.cells.formats import open_source

    return [block for _, block in open_source(path).blocks()]


@pytest.mark.parametrize("kind", KINDS)
def test_converted_counts_are_the_same(tmp_path: Path, kind: str) -> None:
    path = written(kind, tmp_path)
    assert convert(path, tmp_path / "new" / "b.h5ad") == COUNTS.shape
    before, after = load(path), load(tmp_path / "new" / "b.h5ad")
    assert matrix_hash(before) == matrix_hash(after)
    assert before.obs_columns == after.obs_columns
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["b.h5ad"]


def test_readers_of_the_field_give_the_same(tmp_path: Path) -> None:
    scanpy = pytest.importorskip("scanpy")
    for release in (2, 3):
        theirs = scanpy.read_10x_mtx(folder(tmp_path / f"f{release}", release=release, gz=release == 3))
        ours = load(tmp_path / f"f{release}")
        np.testing.assert_array_equal(theirs.X.toarray(), ours.counts.toarray())
        assert (tuple(theirs.obs_names), tuple(theirs.var_names)) == (tuple(ours.names), ours.genes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        theirs = scanpy.read_10x_h5(tenx(tmp_path / "a.h5"))
    np.testing.assert_array_equal(theirs.X.toarray(), load(tmp_path / "a.h5").counts.toarray())


def test_columns_of_a_loom_file_are_there(tmp_path: Path) -> None:
    path = loom(tmp_path / "a.loom")
    cells = load(path, labels="donor", batch="age")
    assert list(cells.obs["donor"]) == ["x", "y", "x", "y", "x"]
    assert list(cells.obs["age"]) == ["0", "1", "2", "3", "4"]
    assert cells.obs_columns == ("age", "donor")
    said = facts(prepare_cells({"path": str(path)}, {"validation": 0.5}), {"validation": 0.5})["data"]["warnings"]
    assert any("split.by: donor keeps" in text for text in said)
    with pytest.raises(DataError, match=r"a\.loom has no column 'donr' in obs; did you mean 'donor'"):
        load(path, labels="donr")


def test_layers_of_a_loom_file(tmp_path: Path) -> None:
    path = loom(tmp_path / "a.loom", spliced=COUNTS * 2)
    np.testing.assert_array_equal(load(path, layer="spliced").counts.toarray(), COUNTS * 2)
    with pytest.raises(DataError, match="has no layer 'splced'; did you mean 'spliced'"):
        load(path, layer="splced")
    path = loom(tmp_path / "b.loom", counts=COUNTS, logs=np.log1p(COUNTS))
    with pytest.raises(DataError, match=r"b\.loom, layer logs: .*not whole.*set data\.layer: counts"):
        load(path, layer="logs")


@pytest.mark.parametrize("kind", ["loom", "h5 2", "h5 3", "folder 3"])
def test_a_layer_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="has no layer 'counts'; the file has no layers"):
        load(written(kind, tmp_path), layer="counts")


@pytest.mark.parametrize("kind", ["h5 2", "folder 3 gz"])
def test_a_format_without_columns(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="has no column 'cell_type' in obs"):
        load(written(kind, tmp_path), labels="cell_type")


def test_a_file_with_several_genomes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several genomes \(hg19, mm10\): write an \.h5ad of one"):
        load(tenx(tmp_path / "a.h5", release=2, genomes=("mm10", "hg19")))


@pytest.mark.parametrize("missing", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, missing: str) -> None:
    path = folder(tmp_path / "a", gz=False)
    (path / missing).unlink()
    with pytest.raises(DataError, match=rf"no folder of 10x counts: it has no {missing}\[\.gz\]"):
        load(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it has no matrix\.mtx\[\.gz\]; name the folder that holds"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("matrix.mtx", "not a matrix", "damaged or cut short"),
        ("matrix.mtx", "%%MatrixMarket matrix coordinate integer general\n5 5 9\n1 1 1\n", "damaged or cut short"),
        ("barcodes.tsv", "AAA-1\n", "it is 5 x 5, not 5 genes x 1 cells"),
        ("barcodes.tsv", "", "damaged or cut short"),
        ("features.tsv", "E1\tActb\tAntibody Capture\n", "has no features of type Gene Expression"),
        ("features.tsv", "E1\tActb\tGene Expression\n", "it is 5 x 5, not 1 genes x 5 cells"),
    ],
)
def test_a_folder_with_a_damaged_file(tmp_path: Path, file: str, content: str, message: str) -> None:
    path = folder(tmp_path / "a", gz=False)
    (path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_folder_with_a_packed_file_cut_short(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    packed = path / "matrix.mtx.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or cut short"):
        load(path)


@pytest.mark.parametrize(("kind", "share"), [("loom", 0.5), ("h5 3", 0.7), ("h5 2", 0.95)])
def test_a_truncated_file(tmp_path: Path, kind: str, share: float) -> None:
    path = written(kind, tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match="damaged or cut short"):
        load(path)


@pytest.mark.parametrize(
    ("key", "values"),
    [("indptr", [0, 2, 3, 5, 8, 99]), ("indptr", [0, 2, 1, 5, 8, 8]), ("indices", [0, 2, 1, 0, 2, 1, 2, 99])],
)
def test_a_10x_file_whose_parts_do_not_fit(tmp_path: Path, key: str, values: list[int]) -> None:
    path = tenx(tmp_path / "a.h5", release=2)
    with h5py.File(path, "r+") as file:
        del file[f"mm10/{key}"]
        file[f"mm10/{key}"] = np.array(values)
    with pytest.raises(DataError, match="damaged or cut short"):
        load(path)


def test_a_loom_file_whose_attributes_do_not_fit(tmp_path: Path) -> None:
    path = loom(tmp_path / "a.loom")
    with h5py.File(path, "r+") as file:
        file["col_attrs/short"] = np.arange(3)
    with pytest.raises(DataError, match="matrix has 5 cells, an attribute of cells has 3 values"):
        load(path)


def test_negative_values_are_refused_in_every_format(tmp_path: Path) -> None:
    with h5py.File(loom(tmp_path / "a.loom"), "r+") as file:
        file["matrix"][0, 0] = -1
    with pytest.raises(DataError, match=r"a\.loom, matrix: 1 of 8 stored values are negative"):
        load(tmp_path / "a.loom")


def test_the_hash_of_a_folder_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    first = folder(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    (tmp_path / "b" / "README.txt").write_text("of no account")
    assert content_hash(first) == content_hash(tmp_path / "b")
    (tmp_path / "b" / "barcodes.tsv.gz").write_bytes(gzip.compress(b"other"))
    assert content_hash(first) != content_hash(tmp_path / "b")


def test_constant_genes_and_empty_cells_in_a_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    found = facts(prepare_cells({"path": str(path)}, {"validation": 0.5}), {"validation": 0.5})
    assert found["data"]["n_empty_cells"] == 1
    assert any("1 cells have no count" in text for text in found["data"]["warnings"])
    with pytest.raises(DataError, match="there is no file or folder"):
        convert(tmp_path / "nothing", tmp_path / "b.h5ad")
