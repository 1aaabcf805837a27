"""The multivariate kind of TPE: kernels over whole configurations instead of one model per parameter.

Each trial of a group of trials is one kernel, a product over the parameters; so is the prior. Candidates are whole
configurations, and the best of them has the largest ratio of the two joint densities. Widths and the kernels of
categories are those of Optuna 5 (``_ParzenEstimator``), see `kernels`. Unlike there the better of the good trials
weigh more: of n in order of loss the i-th, from 0, weighs (n - i) ** focus.

Parameters that are active under the same condition are modelled together, from the trials in which they are, and
apart from those under other conditions (``group=True`` in Optuna).
"""

from __future__ import annotations

import numpy as np

from autotune.search.candidates import Raw
from autotune.search.columns import Array, Ints
from autotune.search.groups import Groups
from autotune.search.kernels import Kernels
from autotune.search.sites import Sites
from autotune.search.table import Table

MOST = 500  # latest bad trials that are kernels


class JointProposer:
    """Proposes decisions from joint densities; the counterpart of `candidates.Proposer`.

    Args:
        table: The trials.
        prior_weight: Weight of the prior relative to one trial.
        sites: Of the table's columns.
        focus: How much more the better of the good trials weigh; 0: all weigh the same.
    """

    def __init__(self, table: Table, prior_weight: float, sites: Sites, focus: float = 0.0) -> None:
        self._table, self._sites, self._columns = table, sites, table.columns
        self._focus = focus
        self.epoch = table.epoch
        self._good_key: bytes | None = None  # rows and ranks that the good kernels are in step with
        self._parts = [
            (
                numeric,
                choices,
                Kernels(table, numeric, choices, prior_weight, sites),
                Kernels(table, numeric, choices, prior_weight, sites),
            )
            for numeric, choices in self._columns.parts()
        ]

    def update(self, groups: Groups) -> None:
        """Bring the densities in step with the groups."""
        bad = np.flatnonzero(groups.bad[: len(self._table)])
        good_key = groups.good.tobytes() + groups.ranks.tobytes()
        known = self._good_key == good_key
        self._good_key = None
        for numeric, choices, good_kernels, bad_kernels in self._parts:
            if not known:
                good = self._active(groups.good, numeric, choices)
                good_kernels.update(good, self._shares(groups, good) if self._focus else None)
            bad_kernels.update(self._active(bad, numeric, choices)[-MOST:])
        self._good_key = good_key

    def _shares(self, groups: Groups, rows: Ints) -> Array:
        """Return what rows of the good group weigh, 1 in the mean."""
        ranks = groups.ranks[np.searchsorted(groups.good, rows)]
        weights: Array = (len(rows) - np.argsort(np.argsort(ranks)).astype(np.float64)) ** self._focus
        return weights * (len(rows) / weights.sum()) if len(rows) else weights

    def _active(self, rows: Ints, numeric: list[int], choices: list[int]) -> Ints:
        """Return those rows in which the parameters of a part are active."""
        columns = self._columns
        label = columns.numeric[numeric[0]].label if numeric else list(columns.choices)[choices[0]]
        if columns.conditions[label] is None:
            return rows
        if numeric:
            return np.asarray(rows[~np.isnan(self._table.places[rows, numeric[0]])])
        return np.asarray(rows[self._table.spots[rows, len(columns.sites) + choices[0]] >= 0])

    def propose(self, count: int, rng: np.random.Generator) -> Raw:
        """Return decisions by label, of all parameters, also of those that turn out not to be active.

        Args:
            count: Number of candidates.
            rng: Random numbers.
        """
        columns = self._columns
        places = np.zeros(len(columns.numeric))
        options = np.zeros(len(columns.choices), dtype=np.int64)
        for numeric, choices, good, bad in self._parts:
            x, chosen = good.draw(count, rng)
            features = good.features(x, chosen)
            best = int((good.log(x, chosen, features) - bad.log(x, chosen, features)).argmax())
            places[numeric], options[choices] = x[best], chosen[best]
        index = places[columns.stepped, None]
        if len(index):
            index = columns.round(index)[0]
        spots = self._sites.spots(places[None, columns.sites])[0]
        return columns.decisions(places, index[:, 0], np.concatenate([spots, options]))
