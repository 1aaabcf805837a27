"""Textbook functions, and two with mixed and conditional parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from search_tasks.base import Task

_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(p: Mapping[str, Any]) -> float:
    """Return Hartmann's function of 6 parameters; best -3.32237."""
    x = np.array([p[f"x{i}"] for i in range(6)])
    return float(-_ALPHA @ np.exp(-(_A * (x - _P) ** 2).sum(axis=1)))


def branin(p: Mapping[str, Any]) -> float:
    """Return Branin's function; best 0.397887."""
    x, y = p["x"], p["y"]
    b, c, t = 5.1 / (4 * math.pi**2), 5 / math.pi, 1 / (8 * math.pi)
    return float((y - b * x * x + c * x - 6) ** 2 + 10 * (1 - t) * math.cos(x) + 10)


def rosenbrock4(p: Mapping[str, Any]) -> float:
    """Return the logarithm of 1 + Rosenbrock's function of 4 parameters; best 0."""
    x = [p[f"x{i}"] for i in range(4)]
    return math.log1p(sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x)))


def ackley8(p: Mapping[str, Any]) -> float:
    """Return Ackley's function of 8 parameters; best 0."""
    x = np.array(list(p.values()))
    return float(20 + math.e - 20 * np.exp(-0.2 * np.sqrt(np.mean(x * x))) - np.exp(np.mean(np.cos(2 * math.pi * x))))


def training(p: Mapping[str, Any]) -> float:
    """Return a made-up validation loss with logarithmic, whole-number and categorical parameters that interact."""
    width, rate = math.log2(p["width"] / 128) / 4, math.log10(p["rate"]) + 3
    loss = 0.5 * (rate + 0.5 * width) ** 2 + 0.2 * width**2 + 0.05 * abs(p["layers"] - 3) + (p["dropout"] - 0.2) ** 2
    return float(loss + {"nb": 0.0, "zinb": 0.05, "poisson": 0.3}[p["loss"]] + 0.02 * abs(p["latent"] - 20) / 10)


def conditional(p: Mapping[str, Any]) -> float:
    """Return the loss of one of two made-up models, each with its own parameters."""
    m = p["model"]
    common = 0.2 * (math.log10(p["rate"]) + 2.5) ** 2
    if m["kind"] == "linear":
        return float(0.3 + 0.05 * (math.log10(m["l2"]) + 2) ** 2 + common)
    return float(0.1 * (math.log2(m["width"]) - 8) ** 2 + 0.05 * (m["depth"] - 4) ** 2 + common)


def function_tasks() -> list[Task]:
    """Return the functions."""
    spaces: dict[Any, dict[str, Any]] = {
        hartmann6: {f"x{i}": {"float": [0, 1]} for i in range(6)},
        branin: {"x": {"float": [-5, 10]}, "y": {"float": [0, 15]}},
        rosenbrock4: {f"x{i}": {"float": [-2, 2]} for i in range(4)},
        ackley8: {f"x{i}": {"float": [-10, 20]} for i in range(8)},
        training: {
            "width": {"log_int": [16, 1024]},
            "rate": {"log_float": [1e-5, 1e-1]},
            "layers": {"int": [1, 6]},
            "dropout": {"float": [0, 0.8]},
            "loss": {"choice": ["zinb", "nb", "poisson"]},
            "latent": {"int": [5, 50]},
        },
        conditional: {
            "model": {
                "choice": [
                    {"kind": "linear", "l2": {"log_float": [1e-5, 1]}},
                    {"kind": "deep", "width": {"log_int": [16, 1024]}, "depth": {"int": [1, 10]}},
                ]
            },
            "rate": {"log_float": [1e-5, 1e-1]},
        },
    }
    return [Task(name=f.__name__, family="function", space=space, loss=f) for f, space in spaces.items()]
