"""Public data sets through scvi-tools' own loaders: a server on loopback in place of theirs, and no server at all."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.errors import DataError
from workers.workloads.cells import fetching
from workers.workloads.cells.named import NAMED, Named, ensure, named_file
from workers.workloads.cells.prepared import facts, prepare_cells

N_CELLS, N_GENES = 30, 25
TINY = Named(n_cells=N_CELLS, top_variance=10, from_where="here", gigabytes=0)


def cortex_text() -> bytes:
    """Return counts in the layout of the file that scvi-tools reads: eleven lines about cells, then genes."""
    counts = np.random.RandomState(0).poisson(2.0, size=(N_GENES, N_CELLS))
    about = [["", *(["x"] * (N_CELLS + 1))] for _ in range(11)]
    about[1] = ["", "level2", *("ab"[i % 2] for i in range(N_CELLS))]
    about[8] = ["", "level1", *("cd"[i % 2] for i in range(N_CELLS))]
    genes = [[f"gene{g}", "0", *map(str, row)] for g, row in enumerate(counts)]
    return "\n".join("\t".join(line) for line in about + genes).encode() + b"\n"


pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore:Transforming to str index"),  # within scvi-tools' loader
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that gives the same small file whatever is asked; the addresses that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = cortex_text()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    opened = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=opened.serve_forever)
    thread.start()
    real = urllib.request.urlopen

    def here(request: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(request.full_url)
        return real(f"http://127.0.0.1:{opened.server_port}/", *arguments, **named)

    monkeypatch.setattr(urllib.request, "urlopen", here)
    yield asked
    opened.shutdown()
    thread.join(30)
    opened.server_close()


def test_cortex_is_fetched_checked_and_prepared(
    server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path))
    monkeypatch.setitem(NAMED, "cortex", TINY)
    file = named_file("cortex")
    file.parent.mkdir()
    fetching.fetch("cortex", file)
    assert len(server) == 1
    assert server[0].startswith("https://storage.googleapis.com/")
    assert [path.name for path in file.parent.iterdir()] == ["cortex.h5ad"]
    data = {"dataset": "cortex", "labels": "cell_type"}
    found = facts(prepare_cells(data, {}), {})["data"]
    assert (found["name"], found["n_cells"], found["n_genes"]) == ("cortex", N_CELLS, 10)
    assert found["labels"]["cells"] == {"c": 15, "d": 15}


def test_another_file_at_that_address_is_refused(server: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cortex has 30 cells and 25 genes, not 3005 cells and 558 genes or more"):
        fetching.fetch("cortex", tmp_path / "cortex.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(NAMED))
def test_without_a_network_one_line_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"cannot fetch {name} .*refused.*autotune data fetch {name}"):
        ensure(name)
    assert [path.name for path in named_file(name).parent.iterdir()] == [f"{name}.lock"]
