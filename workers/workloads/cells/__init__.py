"""Single-cell count data: reading, gene selection, splits, simulation."""

from workers.workloads.cells.prepared import PreparedCells, prepare_cells

__all__ = ["PreparedCells", "prepare_cells"]
