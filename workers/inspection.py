"""Looks at a campaign before it is written: its names, fixed values, data and split.

Run as ``python -m workers.inspection`` with the campaign as JSON on standard input, in a process of its own so that the
launching one need not import the libraries that read data. Prints one JSON object: what was found, or
``{"error": class of the error, "message": one line}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autotune.errors import InputError
from workers.workloads.registry import get_workload


def inspect(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the objective knows of a campaign.

    Args:
        campaign: The campaign file as plain values.

    Returns:
        ``{"space", "metrics", "default_metric", "facts"}``; for ``module:callable`` only ``facts``.

    Raises:
        InputError: What is wrong, one line.
    """
    data, split = campaign.get("data") or {}, campaign.get("split") or {}
    if ":" in campaign["objective"]:
        from workers.workloads.cells.prepared import facts, prepare_cells

        return {"facts": facts(prepare_cells(data, split), split)}
    workload = get_workload(campaign["objective"])
    workload.check_fixed(campaign.get("fixed") or {})
    if isinstance(campaign.get("space"), Mapping):
        workload.check_space(campaign["space"])
    return {
        "space": workload.default_space(),
        "metrics": {name: asdict(spec) for name, spec in workload.metrics().items()},
        "default_metric": workload.default_metric,
        "facts": {**workload.inspect(data, split), "settings": workload.settings()},
    }


def main() -> None:
    """Read a campaign from standard input, print what was found."""
    try:
        answer = inspect(json.load(sys.stdin))
    except InputError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except ModuleNotFoundError as error:
        message = f"this installation lacks {error.name}; install it with `pip install 'autotune[scvi]'`"
        answer = {"error": "ObjectiveError", "message": message}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
