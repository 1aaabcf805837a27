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

MAX_FACTS_CHARS = 1_000_000
MAX_MESSAGE_CHARS = 2_000
MAX_TRACEBACK_CHARS = 100_000
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
    if isinstance(returned, reporting.Result):
        metrics, facts = _of_result(returned)
    elif isinstance(returned, Mapping):
        metrics, facts = _of_mapping(returned, metric)
    else:
        try:
            metrics, facts = {metric: {"value": reporting.as_float("what the objective returned", returned)}}, {}
        except TypeError as error:
            raise ObjectiveError(f"{error}; return a number, or a dict with '{metric}'") from None
    for name in [*metrics, *facts]:
        _check_name(name)
    if len(json.dumps(facts)) > MAX_FACTS_CHARS:
        raise ObjectiveError(f"the objective returned more than {MAX_FACTS_CHARS:,} characters of facts; write a file")
    if metric in facts:
        raise ObjectiveError(f"the objective returned {facts[metric]!r:.80} as '{metric}'; it must be a number")
    if metric not in metrics:
        raise ObjectiveError(f"the objective returned no metric '{metric}'{nearest(metric, metrics)}")
    score = float(metrics[metric]["value"])
    if not math.isfinite(score):
        raise FloatingPointError(f"{metric} is {score}")
    return Result(score=score, metrics=metrics, facts=facts)


def run_timing(run_s: float, returned: Any) -> dict[str, float]:
    """Return how long an objective ran, and how much of that went into scores if what it returned says so."""
    score_s = returned.score_s if isinstance(returned, reporting.Result) else None
    if not isinstance(score_s, int | float) or not 0 <= score_s <= run_s:
        return {"run_s": run_s}
    return {"run_s": run_s, "score_s": float(score_s)}


def _of_result(returned: reporting.Result) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    metrics = {}
    for name, metric in returned.metrics.items():
        if not isinstance(metric, reporting.Metric):
            raise ObjectiveError(
                f"the objective returned a {type(metric).__name__} as '{name}'; wrap it in Metric(...)"
            )
        fields = {key: _plain(f"{name}.{key}", value) for key, value in asdict(metric).items() if value is not None}
        for key in fields.keys() & {"value", "se"}:
            try:
                fields[key] = reporting.as_float(f"{name}.{key}", fields[key])
            except TypeError as error:
                raise ObjectiveError(f"the objective returned an unusable metric: {error}") from None
        if "value" not in fields:
            raise ObjectiveError(f"the objective returned no value for '{name}'")
        metrics[str(name)] = fields
    return metrics, {str(name): _plain(str(name), value) for name, value in returned.facts.items()}


def _of_mapping(returned: Mapping[Any, Any], metric: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Divide what an objective returned: numbers are metrics, but counts (``n_epochs``, ``n_params``) are facts."""
    metrics: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    for name, value in returned.items():
        plain = _plain(str(name), value)
        is_count = str(name).startswith("n_") and str(name) != metric
        if isinstance(plain, int | float) and not isinstance(plain, bool) and not is_count:
            metrics[str(name)] = {"value": float(plain)}
        else:
            facts[str(name)] = plain
    return metrics, facts


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON that the store can hold; NumPy and torch scalars become numbers."""
    if hasattr(value, "item") and not isinstance(value, int | float | str):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise ObjectiveError(f"the objective returned an array as '{name}'; return numbers or plain JSON") from None
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        raise ObjectiveError(
            f"the objective returned a {type(value).__name__} as '{name}'; return numbers or plain JSON"
        ) from None
    return _storable(name, plain)


def _storable(name: str, value: Any) -> Any:
    """Return plain JSON as the store takes it.

    Raises:
        ObjectiveError: If an integer is too large, or a key is not usable.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise ObjectiveError(f"the objective returned an integer of more than 64 bits as '{name}'; return a float")
    if isinstance(value, list):
        return [_storable(name, item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if key.startswith("$") or "\0" in key:
                raise ObjectiveError(f"the objective returned the key {key!r} in '{name}'; keys have no leading '$'")
        return {_text(key): _storable(name, item) for key, item in value.items()}
    return value


def _check_name(name: str) -> str:
    try:
        return reporting.check_name(name)
    except ValueError as error:
        raise ObjectiveError(f"the objective returned a name: {error}") from None


def _text(text: str) -> str:
    """Return a text without what UTF-8 cannot hold: parts of names of files can be such."""
    return text.encode(errors="replace").decode()


def as_failure(error: BaseException) -> Failure:
    """Return the cause, message and traceback of an exception that ended a training."""
    text = " ".join(str(error)[:MAX_MESSAGE_CHARS].split())
    message = text if isinstance(error, AutotuneError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    lines = "".join(traceback.format_exception(error))
    return Failure(cause=_cause(error), message=_text(message), traceback=_text(lines[-MAX_TRACEBACK_CHARS:]))


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
