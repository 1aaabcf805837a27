"""Which campaigns a worker serves: those whose objective it may import and whose code and packages are its own.

A campaign comes from the store, and its objective is a name that this worker would import and call. So names are
limited to installed workloads, modules that the worker was told to allow, and those of its working directory.
"""

from __future__ import annotations

import os
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import InputError
from autotune.sources import find_module, is_module_name, split_objective
from autotune.store.base import CampaignRecord
from workers.refusals import environment_key
from workers.versions import differences, environment
from workers.workloads.registry import workload_names

_KEEP_S = 10.0
_MAX_KEPT = 64
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Admission:
    """Decides what this worker serves; nothing is imported to decide. Safe to use from many threads.

    Args:
        allowed: Modules (``train``) and packages (``pkg`` or ``pkg.part``, with all below) that may be imported.
        allow_mismatch: Whether to serve campaigns whose packages or source differ.
        folder: The working directory; default: this process's.

    Raises:
        InputError: If an allowed name is not that of a module.
    """

    def __init__(
        self, allowed: Sequence[str] = (), *, allow_mismatch: bool = False, folder: str | Path | None = None
    ) -> None:
        for name in allowed:
            if not is_module_name(name):
                raise InputError(f"--allow-objective takes a module or package, for example lab.train, not '{name}'")
        self._allowed = tuple(allowed)
        self._allow_mismatch = allow_mismatch
        self._folder = Path(os.getcwd() if folder is None else folder)
        self._kept: dict[tuple[str, str, str], tuple[float, list[str]]] = {}
        self._lock = threading.Lock()

    def refusal(self, record: CampaignRecord) -> str | None:
        """Return why this worker must not serve a campaign, in one line that names what to do; None: it may."""
        objective = record.spec.get("objective")
        reason = self._objective_refusal(objective if isinstance(objective, str) else "")
        if reason is None and not self._allow_mismatch and (found := self.mismatch(record)):
            reason = (
                f"{'; '.join(found)}; make this host equal to the one that launched it, or start the worker with "
                "--allow-mismatch"
            )
        return None if reason is None else f"this worker does not serve campaign '{record.name}': {reason}"

    def mismatch(self, record: CampaignRecord) -> list[str]:
        """Return how this host differs from the one that launched a campaign; known anew after some seconds."""
        launched = getattr(record, "environment", None) or {}
        objective = record.spec.get("objective")
        if not launched or not isinstance(objective, str):
            return []
        key, now_s = (record.name, record.spec_hash, environment_key(record)), time.monotonic()
        with self._lock:
            at_s, found = self._kept.get(key, (now_s - _KEEP_S, []))
            if now_s - at_s < _KEEP_S:
                return list(found)
        found = differences(launched, environment(objective), objective)
        with self._lock:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = (now_s, found)
        return list(found)

    def _objective_refusal(self, objective: str) -> str | None:
        if ":" not in objective:
            if objective in workload_names():
                return None
            return f"there is no workload {objective[:80]!r} here; install the package that has it on this host"
        names = split_objective(objective)
        if names is None:
            return f"{objective[:80]!r} does not name a function; an objective is module:callable, in plain letters"
        module = names[0]
        if any(module == name or module.startswith(f"{name}.") for name in self._allowed):
            return None
        if self._in_folder(module):
            return None
        return (
            f"its objective '{objective}' is not allowed here: '{module}' is not a module of the working directory; "
            f"start the worker there, or with --allow-objective {module}"
        )

    def _in_folder(self, module: str) -> bool:
        """Return whether a module lies in the working directory, and an import would take that file."""
        folder = self._folder.resolve()
        if folder == Path(folder.anchor):
            return False  # where a service starts by default: every file of the host lies there
        file, imported = find_module(module, [str(folder)]), find_module(module, None)
        if file is None or imported is None:
            return False
        real = file.resolve()
        return real == imported.resolve() and real.is_relative_to(folder) and not _is_installed(real)


def _is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python or to an installed package."""
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    return bool(_INSTALLED & set(file.parts)) or any(file.is_relative_to(place) for place in library)
