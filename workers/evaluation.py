"""Looks at whether and how the objective of a campaign evaluates, before a benchmark is written.

Run as ``python -m workers.evaluation``, in a process of its own as `workers.inspection` is, with
``{"spec", "given", "allowed"}`` as JSON on standard input. Prints one JSON object: what was found, or
``{"error": class of the error, "message": one line}``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autotune.errors import CampaignError, ObjectiveError, nearest
from autotune.store.base import CampaignRecord
from workers.admission import Admission
from workers.inspection import reply
from workers.objectives import EVALUATE, import_callable, offered
from workers.workloads.registry import get_workload


def inspect(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the objective of a campaign knows of its evaluation.

    Args:
        question: ``spec``: the campaign file as plain values. ``given``: settings that differ from the defaults.
            ``allowed``: modules that objectives may come from, as for `autotune worker`.

    Returns:
        ``{"settings": all settings, "metrics": {name: {"mode", ...}}, "defaults": parameter -> value or None}``.

    Raises:
        InputError: What is wrong, one line.
    """
    name = str(question["spec"]["objective"])
    place = _place(question["spec"], question["allowed"])
    if offered(place, EVALUATE) is None:
        kind = "module" if ":" in name else "workload"
        raise ObjectiveError(
            f"'{name}' cannot be benchmarked: its {kind} has no function 'evaluate' that scores a test part "
            "(docs/evaluation.md says what it gets and returns)"
        )
    settings = _settings(name, _said(place, "evaluation_settings") or {}, question["given"])
    check = offered(place, "check_evaluation")
    if check is not None:
        check(settings)
    metrics = _said(place, "evaluation_metrics") or {}
    defaults = _said(place, "default_params")
    if defaults is None and ":" not in name:
        defaults = {}  # a workload's parameters all have defaults, whether it tells them or not
    return {
        "settings": settings,
        "metrics": {key: dict(spec) if isinstance(spec, Mapping) else asdict(spec) for key, spec in metrics.items()},
        "defaults": None if defaults is None else {**_said_settings(place), **defaults},
    }


def _place(spec: Mapping[str, Any], allowed: list[str]) -> Any:
    """Return the workload, or the module of ``module:callable``, if this machine may import it."""
    name = str(spec["objective"])
    if ":" not in name:
        return get_workload(name)
    record = CampaignRecord(name=str(spec["name"]), spec=spec, spec_hash="", space={}, metric={}, max_trials=1)
    refusal = Admission(allowed, allow_mismatch=True).refusal(record)
    if refusal is not None:
        raise ObjectiveError(refusal.replace("this worker does not serve", "this machine does not benchmark"))
    import_callable(name)
    return sys.modules[name.partition(":")[0]]


def _said(place: Any, name: str) -> Mapping[str, Any] | None:
    """Return what an optional function, or a plain mapping of that name, says."""
    found = getattr(place, name, None)
    said = found() if callable(found) else found
    return said if isinstance(said, Mapping) else None


def _said_settings(place: Any) -> dict[str, Any]:
    """Return the defaults of what a workload does not search by default; a campaign's own space may."""
    return dict(_said(place, "settings") or {}) if not hasattr(place, "__file__") else {}


def _settings(name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in known:
            hint = nearest(key, known) if known else "; it has none"
            raise CampaignError(f"'{name}' has no evaluation setting '{key}'{hint}")
    return {**known, **given}


def main() -> None:
    """Read a question from standard input, print what was found."""
    reply(inspect)


if __name__ == "__main__":
    main()
