"""Objectives of which 40% of the space fails (one: 5%, at random), each with a known best feasible value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOAT = {"float": [0, 1]}
CORNER = 1 - math.sqrt(0.4)  # both of two parameters above it: 40%
PRODUCT = 0.2524804795257086  # x * y above it: 1 - c + c ln c = 0.4
THIN = 1 - 0.4 / 0.9


@dataclass(frozen=True, kw_only=True)
class Task:
    """An objective with failures.

    Attributes:
        about: What fails, and where the best feasible configuration lies.
        space: Definition of the space.
        fails: Whether a configuration fails.
        loss: Value of one that does not; smaller is better.
        best: Smallest feasible loss (or its infimum).
    """

    about: str
    space: Mapping[str, Any]
    fails: Callable[[Mapping[str, Any]], bool]
    loss: Callable[[Mapping[str, Any]], float]
    best: float


def _slab_fails(p: Mapping[str, Any]) -> bool:
    return bool(p["x"] >= 0.6)


def _slab_loss(p: Mapping[str, Any]) -> float:
    return float((1 - p["x"]) + (p["y"] - 0.3) ** 2 + 0.5 * (p["z"] - 0.7) ** 2)


def _corner_fails(p: Mapping[str, Any]) -> bool:
    return bool(p["x"] > CORNER and p["y"] > CORNER)


def _corner_loss(p: Mapping[str, Any]) -> float:
    return float((p["x"] - 0.9) ** 2 + 2 * (p["y"] - 0.7) ** 2 + 0.5 * (p["z"] - 0.5) ** 2)


def _product_fails(p: Mapping[str, Any]) -> bool:
    return bool(p["x"] * p["y"] > PRODUCT)


def _product_loss(p: Mapping[str, Any]) -> float:
    return float(1 - p["x"] + 1.5 * (1 - p["y"]) + (p["z"] - 0.4) ** 2)


def _option_fails(p: Mapping[str, Any]) -> bool:
    return bool(p["c"] in ("u", "v") and p["x"] > 0.2)


OPTION_OFFSET = {"u": 0.0, "v": 0.3, "w": 0.5, "t": 0.4}


def _option_loss(p: Mapping[str, Any]) -> float:
    return float(OPTION_OFFSET[p["c"]] + (p["x"] - 0.3) ** 2 + (p["z"] - 0.6) ** 2)


def _thin_fails(p: Mapping[str, Any]) -> bool:
    return bool(p["x"] > THIN and p["y"] > 0.1)


def _thin_loss(p: Mapping[str, Any]) -> float:
    return float((1 - p["x"]) + 0.3 * (1 - p["y"]) + 0.3 * (p["z"] - 0.5) ** 2)


def _scattered_fails(p: Mapping[str, Any]) -> bool:
    return int(p["x"] * 1e9) % 20 == 0


def _scattered_loss(p: Mapping[str, Any]) -> float:
    return float((p["x"] - 0.7) ** 2 + (p["y"] - 0.2) ** 2 + (p["z"] - 0.5) ** 2)


SCVI_SPACE = {
    "n_layers": {"int": [1, 4]},
    "n_hidden": {"log_int": [32, 1024]},
    "n_latent": {"int": [5, 50]},
    "batch_size": {"log_int": [64, 2048]},
    "lr": {"log_float": [1e-4, 1e-2]},
    "likelihood": {"choice": ["nb", "zinb", "poisson"]},
}


def scvi_memory(p: Mapping[str, Any]) -> float:
    """Return the memory of a made-up training, in MB: weights with their moments, and activations."""
    heads = {"nb": 1, "zinb": 2, "poisson": 1}[p["likelihood"]]
    weights = 2000 * p["n_hidden"] * (1 + heads) + 2 * (p["n_layers"] - 1) * p["n_hidden"] ** 2
    activations = p["batch_size"] * (2 * p["n_layers"] * p["n_hidden"] + p["n_latent"] + 2000 * (1 + heads))
    return float((16 * weights + 12 * activations) / 1e6)


SCVI_LIMIT_MB = 68.0


def _scvi_fails(p: Mapping[str, Any]) -> bool:
    return scvi_memory(p) > SCVI_LIMIT_MB


def _scvi_loss(p: Mapping[str, Any]) -> float:
    width = math.log2(p["n_hidden"] / 1024) / 5  # -1 .. 0
    return float(
        0.6 * width**2
        + 0.05 * (p["n_layers"] - 2) ** 2
        + 0.3 * ((p["n_latent"] - 25) / 45) ** 2
        + 0.2 * (math.log2(p["batch_size"] / 256) / 5) ** 2
        + 0.6 * (math.log10(p["lr"]) + 3) ** 2
        + {"nb": 0.05, "zinb": 0.0, "poisson": 0.3}[p["likelihood"]]
    )


CONDITIONAL_SPACE = {
    "model": {
        "choice": [
            {"kind": "linear", "l2": {"log_float": [1e-4, 1]}},
            {"kind": "deep", "depth": {"int": [1, 8]}, "width": {"log_int": [16, 1024]}},
        ],
        "weights": [0.3, 0.7],
    },
    "rate": {"log_float": [1e-4, 1e-1]},
}
CONDITIONAL_LIMIT = 11.76


def conditional_size(p: Mapping[str, Any]) -> float:
    """Return ``log2(depth * width ** 1.5)`` of a deep model, minus infinity for a linear one."""
    m = p["model"]
    return math.log2(m["depth"] * m["width"] ** 1.5) if m["kind"] == "deep" else -math.inf


def _conditional_fails(p: Mapping[str, Any]) -> bool:
    return conditional_size(p) > CONDITIONAL_LIMIT


def _conditional_loss(p: Mapping[str, Any]) -> float:
    m = p["model"]
    rate = 0.3 * (math.log10(p["rate"]) + 2.5) ** 2
    if m["kind"] == "linear":
        return float(0.6 + 0.05 * (math.log10(m["l2"]) + 2) ** 2 + rate)
    return float(0.5 * (math.log2(m["width"] / 1024) / 6) ** 2 + 0.3 * ((m["depth"] - 6) / 7) ** 2 + rate)


def _best_scvi() -> float:
    """Search the border: given the other two, the loss falls with the width up to the largest that fits."""
    return min(
        _scvi_loss(p)
        for n_layers in range(1, 5)
        for batch_size in range(64, 2049, 4)
        for likelihood in ("nb", "zinb")
        for p in [_widest(n_layers, batch_size, likelihood)]
        if not _scvi_fails(p)
    )


def _widest(n_layers: int, batch_size: int, likelihood: str) -> dict[str, Any]:
    p = {"n_layers": n_layers, "batch_size": batch_size, "likelihood": likelihood, "n_latent": 25, "lr": 1e-3}
    low, high = 32, 1024
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if _scvi_fails(p | {"n_hidden": middle}) else (middle, high)
    return p | {"n_hidden": low}


def _best_conditional() -> float:
    models = ({"kind": "deep", "depth": d, "width": w} for d in range(1, 9) for w in range(16, 1025))
    points = ({"model": m, "rate": 10**-2.5} for m in models)
    return min(_conditional_loss(p) for p in points if not _conditional_fails(p))


XYZ = {"x": FLOAT, "y": FLOAT, "z": FLOAT}
TASKS = {
    "slab": Task(
        about="x >= 0.6 fails; the best is at the border",
        space=XYZ,
        fails=_slab_fails,
        loss=_slab_loss,
        best=0.4,
    ),
    "corner": Task(
        about="x and y both above 0.368 fail; the optimum without failures lies inside, the best at the border",
        space=XYZ,
        fails=_corner_fails,
        loss=_corner_loss,
        best=2 * (0.7 - CORNER) ** 2,
    ),
    "product": Task(
        about="x * y > 0.252 fails; the best is where the border meets y = 1",
        space=XYZ,
        fails=_product_fails,
        loss=_product_loss,
        best=1 - PRODUCT,
    ),
    "option": Task(
        about="options u and v of four fail with x > 0.2; the best is u at the border, in 5% of the space",
        space={"c": {"choice": ["u", "v", "w", "t"]}, "x": FLOAT, "z": FLOAT},
        fails=_option_fails,
        loss=_option_loss,
        best=0.01,
    ),
    "thin": Task(
        about="x > 0.556 fails unless y <= 0.1; the best is the end of that thin strip, x = 1, y = 0.1",
        space=XYZ,
        fails=_thin_fails,
        loss=_thin_loss,
        best=0.27,
    ),
    "scvi": Task(
        about="six mixed parameters; memory of weights and activations above 68 MB fails; the best is at the border",
        space=SCVI_SPACE,
        fails=_scvi_fails,
        loss=_scvi_loss,
        best=_best_scvi(),
    ),
    "conditional": Task(
        about="a linear or a deep model; depth * width ** 1.5 above 2 ** 11.76 fails; the best is deep, at the border",
        space=CONDITIONAL_SPACE,
        fails=_conditional_fails,
        loss=_conditional_loss,
        best=_best_conditional(),
    ),
    "scattered": Task(
        about="not 40%: 5% fail without any pattern that can be learned",
        space=XYZ,
        fails=_scattered_fails,
        loss=_scattered_loss,
        best=0.0,
    ),
}
