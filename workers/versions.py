"""Which versions of the packages that matter this host has, without importing them, and how hosts differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import workers.workloads
from autotune.installed import PACKAGES, versions
from autotune.sources import folder_hash, source_hash
from workers.workloads.registry import GROUP, workload_names

_BASELINE = frozenset({"python", "autotune", "numpy", "scipy", "anndata", "scikit-learn"})
_MATTER = {"baseline": _BASELINE, "scvi": _BASELINE | {"torch", "scvi-tools", "lightning"}}
_SHOWN = 40


def workload_hash(name: str) -> str | None:
    """Return the hash of the source of an installed workload; of one that ships with the service, of all that do.

    Returns:
        None if there is no such workload, or its source cannot be found.
    """
    if name not in workload_names():
        return None
    package = workers.workloads.__name__
    points = list(metadata.entry_points(group=GROUP, name=name))
    if not points or any(point.module.startswith(package) for point in points):
        return folder_hash(Path(workers.workloads.__path__[0]))
    return source_hash(f"{points[0].module}:{points[0].attr}")


def environment(objective: str, paths: Sequence[str] = ()) -> dict[str, Any]:
    """Return ``{"versions": {...}, "objective_hash": ...}`` of this host.

    Args:
        objective: Name of a workload or ``module:callable``.
        paths: Folders to look in for the module before those of `sys.path`.
    """
    found = source_hash(objective, paths) if ":" in objective else workload_hash(objective)
    return {"versions": versions(), "objective_hash": found}


def differences(campaign_environment: Mapping[str, Any], here: Mapping[str, Any], objective: str) -> list[str]:
    """Return how this host differs from a campaign in what matters to its objective; what one does not know is equal.

    Python counts by major and minor version, packages by their public version (``2.13.0+cu126`` is ``2.13.0``).

    Args:
        campaign_environment: As from `environment`, of the host that launched the campaign.
        here: The same, of this host.
        objective: The campaign's objective.
    """
    theirs, mine = _versions(campaign_environment), _versions(here)
    matter = _MATTER.get(objective, frozenset({"python", *PACKAGES}))
    found = [
        f"{package} {mine[package][:_SHOWN]} here, {theirs[package][:_SHOWN]} in the campaign"
        for package in ("python", *PACKAGES)
        if package in matter and package in theirs and package in mine and theirs[package] != mine[package]
    ]
    hashes = [environment.get("objective_hash") for environment in (here, campaign_environment)]
    if all(isinstance(value, str) and value for value in hashes) and hashes[0] != hashes[1]:
        ours, other = (re.sub(r"[^0-9a-f]", "?", str(value))[:8] for value in hashes)
        found.append(f"source of '{objective}' {ours} here, {other} in the campaign")
    return found


def _versions(known: Mapping[str, Any]) -> dict[str, str]:
    """Return package -> what counts of its version, as far as it is readable."""
    found = known.get("versions")
    if not isinstance(found, Mapping):
        return {}
    texts = {name: value for name, value in found.items() if isinstance(value, str) and value.isprintable() and value}
    return {name: _public(name, value) for name, value in texts.items()}


def _public(package: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if package == "python" else version.partition("+")[0]
