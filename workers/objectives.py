"""Finds the code that a campaign trains with: a workload that is installed, or ``module:callable``.

Beside training, both may offer two more tasks: ``evaluate(trial, settings)`` trains and scores the test part too, and
``save(trial, folder)`` trains and writes the model. Of ``module:callable`` they are functions of that module.

Loading happens in the fork server, once per host and campaign; every trial's process inherits what was loaded. Where
that failed, the trial's process tries again itself, so that the error is that trial's own, with its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from autotune.errors import ObjectiveError
from autotune.trial import Trial as StoredTrial
from workers.devices import Slot
from workers.reporting import Trial
from workers.workloads.registry import get_workload


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Code and data of a campaign, loaded.

    Attributes:
        run: Called with each trial.
        data: What trials see as ``trial.data``.
        evaluate: Called with the trials of a benchmark and its settings; None: the objective does not offer it.
        save: Called with a trial and an empty folder for its model; None: the objective does not offer it.
    """

    run: Callable[[Trial], Any]
    data: Any = None
    evaluate: Callable[[Trial, Mapping[str, Any]], Any] | None = None
    save: Callable[[Trial, Path], Any] | None = None

    def perform(self, request: Mapping[str, Any], trial: Trial) -> Any:
        """Carry out the ``task`` of a request: `RUN` (the default), `EVALUATE` with ``settings``, `SAVE` in ``folder``.

        Raises:
            ObjectiveError: If the objective does not offer that task.
        """
        task = request.get("task", RUN)
        if task == RUN:
            return self.run(trial)
        if task == EVALUATE and self.evaluate is not None:
            return self.evaluate(trial, dict(request.get("settings") or {}))
        if task == SAVE and self.save is not None:
            return self.save(trial, Path(request["folder"]))
        raise ObjectiveError(f"this objective cannot '{task}': it has no function of that name (docs/evaluation.md)")


RUN, EVALUATE, SAVE = "run", "evaluate", "save"


def task_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request says of the task of a campaign's trials: they train, those of a benchmark also evaluate."""
    evaluation = spec.get("evaluation")
    if not evaluation:
        return {"task": RUN}
    return {"task": EVALUATE, "settings": dict(evaluation.get("settings") or {})}


def request_of(
    spec: Mapping[str, Any], metric: Mapping[str, str], trial: StoredTrial, slot: Slot, *, attempt: int
) -> dict[str, Any]:
    """Return what a training's process is asked to do; the same for a trial's first run and for its replay.

    Args:
        spec: The campaign file as plain values, with this host's paths.
        metric: The campaign's.
        trial: The trial.
        slot: What it runs on.
        attempt: Which try it is, 0, 1, 2, ...
    """
    return {
        **task_of(spec),
        "spec": dict(spec),
        "metric": dict(metric),
        "trial": {
            "params": {**trial.params, **(spec.get("fixed") or {})},
            "campaign": trial.campaign,
            "number": trial.number,
            "fold": trial.fold,
            "replicate": trial.replicate,
            "attempt": attempt,
            "seed": trial.seed,
            "device": slot.trial_device,
            "threads": slot.threads,
        },
    }


def schedule_metric(spec: Mapping[str, Any]) -> str:
    """Return the name of the metric that the campaign's schedule compares, or nothing."""
    return str(((spec.get("schedule") or {}).get("metric") or {}).get("name", ""))


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
        _loaded[name] = load_fresh(spec)
    return _loaded[name]


def load_fresh(spec: Mapping[str, Any]) -> Objective:
    """Return the objective of a campaign, whatever was loaded under its name before.

    Raises:
        ObjectiveError: If the code cannot be imported.
        DataError: If the data cannot be read, or is not what the campaign was launched with.
    """
    if ":" in spec["objective"]:
        run = import_callable(spec["objective"])
        module = sys.modules[spec["objective"].partition(":")[0]]
        return Objective(run=run, data=_cells(spec), evaluate=offered(module, EVALUATE), save=offered(module, SAVE))
    workload = get_workload(spec["objective"])
    for name in workload.preload:
        importlib.import_module(name)
    return Objective(
        run=workload.run,
        data=workload.prepare(spec.get("data") or {}, spec.get("split") or {}),
        evaluate=offered(workload, EVALUATE),
        save=offered(workload, SAVE),
    )


def offered(place: Any, name: str) -> Callable[..., Any] | None:
    """Return an optional function of a workload or a module, or None."""
    found = getattr(place, name, None)
    return found if callable(found) else None


def _cells(spec: Mapping[str, Any]) -> Any:
    if not spec.get("data"):
        return None
    from workers.workloads.cells import prepare_cells

    split = spec.get("split") or {}
    opened = {"sealed": False} if split.get("unsealed") else {}
    return prepare_cells(spec["data"], split, **opened)


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
