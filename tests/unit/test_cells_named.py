"""Public data sets by name: fetched once, checked, and one clear line where there is no network."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autotune.errors import CampaignError, DataError
from workers.datasets import DatasetCache
from workers.workloads.cells import fetching, named
from workers.workloads.cells.named import NAMED, Named, by_path, ensure, named_file
from workers.workloads.cells.prepared import facts, prepare_cells
from workers.workloads.cells.simulate import simulate_cells
from workers.workloads.cells.spec import data_spec

TINY = Named(n_cells=40, top_variance=10, from_where="here", gigabytes=0)


@pytest.fixture(autouse=True)
def _own_timeout() -> Iterator[None]:
    """A fetch sets the default of its process."""
    before = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(before)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))


def test_genes_of_the_reference_are_the_default() -> None:
    assert {name: known.top_variance for name, known in NAMED.items()} == {
        "cortex": 558,
        "pbmc": 3346,
        "brain_large": 720,
    }
    spec = data_spec({"dataset": "cortex"})
    assert (spec.name, spec.top_variance, spec.path) == ("cortex", 558, named_file("cortex"))
    assert data_spec({"dataset": "cortex", "genes": {"top_variance": 1000}}).top_variance == 1000
    assert data_spec({"dataset": "cortex", "genes": "all", "name": "mine"}).top_variance is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dataset": "cortx"}, r"data\.dataset: there is no 'cortx'; did you mean 'cortex'"),
        ({"dataset": "cortex", "path": "a.h5ad"}, "has both dataset and path: remove one"),
        ({"dataset": 3}, r"data\.dataset must be text"),
    ],
)
def test_wrong_names(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        data_spec(data)


def test_a_failed_download_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "import sys; sys.stderr.write('noise\\n<urlopen error [Errno -3] Temporary failure>\\n'); sys.exit(1)"
    run = subprocess.run
    monkeypatch.setattr(named.subprocess, "run", lambda command, **rest: run([command[0], "-c", fails], **rest))
    with pytest.raises(DataError) as caught:
        ensure("pbmc")
    message = str(caught.value)
    assert message.startswith("cannot fetch pbmc (0.1 GB) from github.com and cf.10xgenomics.com: <urlopen error")
    assert f"`autotune data fetch pbmc` on a host that has one, and copy its file to {named_file('pbmc')}" in message
    assert list(named_file("pbmc").parent.glob("*.h5ad*")) == []


def put(name: str) -> Path:
    file = named_file(name)
    file.parent.mkdir(parents=True)
    simulate_cells(40, 20, 2).write_h5ad(file)
    return file


def test_a_file_that_was_put_there_is_used_and_facts_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMED, "cortex", TINY)
    file = put("cortex")
    prepared = prepare_cells({"dataset": "cortex"}, {})
    found = facts(prepared, {})["data"]
    assert (found["name"], found["n_cells"], found["n_genes"]) == ("cortex", 40, 10)
    assert (found["path"], len(found["sha256"])) == (str(file), 64)
    with pytest.raises(DataError, match="differs from the campaign's"):
        prepare_cells({"dataset": "cortex", "sha256": "0" * 64}, {})


def test_several_that_need_it_fetch_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(name: str, file: Path) -> None:
        fetched.append(name)
        threading.Event().wait(0.05)
        file.write_bytes(b"cells")

    monkeypatch.setattr(named, "_fetch", fetch)
    threads = [threading.Thread(target=ensure, args=("cortex",)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert fetched == ["cortex"]


def test_what_is_fetched_is_checked_and_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "load", lambda name, folder: simulate_cells(40, 20, 2))
    fetching.fetch("cortex", tmp_path / "cortex.h5ad", TINY)
    assert [file.name for file in tmp_path.glob("cortex*")] == ["cortex.h5ad"]
    for wrong in (
        Named(n_cells=41, top_variance=10, from_where="", gigabytes=0),
        Named(n_cells=40, top_variance=21, from_where="", gigabytes=0),
    ):
        with pytest.raises(DataError, match="what was fetched is another data set"):
            fetching.fetch("pbmc", tmp_path / "pbmc.h5ad", wrong)
    assert [file.name for file in tmp_path.glob("pbmc*")] == []


def test_the_program_says_why_it_failed_in_its_last_line(tmp_path: Path) -> None:
    program = (
        "from workers.workloads.cells import fetching\n"
        "def load(name, folder): print('chatter'); raise OSError('no\\nnetwork')\n"
        "fetching.load = load\n"
        "import sys; sys.exit(fetching.main())"
    )
    command = [sys.executable, "-c", program, "cortex", str(tmp_path / "a.h5ad")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "no network"


class Store(NamedTuple):
    """A store that has one data set, or none."""

    datasets: Any


class Nothing:
    """Data sets of an empty store."""

    def find(self, sha256: str) -> None:
        """There is none."""


def test_a_worker_leaves_a_named_data_set_to_who_loads_it() -> None:
    spec = {"name": "one", "data": {"dataset": "cortex", "sha256": "0" * 64}}
    with DatasetCache(Store(Nothing())) as cache:
        assert cache.localise(spec, threading.Event()) is spec
        put("cortex")
        assert cache.localise(spec, threading.Event()) is spec


def test_a_copy_from_the_store_keeps_name_and_genes() -> None:
    assert by_path({"dataset": "pbmc", "sha256": "1"}) == {
        "genes": {"top_variance": 3346},
        "name": "pbmc",
        "path": str(named_file("pbmc")),
        "sha256": "1",
    }
    assert by_path({"path": "a"}) == {"path": "a"}
