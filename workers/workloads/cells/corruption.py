"""Counts lost on purpose: the corrupted matrices of the imputation benchmark.

The two kinds are those of scVI of 2019 (``GeneExpressionDataset.corrupt``, commit fe67ff31). Nothing here is dense:
the memory needed beside the corrupted counts is that of a block of entries and of the positions that changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError

Kind = Literal["uniform", "binomial"]
KINDS: tuple[Kind, ...] = ("uniform", "binomial")

_KEPT = 0.9  # uniform: a chosen count stays with this probability and is lost otherwise
_SEEN = 0.2  # binomial: each molecule of a chosen entry is still seen with this probability
_BLOCK = 1 << 22  # stored entries looked at a time
_NUMPY_LIMIT = 10**9  # numpy draws hypergeometric numbers of populations below this only

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """A corrupted matrix, and what it was where it changed.

    Attributes:
        counts: CSR, dtype of the original, shape ``(n_cells, n_genes)``. It shares the arrays of positions with the
            original, so a count that was lost is a stored zero. Read only.
        rows: Cells of the entries whose value changed, shape ``(n_changed,)``; sorted by cell, then gene.
        columns: Their genes.
        original: Their values before.
        n_chosen: Number of entries that were drawn; most of them did not change.
        kind: ``uniform`` or ``binomial``.
        rate: Share of entries that were drawn.
        seed: Seed of the draw.
        sha256: Hash of kind, rate, seed, positions, and values before and after.
    """

    counts: Any
    rows: Positions
    columns: Positions
    original: Floats
    n_chosen: int
    kind: Kind
    rate: float
    seed: int
    sha256: str


def corrupt(counts: Any, kind: Kind, rate: float, seed: int) -> Corruption:
    """Corrupt counts. The same arguments give the same corruption, whatever model is trained on it.

    * ``uniform``: ``floor(rate * n_nonzero)`` of the entries that are not zero are drawn without replacement; each is
      multiplied by a Bernoulli(0.9) variable, so about a tenth of them become 0.
    * ``binomial``: ``floor(rate * n_cells * n_genes)`` of all entries, zeros included, are drawn without replacement;
      a drawn ``x`` becomes Binomial(``x``, 0.2). Zeros stay zero, so how many of the drawn entries are not zero is
      drawn (hypergeometric), and then which.

    `numpy.random.RandomState` is used because its stream is frozen across numpy versions.

    Args:
        counts: Raw counts, CSR, shape ``(n_cells, n_genes)``; not changed.
        kind: ``uniform`` or ``binomial``.
        rate: Share of entries to draw, in 0 .. 1.
        seed: Seed, 0 .. 2^32 - 1.

    Raises:
        DataError: On an unknown kind, or a rate outside 0 .. 1.
    """
    if kind not in KINDS or not 0 <= rate <= 1:
        raise DataError(f"no corruption {kind!r} with rate {rate!r}: use {' or '.join(KINDS)} and a rate in 0 .. 1")
    counts = _canonical(counts)
    n_cells, n_genes = counts.shape
    generator = np.random.RandomState(seed)
    share = Fraction(str(rate))  # as written: floor(0.29 * 100) is 29, which floating point gets wrong
    if kind == "uniform":
        n_chosen = among_nonzero = math.floor(share * counts.nnz)
        change: Callable[..., Floats] = _drop
    else:
        n_chosen = math.floor(share * n_cells * n_genes)
        among_nonzero = hypergeometric(generator, counts.nnz, n_cells * n_genes - counts.nnz, n_chosen)
        change = _thin
    values, changed = _changed(generator, counts.data, among_nonzero, change)
    rows = (np.searchsorted(counts.indptr, changed, side="right") - 1).astype(np.int32)
    columns = counts.indices[changed].astype(np.int32)
    original = counts.data[changed].astype(np.float32)
    return Corruption(
        counts=_with_values(counts, values),
        rows=rows,
        columns=columns,
        original=original,
        n_chosen=n_chosen,
        kind=kind,
        rate=float(rate),
        seed=int(seed),
        sha256=_digest(kind, rate, seed, (rows, columns, original, values[changed].astype(np.float32))),
    )


def hypergeometric(generator: np.random.RandomState, good: int, bad: int, number: int) -> int:
    """Return how many of `number` things drawn without replacement from ``good + bad`` are good.

    For populations beyond what numpy takes, each thing is first drawn on its own with probability
    ``number / (good + bad)``; given how many that gives, they are a draw without replacement, and so they are after
    the few too many are drawn out again, or the few that lack are drawn from the rest. Exact, as numpy's own.

    Args:
        generator: Random numbers.
        good: Number of good things.
        bad: Number of others.
        number: How many are drawn, at most ``good + bad``.
    """
    if number == 0 or good == 0:
        return 0
    if good < _NUMPY_LIMIT and bad < _NUMPY_LIMIT:
        return int(generator.hypergeometric(good, bad, number))
    share = number / (good + bad)
    of_good, of_bad = (int(generator.binomial(size, share)) for size in (good, bad))
    excess = of_good + of_bad - number
    if excess >= 0:
        return of_good - hypergeometric(generator, of_good, of_bad, excess)
    return of_good + hypergeometric(generator, good - of_good, bad - of_bad, -excess)


def _canonical(counts: Any) -> Any:
    """Return the counts sorted, without duplicates or stored zeros; a copy only where that must be done."""
    if counts.has_canonical_format and np.count_nonzero(counts.data) == counts.nnz:
        return counts
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _changed(
    generator: np.random.RandomState, data: Any, number: int, change: Callable[..., Floats]
) -> tuple[Any, npt.NDArray[np.int64]]:
    """Draw `number` of the stored values and change them.

    Returns:
        A copy of the values with the changes, and the sorted positions of those that are different now.
    """
    values = np.array(data)
    found = []
    for start, chosen in _draw(generator, len(data), number):
        before = data[start : start + _BLOCK][chosen]
        after = change(generator, before)
        different = chosen[after != before]
        values[start : start + _BLOCK][different] = after[after != before]
        found.append(start + different)
    return values, np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _draw(generator: np.random.RandomState, size: int, number: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Draw `number` of `size` positions without replacement, block by block.

    Yields:
        Start of a block, and the sorted positions drawn in it, from its start.
    """
    for start in range(0, size, _BLOCK):
        here = min(_BLOCK, size - start)
        share = hypergeometric(generator, here, size - start - here, number)
        yield start, np.sort(generator.permutation(here)[:share])
        number -= share


def _drop(generator: np.random.RandomState, values: Floats) -> Floats:
    """Return the values, each multiplied by a Bernoulli(0.9) variable."""
    return np.where(generator.random_sample(len(values)) < _KEPT, values, 0).astype(values.dtype)


def _thin(generator: np.random.RandomState, values: Floats) -> Floats:
    """Return Binomial(value, 0.2) of each value."""
    return generator.binomial(values.astype(np.int64), _SEEN).astype(values.dtype)


def _with_values(counts: Any, values: Any) -> Any:
    """Return a CSR matrix with other values at the same positions, which are shared, not copied."""
    from scipy import sparse

    made = sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape, copy=False)
    made.has_canonical_format = True
    return made


def _digest(kind: str, rate: float, seed: int, arrays: tuple[Any, ...]) -> str:
    """Return the SHA-256 of what was asked and of the arrays, in one byte order."""
    digest = hashlib.sha256(json.dumps([kind, float(rate), int(seed)]).encode())
    for array in arrays:
        kind_of = "<i4" if array.dtype.kind == "i" else "<f4"
        for start in range(0, len(array), _BLOCK):
            digest.update(array[start : start + _BLOCK].astype(kind_of).tobytes())
    return digest.hexdigest()
