"""Neighbours in order of place: what is kept while trials come and go is what sorting anew gives."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.search import ranking
from autotune.search.columns import Array, Ints
from autotune.search.ranking import Ranking


def sorted_widths(places: Array, finest: float) -> Array:
    """Return the larger distance to the neighbours in stable order, a column at a time."""
    found = np.zeros_like(places)
    for column, values in enumerate(places):
        order = sorted(range(len(values)), key=lambda k: (values[k], k))
        for at, k in enumerate(order):
            gaps = [abs(values[k] - values[order[j]]) for j in (at - 1, at + 1) if 0 <= j < len(order)]
            found[column, k] = max(gaps) if gaps else abs(values[k]) + 0.5
    return np.clip(found, finest, 1.0)


@pytest.mark.parametrize("values", [3, 20, 10_000])
@pytest.mark.parametrize("seed", range(8))
def test_neighbours_are_those_of_a_new_order(monkeypatch: pytest.MonkeyPatch, seed: int, values: int) -> None:
    """Trials slide, leave and join anywhere, also at both ends, with many equal places and with few; each that has
    other neighbours is named."""
    monkeypatch.setattr(ranking, "_FEW", 6)
    rng = np.random.default_rng(seed)
    kept, places = Ranking(4), np.zeros((4, 0))
    changes = 0
    for _ in range(300):
        n = places.shape[1]
        known = kept.widths(places, 0.0) if n else places
        fresh = rng.integers(0, values, (4, int(rng.integers(0, 3)))) / values - 0.5
        if n < 3 or rng.random() < 0.6:
            gone = int(rng.integers(0, min(n, 3))) if n + fresh.shape[1] > 3 else 0
            to: Ints = np.arange(n) - gone
            places = np.concatenate([places[:, gone:], fresh], axis=1)
            met = kept.slide(gone, places)
        else:
            out = rng.choice(n, int(rng.integers(0, 3)) if n > 4 else 0, replace=False)
            stays = np.setdiff1d(np.arange(n), out)
            after = len(stays) + fresh.shape[1]
            new = np.sort(rng.choice(after, fresh.shape[1], replace=False))
            to = np.full(n, -1)
            to[stays] = np.setdiff1d(np.arange(after), new)
            joined = np.zeros((4, after))
            joined[:, to[stays]], joined[:, new] = places[:, stays], fresh
            places = joined
            met = kept.change(to, places)
        widths = kept.widths(places, 0.0)
        assert np.array_equal(widths, sorted_widths(places, 0.0))
        if met is not None:
            changes += 1
            old = np.full(places.shape, np.nan)
            old[:, to[to >= 0]] = known[:, to >= 0]
            old[met] = widths[met]
            assert np.array_equal(old, widths)
            assert np.array_equal(kept.widths(places, 0.0, *met), widths[met])
    assert changes > 200
