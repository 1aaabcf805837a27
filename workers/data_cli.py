"""The command ``autotune data``: make data to try things with."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Make data to try things with."""


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
