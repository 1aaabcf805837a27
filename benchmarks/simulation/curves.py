"""Learning curves to run schedules over: recorded ones, or made up ones that cross."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and how unequal trials are.

    Attributes:
        fails: Share of trials that fail at some epoch.
        nan: Share of trials whose loss is not a number from some epoch on.
        lost: Share of attempts that are lost with their worker on the way.
        spread: Standard deviation of the logarithm of a trial's speed.
        stragglers: Share of trials that take `straggling` times as long.
        straggling: How many times as long.
    """

    fails: float = 0.0
    nan: float = 0.0
    lost: float = 0.0
    spread: float = 0.3
    stragglers: float = 0.0
    straggling: float = 10.0


QUIET = Faults()
ROUGH = Faults(fails=0.05, nan=0.03, lost=0.02, spread=0.5, stragglers=0.02)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One configuration's training as it would go.

    Attributes:
        losses: Loss after epoch 1, 2, ...
        epoch_s: Seconds that an epoch takes.
        fails_at: The epoch at whose end it fails, or None.
    """

    losses: Sequence[float]
    epoch_s: float
    fails_at: int | None = None


def synthetic(count: int, maximum: int, seed: int) -> np.ndarray:
    """Return made up curves, (count, maximum): power laws with a delay and noise.

    Fast learners end no better than slow ones on average, so curves cross; one in eight hardly learns at all.
    """
    rng = np.random.default_rng([seed, 1])
    epochs = np.arange(1, maximum + 1)
    end = 0.2 + rng.gamma(2.0, 0.25, count)
    height = 2.0 + rng.normal(0.0, 0.2, count)
    power = rng.uniform(0.3, 1.6, count)
    delay = np.where(rng.random(count) < 0.2, rng.uniform(0, maximum / 8, count), 0.0)
    flat = rng.random(count) < 0.125
    learned = (1.0 + np.maximum(0.0, epochs[None, :] - delay[:, None])) ** -power[:, None]
    learned[flat] = 0.9 + 0.1 * learned[flat]
    noise = rng.normal(0.0, 0.02, (count, maximum)) * (0.3 + learned)
    return end[:, None] + (height - end)[:, None] * learned + noise


def recorded(path: Path, count: int, maximum: int, seed: int) -> np.ndarray:
    """Return recorded curves, (count, maximum), drawn with replacement where more are asked for than there are.

    Args:
        path: JSON with ``curves``: lists of losses after epoch 1, 2, ...; null where a loss was not a number. Shorter
            ones end with their last value.
        count: How many are needed.
        maximum: How many epochs are needed.
        seed: Seed of the draw.
    """
    curves = json.loads(path.read_text())["curves"]
    whole = [[math.nan if v is None else v for v in c][:maximum] for c in curves]
    table = np.array([c + [c[-1]] * (maximum - len(c)) for c in whole])
    rng = np.random.default_rng([seed, 2])
    chosen = rng.permutation(len(table))
    return table[np.concatenate([chosen, rng.integers(0, len(table), max(0, count - len(table)))])[:count]]


def trainings(curves: np.ndarray, faults: Faults, seed: int, epoch_s: float = 20.0) -> list[Training]:
    """Return the trainings of a campaign: curves with faults and speeds."""
    rng = np.random.default_rng([seed, 3])
    count, maximum = curves.shape
    curves = curves.copy()
    for row in np.flatnonzero(rng.random(count) < faults.nan):
        curves[row, rng.integers(0, maximum) :] = math.nan
    fails = np.where(rng.random(count) < faults.fails, rng.integers(1, maximum + 1, count), 0)
    speed = rng.lognormal(0.0, faults.spread, count)
    speed *= np.where(rng.random(count) < faults.stragglers, faults.straggling, 1.0)
    return [
        Training(losses=losses, epoch_s=float(epoch_s * s), fails_at=int(f) or None)
        for losses, s, f in zip(curves.tolist(), speed, fails, strict=True)
    ]
