"""The command ``autotune data``: put data files into the store, list and remove them; make data to try things with."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Self

import click

from autotune.cli.output import echo_json, echo_table, format_option, store_option

SHOWN_AFTER_S = 1.0


@click.group()
def data() -> None:
    """Data files in the store, for workers on hosts that lack them; and simulated data to try things with."""


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Its name in the store; default: the name of the file.")
@click.option("--check", is_flag=True, help="Compare a copy that is there already, and mend it where it differs.")
@store_option
def push(file: Path, name: str | None, check: bool, store_uri: str | None) -> None:
    """Put FILE (.h5ad, .loom, 10x .h5) into the store, from where workers on hosts that lack it fetch it.

    It is known by the SHA-256 of its content: pushing it twice stores it once. A push that was interrupted goes on
    where it stopped when it is run again.
    """
    from autotune.errors import InputError
    from autotune.store.mongo import open_store

    if file.is_dir():
        made = f"{file.resolve().name}.h5ad"
        raise InputError(
            f"{file} is a folder, the store takes files: `autotune data convert {file} {made}`, push {made} and name it"
            " as data.path"
        )
    with open_store(store_uri) as opened, PushBar(file.name) as bar:
        pushed = opened.datasets.push(file, name=name, check=check, progress=bar.update)
    dataset, before = pushed.dataset, pushed.dataset.n_chunks - pushed.sent
    what = f"{dataset.name}: {size_text(dataset.size)}, sha256 {dataset.sha256}"
    if not pushed.new and pushed.sent:
        click.echo(f"mended {what}, {pushed.sent} of {dataset.n_chunks} chunks were missing or wrong")
    elif not pushed.new:
        click.echo(f"already in the store: {what}{', checked' if check else ''}")
    else:
        there = f", {before} of {dataset.n_chunks} chunks were there already" if before else ""
        click.echo(f"pushed {what}{there}")


@data.command("list")
@format_option("table", "json")
@store_option
def list_(format_: str, store_uri: str | None) -> None:
    """List the data files in the store, newest first, with the campaigns that use them."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as opened:
        datasets = opened.datasets
        rows = [(dataset, datasets.users(dataset.sha256)) for dataset in datasets.all()]
    if format_ == "json":
        echo_json(
            [
                {"name": d.name, "size": d.size, "sha256": d.sha256, "pushed_at": d.pushed_at, "campaigns": dict(users)}
                for d, users in rows
            ]
        )
        return
    if not rows:
        click.echo("the store has no data files; put one there: autotune data push FILE", err=True)
        return
    texts = [", ".join(f"{name} ({state})" for name, state in users.items()) for _, users in rows]
    echo_table(
        ["name", "size", "sha256", "pushed at", "campaigns"],
        [[d.name, size_text(d.size), d.sha256, d.pushed_at, t] for (d, _), t in zip(rows, texts, strict=True)],
    )


@data.command()
@click.argument("dataset", metavar="SHA256|NAME")
@store_option
def remove(dataset: str, store_uri: str | None) -> None:
    """Remove a data file from the store, unless a running or paused campaign uses it.

    It is named by its name, its SHA-256, or at least the first 6 digits of it. Copies on hosts of workers stay.
    """
    from autotune.store.mongo import open_store

    with open_store(store_uri) as opened:
        datasets = opened.datasets
        found = datasets.get(dataset)
        datasets.remove(found)
        datasets.clean()
    click.echo(f"removed {found.name}: {size_text(found.size)}, sha256 {found.sha256}")


@data.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("file", metavar="OUT.h5ad", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--layer", metavar="NAME", help="Layer of IN that holds the raw counts; default: its main matrix.")
def convert(source: Path, file: Path, layer: str | None) -> None:
    """Write the raw counts of IN (.h5ad, .loom, 10x .h5 or 10x folder) to OUT.h5ad, with all that describes cells."""
    from autotune.errors import InputError
    from workers.workloads.cells.conversion import convert as write

    if file.suffix != ".h5ad":
        raise InputError(f"{file} must end in .h5ad")
    n_cells, n_genes = write(source, file, layer)
    click.echo(f"wrote {file}: {n_cells} cells, {n_genes} genes", err=True)


@data.command()
@click.argument("name", metavar="cortex|pbmc|brain_large")
def fetch(name: str) -> None:
    """Fetch a public data set, as `data: {dataset: NAME}` does, and say where it lies."""
    from workers.workloads.cells.named import ensure

    click.echo(str(ensure(name)))


@data.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--cells", default=1500, show_default=True, metavar="N", help="Number of cells.")
@click.option("--genes", default=600, show_default=True, metavar="N", help="Number of genes.")
@click.option("--types", default=5, show_default=True, metavar="N", help="Number of cell types (obs column cell_type).")
@click.option("--donors", default=4, show_default=True, metavar="N", help="Number of donors (obs column donor_id).")
@click.option("--dropout", default=0.2, show_default=True, help="Strength of dropout, 0 to 1.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="The same seed gives the same counts.")
def simulate(file: Path, cells: int, genes: int, types: int, donors: int, dropout: float, seed: int) -> None:
    """Write simulated counts with known cell types to FILE (.h5ad); tables made from them say "simulated"."""
    from autotune.errors import InputError
    from workers.workloads.cells.simulate import simulate_cells

    if file.suffix != ".h5ad":
        raise InputError(f"{file} must end in .h5ad")
    drawn = simulate_cells(cells, genes, types, dropout, seed, n_donors=donors)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.write_h5ad(file, compression="gzip")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from None
    click.echo(f"wrote {file}: {cells} simulated cells, {genes} genes, {types} types, {donors} donors", err=True)


class PushBar:
    """A bar on standard error while a push goes on, where standard output is a terminal and it takes some time.

    Args:
        name: What is pushed.
        shown_after_s: Seconds after which it appears.
    """

    def __init__(self, name: str, shown_after_s: float = SHOWN_AFTER_S) -> None:
        self._name = name
        self._shown_s = time.monotonic() + shown_after_s
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done of what `phase` says."""
        if not sys.stdout.isatty() or time.monotonic() < self._shown_s:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(f"{phase} {self._name}", total=total)
        self._bar.update(self._tasks[phase], completed=done, total=total)


def size_text(size: int) -> str:
    """Return a number of bytes as people say it: ``512 B``, ``24.3 MB``, ``1.2 GB``."""
    if size < 1000:
        return f"{size} B"
    unit, factor = next((u, f) for u, f in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)) if size < 999.5 * f or u == "GB")
    return f"{size / factor:.3g} {unit}"
