"""Reads Ray Tune sample domains by their attributes; Ray itself is never imported.

The meaning of bounds follows the docstrings of ``ray.tune.search.sample`` (seen in Ray 2.60): ``randint`` and
``lograndint`` exclude the upper bound; ``qrandint`` and ``qlograndint`` include it, except for ``q=1``, where
it is excluded; all quantised kinds give multiples of ``q``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from autotune.errors import SpaceError
from autotune.space.kinds import looks_defined
from autotune.space.numeric import ceil_index, floor_index, round12


def is_domain(value: Any) -> bool:
    """Whether ``value`` is a Ray Tune domain, or ``{"grid_search": [...]}``."""
    if isinstance(value, Mapping):
        return set(value) == {"grid_search"}
    return not isinstance(value, type) and hasattr(value, "domain_str") and hasattr(value, "get_sampler")


def read_domain(domain: Any, where: str, convert: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Return the definition of a Ray Tune domain in our form.

    Args:
        domain: Something for which `is_domain` holds.
        where: Name of the parameter, for messages.
        convert: Translates the options of a choice, which may hold domains themselves.

    Raises:
        SpaceError: The domain has no counterpart here, as ``sample_from``.
    """
    if isinstance(domain, Mapping):
        return _choice(domain["grid_search"], where, convert)
    kind, sampler = type(domain).__name__, domain.get_sampler()
    if kind == "Categorical":
        return _choice(domain.categories, where, convert)
    step = None
    if type(sampler).__name__ == "Quantized":
        step, sampler = sampler.q, sampler.get_sampler()
    law = str(sampler)
    if kind == "Integer" and law in ("Uniform", "LogUniform"):
        return _integer(domain, "log_int" if law == "LogUniform" else "int", step)
    if kind == "Float" and law == "Normal":
        return _stepped({"normal": [sampler.mean, sampler.sd]}, step)
    if kind == "Float" and law in ("Uniform", "LogUniform"):
        name = "log_float" if law == "LogUniform" else "float"
        low, high = domain.lower, domain.upper
        if step is not None and math.isfinite(low) and math.isfinite(high):
            low, high = round12(ceil_index(low / step) * step), round12(floor_index(high / step) * step)
            if name == "log_float":
                low = max(low, step)
        return _stepped({name: [low, high]}, step)
    raise SpaceError(
        f"parameter '{where}': Ray Tune {kind} with sampler {law} is not supported; use a conditional choice "
        "instead of sample_from"
    )


def _choice(options: Any, where: str, convert: Callable[[Any, str], Any]) -> dict[str, Any]:
    if not isinstance(options, list | tuple):
        raise SpaceError(f"parameter '{where}': grid_search takes a list, not {type(options).__name__}")
    written = []
    for i, option in enumerate(options):
        translated = convert(option, f"{where}[{i}]")
        written.append({"const": option} if looks_defined(option) else translated)
    return {"choice": written}


def _integer(domain: Any, name: str, step: Any) -> dict[str, Any]:
    low, high = domain.lower, domain.upper
    if step is None or step == 1:
        return {name: [low, high - 1]}
    first, last = ceil_index(low / step), floor_index(high / step)
    if name == "log_int":
        first = max(first, 1)
    return {name: [first * step, last * step], "step": step}


def _stepped(definition: dict[str, Any], step: Any) -> dict[str, Any]:
    return definition if step is None else definition | {"step": step}
