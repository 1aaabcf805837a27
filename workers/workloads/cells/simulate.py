"""Simulated counts with known cell types, for tests and first steps. Not data: the file says so itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError

_CHUNK = 4096  # cells drawn at a time
_DEPTH = 3.0  # mean counts per cell and gene, before dropout

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def simulate_cells(
    n_cells: int = 1500,
    n_genes: int = 600,
    n_types: int = 5,
    dropout: float = 0.2,
    seed: int = 0,
    *,
    n_donors: int = 4,
) -> Any:
    """Draw counts of known cell types.

    Counts are gamma-Poisson (negative binomial with variance ``mu + mu^2 / theta``) with log-normal library
    sizes, a dispersion ``theta`` per gene, marker genes per type, a log-normal batch effect per donor and gene,
    and dropout of ``dropout * exp(-mu / median(mu))``: lowly expressed genes are lost more often.

    Args:
        n_cells: Number of cells, at least `n_types`.
        n_genes: Number of genes, at least 2 per type.
        n_types: Number of cell types.
        dropout: Chance in [0, 1] that a gene without expression is not seen.
        seed: Seed; the same arguments give the same counts.
        n_donors: Number of donors; each cell has one.

    Returns:
        AnnData, ``X`` CSR float32 of shape ``(n_cells, n_genes)``; ``obs`` has ``cell_type`` and ``donor_id``,
        ``var`` has ``marker_of``, ``uns["autotune_simulated"]`` is True.

    Raises:
        DataError: If the numbers do not fit together.
    """
    import anndata
    import pandas

    if n_types < 1 or n_donors < 1 or n_cells < n_types or n_genes < 2 * n_types or not 0 <= dropout <= 1:
        raise DataError(
            "simulate_cells needs n_cells >= n_types >= 1, n_genes >= 2 n_types, n_donors >= 1 and dropout in 0..1"
        )
    rng = np.random.default_rng(seed)
    profile, marker_of = _profiles(rng, n_genes, n_types)
    effect = np.exp(rng.normal(0.0, 0.15, size=(n_donors, n_genes)))
    types = np.concatenate([np.arange(n_types), rng.choice(n_types, n_cells - n_types, p=_shares(rng, n_types))])
    rng.shuffle(types)
    donors = rng.integers(n_donors, size=n_cells)
    counts = _counts(rng, profile, effect, types, donors, dropout)
    obs = pandas.DataFrame(
        {
            "cell_type": pandas.Categorical([f"type_{t}" for t in types]),
            "donor_id": pandas.Categorical([f"donor_{d}" for d in donors]),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    var = pandas.DataFrame({"marker_of": marker_of}, index=[f"gene_{i}" for i in range(n_genes)])
    return anndata.AnnData(X=counts, obs=obs, var=var, uns={"autotune_simulated": True})


def _counts(
    rng: np.random.Generator, profile: Floats, effect: Floats, types: Codes, donors: Codes, dropout: float
) -> Any:
    """Return counts, CSR float32, shape ``(n_cells, n_genes)``.

    Args:
        rng: Random numbers.
        profile: Expression shares per type, shape ``(n_types, n_genes)``.
        effect: Factors per donor, shape ``(n_donors, n_genes)``.
        types: Type of each cell, shape ``(n_cells,)``.
        donors: Donor of each cell, shape ``(n_cells,)``.
        dropout: Chance that a gene without expression is not seen.
    """
    from scipy import sparse

    n_cells, n_genes = len(types), profile.shape[1]
    theta = 0.5 + rng.gamma(2.0, 1.0, size=n_genes)
    library = np.exp(rng.normal(np.log(_DEPTH * n_genes), 0.35, size=n_cells))
    typical = float(np.median(profile)) * _DEPTH * n_genes
    blocks = []
    for start in range(0, n_cells, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n_cells))
        share = profile[types[rows]] * effect[donors[rows]]
        mean = library[rows, None] * share / share.sum(axis=1, keepdims=True)
        counts = rng.poisson(rng.gamma(theta, mean / theta))
        counts[rng.random(counts.shape) < dropout * np.exp(-mean / typical)] = 0
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
    return sparse.csr_matrix(sparse.vstack(blocks))


def _profiles(rng: np.random.Generator, n_genes: int, n_types: int) -> tuple[Floats, list[str]]:
    """Return expression shares, shape ``(n_types, n_genes)``, rows sum to 1, and the type each gene marks."""
    base = np.exp(rng.normal(0.0, 1.0, size=n_genes))
    profile = np.tile(base, (n_types, 1))
    per_type = max(1, n_genes // (5 * n_types))
    markers = rng.permutation(n_genes)[: per_type * n_types].reshape(n_types, per_type)
    marker_of = ["none"] * n_genes
    for kind, genes in enumerate(markers):
        profile[kind, genes] *= np.exp(rng.normal(1.5, 0.4, size=per_type))
        for gene in genes:
            marker_of[gene] = f"type_{kind}"
    return profile / profile.sum(axis=1, keepdims=True), marker_of


def _shares(rng: np.random.Generator, n_types: int) -> Floats:
    """Return shares of the types, shape ``(n_types,)``, none very rare."""
    shares = rng.dirichlet(np.full(n_types, 5.0))
    return np.asarray((shares + 0.05) / (shares + 0.05).sum())
