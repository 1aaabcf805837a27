"""What a training's end means: its return value as a result, its exception as a cause."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autotune.errors import AutotuneError, ObjectiveError, nearest
from autotune.trial import Cause, Failure, Result
from workers import reporting

_OOM_MARKS = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")


def as_result(returned: Any, metric: str) -> Result:
    """Return what an objective returned as a result.

    Args:
        returned: A number, a mapping, or `reporting.Result`.
        metric: Name of the campaign's metric.

    Raises:
        ObjectiveError: If the metric is not in it, or something in it is not plain.
        FloatingPointError: If the metric is not a finite number.
    """
    metrics: dict[str, dict[str, Any]]
    if isinstance(returned, reporting.Result):
        metrics = {
            name: {k: _plain(f"{name}.{k}", v) for k, v in asdict(m).items() if v is not None}
            for name, m in returned.metrics.items()
        }
        facts = {name: _plain(name, value) for name, value in returned.facts.items()}
    elif isinstance(returned, Mapping):
        metrics, facts = {}, {}
        for name, value in returned.items():
            plain = _plain(str(name), value)
            if isinstance(plain, int | float) and not isinstance(plain, bool):
                metrics[str(name)] = {"value": float(plain)}
            else:
                facts[str(name)] = plain
    else:
        try:
            metrics, facts = {metric: {"value": reporting.as_float("what the objective returned", returned)}}, {}
        except TypeError as error:
            raise ObjectiveError(f"{error}; return a number, or a dict with '{metric}'") from None
    for name in [*metrics, *facts]:
        if not name or "." in name or name.startswith("$") or "\0" in name:
            raise ObjectiveError(f"the objective returned the name {name!r}; names are text without '.' or a leading '$'")
    if metric not in metrics:
        raise ObjectiveError(f"the objective returned no metric '{metric}'{nearest(metric, metrics)}")
    score = float(metrics[metric]["value"])
    if not math.isfinite(score):
        raise FloatingPointError(f"{metric} is {score}")
    return Result(score=score, metrics=metrics, facts=facts)


def _plain(name: str, value: Any) -> Any:
    """Return a value as plain JSON; NumPy and torch scalars become numbers."""
    if hasattr(value, "item") and not isinstance(value, int | float | str):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise ObjectiveError(f"the objective returned an array as '{name}'; return numbers or plain JSON") from None
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise ObjectiveError(
            f"the objective returned a {type(value).__name__} as '{name}'; return numbers or plain JSON"
        ) from None


def as_failure(error: BaseException) -> Failure:
    """Return the cause, message and traceback of an exception that ended a training."""
    text = " ".join(str(error).split())
    message = text if isinstance(error, AutotuneError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return Failure(cause=_cause(error), message=message, traceback="".join(traceback.format_exception(error)))


def _cause(error: BaseException) -> Cause:
    if isinstance(error, reporting.TrialStopped):
        return Cause.STOPPED
    if isinstance(error, FloatingPointError):
        return Cause.NOT_A_NUMBER
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Cause.OUT_OF_MEMORY
    if isinstance(error, RuntimeError | OSError) and any(mark in str(error).lower() for mark in _OOM_MARKS):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, TimeoutError):
        return Cause.TIMEOUT
    return Cause.ERROR
