"""Data files through the store, as a person sees it: push, list, fetch on a host that lacks the file, remove."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from autotune.store.datasets import Datasets
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import campaign_record
from tests.acceptance.support import one_line
from workers.datasets import DatasetCache

Cli = Callable[..., subprocess.CompletedProcess[str]]
FILE = "kang_pbmc_1556x1267.h5ad"


class Holder(NamedTuple):
    """What a cache needs of a store."""

    datasets: Datasets


def campaign_with(store: MongoStore, name: str, sha256: str, path: str = "/nowhere/cells.h5ad") -> None:
    """Create a running campaign that uses a content."""
    spec = {"name": name, "objective": "math:fsum", "data": {"path": path, "sha256": sha256}}
    store.campaigns.create(campaign_record(name, spec=spec))


def test_real_cells_from_a_host_that_has_them_to_one_that_lacks_them(
    run_cli: Cli, store: MongoStore, data_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("anndata")
    from workers.workloads.cells.load import load_cells
    from workers.workloads.cells.spec import data_spec

    file = data_folder / FILE
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    done = run_cli("data", "push", str(file))
    assert done.returncode == 0, done.stderr
    assert one_line(done.stdout).startswith(f"pushed {FILE}: ")
    assert done.stdout.strip().endswith(f"sha256 {sha256}")

    here = load_cells(data_spec({"path": str(file)}))
    assert here.sha256 == sha256, "the store's key is the hash that campaigns keep"
    campaign_with(store, "one", sha256, f"/nowhere/{FILE}")
    with DatasetCache(Holder(Datasets(store.connection)), tmp_path / "cache") as cache:
        spec = cache.localise(store.campaigns.get("one").spec, threading.Event())
        there = load_cells(data_spec(spec["data"]))
    assert there.sha256 == sha256
    assert (there.counts != here.counts).nnz == 0
    assert data_spec(spec["data"]).name == file.stem


def test_push_list_remove(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    file = tmp_path / "cells.h5ad"
    file.write_bytes(os.urandom(2_500_000))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert "the store has no data files" in one_line(run_cli("data", "list").stderr)
    assert one_line(run_cli("data", "push", "cells.h5ad").stdout) == f"pushed cells.h5ad: 2.5 MB, sha256 {sha256}"
    again = run_cli("data", "push", "cells.h5ad")
    assert (again.returncode, one_line(again.stdout)) == (
        0,
        f"already in the store: cells.h5ad: 2.5 MB, sha256 {sha256}",
    )
    campaign_with(store, "one", sha256)

    [listed] = json.loads(run_cli("data", "list", "--format", "json").stdout)
    assert listed.pop("pushed_at").endswith("+00:00")
    assert listed == {"name": "cells.h5ad", "size": 2_500_000, "sha256": sha256, "campaigns": {"one": "running"}}
    table = run_cli("data", "list").stdout
    assert all(text in table for text in ("cells.h5ad", "2.5 MB", sha256, "one (running)"))

    refused = run_cli("data", "remove", "cells.h5ad")
    assert refused.returncode == 2
    assert "is used by one (running): cancel them, or wait for their end" in one_line(refused.stderr)
    assert run_cli("cancel", "one").returncode == 0
    removed = run_cli("data", "remove", sha256[:12])
    assert (removed.returncode, one_line(removed.stdout)) == (0, f"removed cells.h5ad: 2.5 MB, sha256 {sha256}")
    missing = run_cli("data", "remove", sha256)
    assert missing.returncode == 3
    assert "there is no dataset" in one_line(missing.stderr)


def test_a_damaged_copy_is_mended(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    (tmp_path / "cells.h5ad").write_bytes(os.urandom(3_000_000))
    run_cli("data", "push", "cells.h5ad")
    store.connection.database["datasets.chunks"].update_one({"n": 1}, {"$set": {"data": b"?"}})
    mended = run_cli("data", "push", "cells.h5ad", "--check")
    assert one_line(mended.stdout).startswith("mended cells.h5ad")
    assert mended.stdout.strip().endswith("1 of 3 chunks were missing or wrong")
    assert one_line(run_cli("data", "push", "cells.h5ad", "--check").stdout).endswith(", checked")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["push", "nowhere.h5ad"], 2, "there is no file nowhere.h5ad"),
        (
            ["push", "folder"],
            2,
            "folder is a folder, the store takes files: `autotune data convert folder folder.h5ad`",
        ),
        (["convert", "nowhere", "a.h5ad"], 2, "there is no file or folder nowhere"),
        (["convert", "folder", "a.h5ad"], 2, "folder is no folder of 10x counts: it has no matrix.mtx[.gz]"),
        (["convert", "cells.h5ad", "a.loom"], 2, "a.loom must end in .h5ad"),
        (["convert", "cells.h5ad", "cells.h5ad/a.h5ad"], 2, "is not an .h5ad file"),
        (["fetch", "cortx"], 2, "there is no 'cortx'; did you mean 'cortex'"),
        (["push", "empty.h5ad"], 2, "empty.h5ad is empty: there is nothing to push"),
        (["remove", "0123456789abcdef"], 3, "there is no dataset '0123456789abcdef'"),
        (["remove", "cells"], 3, "it has no datasets"),
        (["push", "cells.h5ad", "--store", "mongodb://127.0.0.1:1/autotune"], 4, "no answer from the store"),
    ],
)
def test_wrong_input(run_cli: Cli, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.h5ad").touch()
    (tmp_path / "cells.h5ad").write_bytes(b"cells")
    done = run_cli("data", *arguments)
    assert done.returncode == code
    assert message in one_line(done.stderr)
    assert done.stdout == ""


def test_a_folder_is_converted_pushed_and_fetched(run_cli: Cli, store: MongoStore, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    from workers.workloads.cells.load import load_cells
    from workers.workloads.cells.spec import data_spec

    folder = tmp_path / "10x"
    folder.mkdir()
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n2 3 3\n1 1 5\n2 2 1\n1 3 2\n")
    (folder / "genes.tsv").write_text("E1\tActb\nE2\tXist\n")
    (folder / "barcodes.tsv").write_text("AA\nCC\nGG\n")
    done = run_cli("data", "convert", "10x", "cells.h5ad")
    assert (done.returncode, one_line(done.stderr)) == (0, "wrote cells.h5ad: 3 cells, 2 genes")
    assert run_cli("data", "push", "cells.h5ad").returncode == 0
    sha256 = hashlib.sha256((tmp_path / "cells.h5ad").read_bytes()).hexdigest()
    campaign_with(store, "one", sha256)
    with DatasetCache(Holder(Datasets(store.connection)), tmp_path / "cache") as cache:
        spec = cache.localise(store.campaigns.get("one").spec, threading.Event())
        there = load_cells(data_spec(spec["data"]))
    assert there.counts.toarray().tolist() == [[5, 0], [0, 1], [2, 0]]


def test_a_folder_on_this_host_is_left_to_who_loads_it(store: MongoStore, tmp_path: Path) -> None:
    (tmp_path / "matrix.mtx.gz").touch()
    campaign_with(store, "one", "0" * 64, str(tmp_path))
    with DatasetCache(Holder(Datasets(store.connection)), tmp_path / "cache") as cache:
        spec = store.campaigns.get("one").spec
        assert cache.localise(spec, threading.Event()) is spec


BAR = """
import sys
from workers.data_cli import PushBar
with PushBar("cells.h5ad", shown_after_s=float(sys.argv[1])) as bar:
    bar.update("hashing", 30_000_000, 100_000_000)
    bar.update("pushing", 70_000_000, 100_000_000)
"""


@pytest.mark.parametrize(("shown_after_s", "terminal"), [(0.0, True), (60.0, True), (0.0, False)])
def test_a_bar_shows_on_a_terminal_after_a_while(shown_after_s: float, terminal: bool) -> None:
    ours, theirs = pty.openpty()
    try:
        out = theirs if terminal else subprocess.DEVNULL
        command = [sys.executable, "-c", BAR, str(shown_after_s)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        subprocess.run(command, stdin=theirs, stdout=out, stderr=theirs, timeout=60, check=True, env=environment)
        os.write(theirs, b"end")
        shown = b""
        while not shown.endswith(b"end"):
            shown += os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"pushing cells.h5ad" in shown) == (terminal and shown_after_s == 0.0)
    if terminal and not shown_after_s:
        assert b"70.0/100.0 MB" in shown
