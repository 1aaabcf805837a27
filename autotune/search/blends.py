"""Configurations between two others, each parameter on the scale of its prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autotune.space import Choice, Float, Int, LogFloat, LogInt, LogNormal, Numeric, Space

_COUNT = 48


def blends(
    space: Space, start: Mapping[str, Any], anchors: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> list[dict[str, int | float]]:
    """Return 48 configurations on the way from ``start`` to random anchors, in order of the way gone.

    Half of them move in all numeric parameters, the others in each with probability one half. A choice takes the
    anchor's option with a probability that grows along the way. All configurations are decisions by label.
    """
    leaves = space.leaves()
    made = []
    for way in np.linspace(0.0, 1.0, _COUNT + 1)[1:]:
        anchor = anchors[int(rng.integers(len(anchors)))]
        all_move = rng.random() < 0.5
        raw: dict[str, int | float] = {}
        for label, leaf in leaves.items():
            chance = rng.random()
            if leaf.condition is not None and raw.get(leaf.condition[0]) != leaf.condition[1]:
                continue
            if label not in start or label not in anchor:
                raw[label] = start[label] if label in start else anchor[label]
            elif isinstance(leaf.parameter, Numeric):
                gone = float(way) if all_move or chance < 0.5 else 0.0
                raw[label] = between(leaf.parameter, start[label], anchor[label], gone)
            elif isinstance(leaf.parameter, Choice):
                raw[label] = anchor[label] if chance < way else start[label]
        made.append(raw)
    return made


def between(parameter: Numeric, start: float, end: float, way: float) -> int | float:
    """Return the allowed value nearest to ``way`` (0 to 1) of the way from one value to another.

    The way is straight on the logarithm for the log kinds (from a positive value to a positive one), else on the
    value.
    """
    if isinstance(parameter, LogFloat | LogInt | LogNormal) and start > 0 and end > 0:
        value = math.exp((1.0 - way) * math.log(start) + way * math.log(end))
    else:
        value = (1.0 - way) * start + way * end
    if not parameter.quantised:
        return parameter.nearest(value)
    step = float(getattr(parameter, "step", None) or 1.0)
    if isinstance(parameter, Int | Float):
        return parameter.nearest((value - parameter.low) / step)
    return parameter.nearest(value / step)
