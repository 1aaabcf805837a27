"""``autotune store backup`` and ``restore``: campaigns to a file, and back into a store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import echo_json, format_option, store_option
from autotune.clock import SystemClock

if TYPE_CHECKING:
    from autotune.store.backup import Progress

BAR_AFTER_S = 1.0
"""What takes no longer shows no bar."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--campaign", "campaigns", multiple=True, metavar="NAME", help="Only this campaign; repeatable.")
@click.option("--datasets", is_flag=True, help="Also the datasets that were put into the store (autotune data push).")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@format_option("table", "json")
@store_option
def backup(
    file: Path, campaigns: tuple[str, ...], datasets: bool, overwrite: bool, format_: str, store_uri: str | None
) -> None:
    """Write all campaigns to FILE, as of one moment; they may run meanwhile.

    Trials, reports and the audit go in, users and passwords do not. `autotune store restore FILE` brings them back,
    also into a store on another server.
    """
    from autotune.store.backup import backup as write
    from autotune.store.mongo import open_store

    with open_store(store_uri, prepare=False) as opened, bar() as progress:
        done = write(
            opened, file, campaigns=campaigns, datasets=datasets, overwrite=overwrite, progress=progress,
            warn=lambda line: click.echo(f"warning: {line}", err=True),
        )  # fmt: skip
    if format_ == "json":
        echo_json({"file": str(file), "size": file.stat().st_size, **asdict(done)})
        return
    parts = ", ".join(f"{part.documents} {part.collection}" for part in reversed(done.parts))
    click.echo(f"wrote {file}: {parts}; {file.stat().st_size} bytes, as of {done.taken_at}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--campaign", "campaigns", multiple=True, metavar="NAME", help="Only this campaign; repeatable.")
@format_option("table", "json")
@store_option
def restore(file: Path, campaigns: tuple[str, ...], format_: str, store_uri: str | None) -> None:
    """Write the campaigns of backup FILE into a store that has none of their names.

    The whole file is checked before the first write. Where it was interrupted, the same command completes it. Running
    campaigns then need a coordinator: `autotune resume NAME`.
    """
    from autotune.local.follow import who
    from autotune.store.mongo import open_store
    from autotune.store.restore import restore as write

    with open_store(store_uri) as opened, bar() as progress:
        done = write(opened, file, campaigns=campaigns, who=who(), progress=progress)
        running = [n for n in done.campaigns if opened.campaigns.get(n).state == "running"]
    if not done.manifest.consistent:
        click.echo("warning: this backup shows its collections as of different moments", err=True)
    if format_ == "json":
        echo_json({key: value for key, value in asdict(done).items() if key != "manifest"})
        return
    if done.already:
        click.echo(f"restored before, left as they are: {', '.join(done.already)}")
    written = f"{', '.join(done.campaigns) or 'nothing'} ({done.trials} trials, {done.datasets} datasets)"
    click.echo(f"restored {written} as of {done.manifest.taken_at}")
    for name in running:
        click.echo(f"go on with: autotune resume {name}")


@contextmanager
def bar() -> Iterator[Progress | None]:
    """Give a callback that shows a bar on standard error; None where standard output is no terminal."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    clock = SystemClock()
    started_s, tasks = clock.monotonic_s(), dict[str, Any]()
    shown = Bar(console=Console(stderr=True), transient=True)

    def update(what: str, done: int, total: int) -> None:
        if clock.monotonic_s() - started_s < BAR_AFTER_S:
            return
        if not tasks:
            shown.start()
        if what not in tasks:
            tasks[what] = shown.add_task(what)
        shown.update(tasks[what], completed=done, total=total)

    try:
        yield update
    finally:
        shown.stop()
