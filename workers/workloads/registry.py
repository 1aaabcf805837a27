"""Names of workloads -> workloads, without importing any model library."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autotune.errors import ObjectiveError, nearest
from workers.workloads.base import Workload

GROUP = "autotune.workloads"

_BUILT_IN = {
    "scvi": "workers.workloads.scvi:ScviWorkload",
    "baseline": "workers.workloads.baseline:BaselineWorkload",
}


def workload_names() -> list[str]:
    """Return the names of all workloads, built-in and installed, sorted."""
    return sorted({*_BUILT_IN, *_installed()})


def get_workload(name: str) -> Workload:
    """Return the workload called `name`.

    Built-in names win over entry points of the same name.

    Raises:
        ObjectiveError: If there is none, or it cannot be imported.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return _made(name, getattr(importlib.import_module(module), attribute))
    installed = _installed()
    if name not in installed:
        raise ObjectiveError(f"there is no workload {name!r}{nearest(name, workload_names())}")
    try:
        found = installed[name].load()
    except (ImportError, AttributeError) as error:
        raise ObjectiveError(f"workload {name!r} ({installed[name].value}) cannot be imported: {error}") from error
    return _made(name, found)


def _made(name: str, found: Any) -> Workload:
    """Return an instance of what was registered: a class or an instance.

    Raises:
        ObjectiveError: If it lacks what a workload must have.
    """
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Workload):
        raise ObjectiveError(
            f"workload {name!r} is not a workload: it lacks methods of workers.workloads.base.Workload"
        )
    return made


def _installed() -> dict[str, EntryPoint]:
    """Return the entry points of other packages, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _BUILT_IN}
