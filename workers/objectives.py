"""Finds the code that a campaign trains with: a workload that is installed, or ``module:callable``.

Loading happens in the fork server, once per host and campaign; every trial's process inherits what was loaded. Where
that failed, the trial's process tries again itself, so that the error is that trial's own, with its traceback.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from autotune.errors import ObjectiveError
from workers.reporting import Trial
from workers.workloads.registry import get_workload


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Code and data of a campaign, loaded.

    Attributes:
        run: Called with each trial.
        data: What trials see as ``trial.data``.
    """

    run: Callable[[Trial], Any]
    data: Any = None


_loaded: dict[str, Objective] = {}


def load(spec: Mapping[str, Any]) -> Objective:
    """Return the objective of a campaign; loaded once per process and campaign.

    Args:
        spec: The campaign file as plain values.

    Raises:
        ObjectiveError: If the code cannot be imported.
        DataError: If the data cannot be read, or is not what the campaign was launched with.
    """
    name = spec["name"]
    if name not in _loaded:
        _loaded[name] = _load(spec)
    return _loaded[name]


def _load(spec: Mapping[str, Any]) -> Objective:
    if ":" in spec["objective"]:
        run = import_callable(spec["objective"])
        return Objective(run=run, data=_cells(spec))
    workload = get_workload(spec["objective"])
    for module in workload.preload:
        importlib.import_module(module)
    return Objective(run=workload.run, data=workload.prepare(spec.get("data") or {}, spec.get("split") or {}))


def _cells(spec: Mapping[str, Any]) -> Any:
    if not spec.get("data"):
        return None
    from workers.workloads.cells import prepare_cells

    return prepare_cells(spec["data"], spec.get("split") or {})


def import_callable(name: str) -> Callable[[Trial], Any]:
    """Return the callable that ``module:callable`` names; dots after the colon reach into classes.

    Raises:
        ObjectiveError: If there is no such module or no such callable in it, or the import fails.
    """
    module_name, _, attribute = name.partition(":")
    importlib.invalidate_caches()  # the module may have come after this process looked for it first
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ObjectiveError(
            f"cannot import the objective '{name}': {error}; start the worker in the folder of that module, "
            "or install it on this host"
        ) from error
    except Exception as error:
        raise ObjectiveError(f"cannot import the objective '{name}': {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if isinstance(found, ModuleType):
            raise ObjectiveError(f"'{name}' reaches into the module '{found.__name__}'; name the callable's own module")
    if not callable(found):
        raise ObjectiveError(f"module '{module_name}' has no callable '{attribute}'")
    return found  # type: ignore[no-any-return]
