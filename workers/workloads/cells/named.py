"""Public data sets by name: ``data: {dataset: cortex}``. Fetched once, checked, and kept as ``.h5ad``.

Cells and genes are those of scvi-tools' loaders; ``top_variance`` is the choice of genes of the study of 2019 that
introduced autotune for scVI.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import CampaignError, DataError, nearest
from autotune.home import home, without_store


@dataclass(frozen=True, kw_only=True)
class Named:
    """A public data set.

    Attributes:
        n_cells: Number of cells it has.
        top_variance: Genes that the study of 2019 kept; it has at least so many.
        from_where: Who offers it, for messages.
        gigabytes: About what is fetched.
    """

    n_cells: int
    top_variance: int
    from_where: str
    gigabytes: float


NAMED: dict[str, Named] = {
    "cortex": Named(n_cells=3005, top_variance=558, from_where="storage.googleapis.com", gigabytes=0.12),
    "pbmc": Named(n_cells=11990, top_variance=3346, from_where="github.com and cf.10xgenomics.com", gigabytes=0.1),
    "brain_large": Named(n_cells=1306127, top_variance=720, from_where="cf.10xgenomics.com", gigabytes=4.2),
}


def named(name: str) -> Named:
    """Return a data set.

    Raises:
        CampaignError: If there is none of that name; names the nearest.
    """
    if name not in NAMED:
        raise CampaignError(f"data.dataset: there is no {name!r}{nearest(name, NAMED)}; known: {', '.join(NAMED)}")
    return NAMED[name]


def named_file(name: str) -> Path:
    """Return where this host keeps a data set, whether it is there or not."""
    named(name)
    return home() / "named" / f"{name}.h5ad"


def by_path(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``data`` section that names its file instead of a data set; any other one as it is.

    Raises:
        CampaignError: If there is no data set of that name.
    """
    name = data.get("dataset")
    if not isinstance(name, str):
        return dict(data)
    genes = {"top_variance": named(name).top_variance}
    rest = {key: value for key, value in data.items() if key != "dataset" and value is not None}
    return {"genes": genes, "name": name, "path": str(named_file(name)), **rest}


def ensure(name: str) -> Path:
    """Return the file of a data set; fetch it if this host does not have it. One process fetches, others wait.

    Raises:
        DataError: If it cannot be fetched, or is not what it should be; says what to do.
    """
    file = named_file(name)
    if file.exists():
        return file
    file.parent.mkdir(exist_ok=True, mode=0o700)
    with _alone(file.with_suffix(".lock")):
        if not file.exists():
            _fetch(name, file)
    return file


def _fetch(name: str, file: Path) -> None:
    """Run the loader in a process of its own: it loads torch, and says things on standard output."""
    known = named(name)
    for left in file.parent.glob(f"{name}.part-*"):  # of one that was killed: this process has the lock
        shutil.rmtree(left, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "workers.workloads.cells.fetching", name, str(file)],
        capture_output=True,
        text=True,
        env=without_store(os.environ),
        check=False,
    )
    if done.returncode == 0 and file.exists():
        return
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise DataError(
        f"cannot fetch {name} ({known.gigabytes:g} GB) from {known.from_where}: {said}. Without a network: run"
        f" `autotune data fetch {name}` on a host that has one, and copy its file to {file}"
    )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
