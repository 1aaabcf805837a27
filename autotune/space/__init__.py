"""Search spaces: parameter kinds, configurations, and reading of hyperopt and Ray Tune definitions."""

from __future__ import annotations

from autotune.space.choices import Choice, Const, Nested
from autotune.space.definition import parse_space
from autotune.space.floats import Float, LogFloat, LogNormal, Normal
from autotune.space.integers import Int, LogInt
from autotune.space.numeric import Numeric, Parameter
from autotune.space.space import Space
from autotune.space.walks import Leaf

__all__ = [
    "Choice",
    "Const",
    "Float",
    "Int",
    "Leaf",
    "LogFloat",
    "LogInt",
    "LogNormal",
    "Nested",
    "Normal",
    "Numeric",
    "Parameter",
    "Space",
    "parse_space",
]
