"""The papers' procedures for one configuration at a time, apart from the package's code: what one slot has to do."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor

from benchmarks.simulation.curves import Training

Step = tuple[str, int, int]
"""("propose" or "promote", number of the trial, resource)."""


def hyperband(trainings: Sequence[Training], maximum: int, eta: int) -> list[Step]:
    """Hyperband's Algorithm 1, repeated; whole cycles only (ranks by (loss, number))."""
    s_max = 0
    while eta ** (s_max + 1) <= maximum:
        s_max += 1
    steps: list[Step] = []
    number = 0
    while number < len(trainings):
        for s in reversed(range(s_max + 1)):
            n = ceil(Fraction((s_max + 1) * eta**s, s + 1))
            members = list(range(number, number + n))
            number += n
            for i in range(s + 1):
                resource = maximum // eta ** (s - i)
                steps += [("promote" if i else "propose", m, resource) for m in members]
                ranked = sorted((trainings[m].losses[resource - 1], m) for m in members)
                members = [m for _, m in ranked[: floor(Fraction(n, eta ** (i + 1)))]]
    return steps


def asha(trainings: Sequence[Training], maximum: int, eta: int) -> list[Step]:
    """ASHA's Algorithm 2 with one worker, until all trials have begun and nobody is promotable."""
    levels = [1]
    while levels[-1] * eta <= maximum:
        levels.append(levels[-1] * eta)
    rungs: list[list[tuple[float, int]]] = [[] for _ in levels]
    promoted: list[set[int]] = [set() for _ in levels]
    steps: list[Step] = []
    begun = 0
    while True:
        for k in reversed(range(len(levels) - 1)):
            top = sorted(rungs[k])[: len(rungs[k]) // eta]
            able = [m for _, m in top if m not in promoted[k]]
            if able:
                promoted[k].add(able[0])
                step, rung = ("promote", able[0], levels[k + 1]), k + 1
                break
        else:
            if begun == len(trainings):
                return steps
            step, rung, begun = ("propose", begun, levels[0]), 0, begun + 1
        steps.append(step)
        rungs[rung].append((trainings[step[1]].losses[step[2] - 1], step[1]))
