"""The command ``autotune data``: make data to try things with."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Make data to try things with."""


@data.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--cells", default=1500, show_default=True, metavar="N", help="Number of cells.")
@click.option("--genes", default=600, show_default=True, metavar="N", help="Number of genes.")
@click.option("--types", default=5, show_default=True, metavar="N", help="Number of cell types.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Seed of the draw.")
def simulate(file: str, cells: int, genes: int, types: int, seed: int) -> None:
    """Write simulated counts with known cell types to FILE (.h5ad); tables made from it say "simulated"."""
    from workers.workloads.cells.simulate import write_simulated_cells

    path = write_simulated_cells(Path(file), n_cells=cells, n_genes=genes, n_types=types, seed=seed)
    click.echo(f"wrote {path}: {cells} simulated cells, {genes} genes, {types} types", err=True)
