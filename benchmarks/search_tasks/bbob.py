"""COCO's bbob-mixint: 24 functions of which four in five parameters are whole numbers (pip: coco-experiment)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_tasks.base import Task

DIMENSIONS = (5, 10)
INSTANCE = 1


class _Problem:
    """One function, opened where it is first asked: problems do not travel between processes."""

    def __init__(self, number: int, dimension: int) -> None:
        self._key = number, dimension
        self._problem: Any = None

    def open(self) -> Any:
        """Return COCO's problem."""
        if self._problem is None:
            import cocoex

            number, dimension = self._key
            suite = cocoex.Suite("bbob-mixint", "", f"function_indices:{number} dimensions:{dimension}"
                                 f" instance_indices:{INSTANCE}")  # fmt: skip
            self._suite, self._problem = suite, suite[0]
        return self._problem

    def __getstate__(self) -> dict[str, Any]:
        return {"_key": self._key, "_problem": None}

    def __call__(self, params: Mapping[str, Any]) -> float:
        return float(self.open()([float(v) for v in params.values()]))


def bbob_tasks() -> list[Task]:
    """Return all functions in both dimensions; none without coco-experiment."""
    try:
        import cocoex  # noqa: F401
    except ModuleNotFoundError:
        return []
    tasks = []
    for dimension in DIMENSIONS:
        for number in range(1, 25):
            problem = _Problem(number, dimension)
            opened = problem.open()
            space: dict[str, Any] = {}
            for i, (low, high) in enumerate(zip(opened.lower_bounds, opened.upper_bounds, strict=True)):
                whole = i < opened.number_of_integer_variables
                space[f"x{i:02}"] = {"int": [int(low), int(high)]} if whole else {"float": [float(low), float(high)]}
            name = f"f{number:02}-{dimension}d"
            tasks.append(Task(name=name, family="bbob-mixint", space=space, loss=problem))
    return tasks
