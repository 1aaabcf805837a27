"""Looks at a campaign before it is written: its names, fixed values, data and split.

Run as ``python -m workers.inspection`` with the campaign as JSON on standard input, in a process of its own so that the
launching one need not import the libraries that read data. Prints one JSON object: what was found, or
``{"error": class of the error, "message": one line}``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from autotune.errors import AutotuneError, CampaignError
from autotune.space import Choice, LogNormal, Normal, Numeric, parse_space
from autotune.space.walks import sample
from workers.versions import environment
from workers.workloads.base import Workload
from workers.workloads.registry import get_workload


def inspect(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the objective knows of a campaign.

    Args:
        campaign: The campaign file as plain values.

    Returns:
        ``{"space", "metrics", "default_metric", "facts", "environment"}``; for ``module:callable`` only ``facts``.

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
        check_values(workload, campaign["space"])
    check_together(workload, campaign)
    return {
        "space": workload.default_space(),
        "metrics": {name: asdict(spec) for name, spec in workload.metrics().items()},
        "default_metric": workload.default_metric,
        "facts": {**workload.inspect(data, split), "settings": workload.settings()},
        "schedule": schedule_defaults(workload, campaign.get("fixed") or {}),
        "environment": environment(campaign["objective"]),
    }


def schedule_defaults(workload: Workload, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a schedule must know of a workload, ``{"maximum", "metric", "metrics"}``; empty: it reports nothing.

    Args:
        workload: The campaign's workload.
        fixed: The campaign's fixed settings.
    """
    describe = getattr(workload, "reports", None)
    return {} if describe is None else dict(describe({**workload.settings(), **fixed}))


def check_values(workload: Workload, definition: Mapping[str, Any]) -> None:
    """Check the values that a user's space can give, so that trials do not fail for them.

    Options of choices, constants and both ends of ranges are checked as if they were fixed.

    Args:
        workload: The campaign's workload.
        definition: The campaign's space, with names that the workload knows.

    Raises:
        CampaignError: On a value that the workload does not take.
        SpaceError: If the space is not well-formed.
    """
    for name, parameter in parse_space(definition).parameters.items():
        for value in _values(parameter):
            try:
                workload.check_fixed({name: value})
            except CampaignError as error:
                reason = str(error).removeprefix(f"{workload.name}: {name} ")
                raise CampaignError(f"space.{name}: {reason}") from None


def check_together(workload: Workload, campaign: Mapping[str, Any]) -> None:
    """Check that parameters, data and metrics of a campaign go together, where the workload has a say in it.

    Raises:
        CampaignError: What does not.
    """
    check = getattr(workload, "check_together", None)
    if check is None:
        return
    space = campaign.get("space")
    if not isinstance(space, Mapping):
        space = workload.default_space()
    values: dict[str, list[Any]] = {name: [value] for name, value in workload.settings().items()}
    values |= {name: list(_values(parameter)) for name, parameter in parse_space(space).parameters.items()}
    values |= {name: [value] for name, value in (campaign.get("fixed") or {}).items()}
    metric = campaign.get("metric") or {}
    check(values, campaign.get("data") or {}, [metric.get("name", workload.default_metric), *metric.get("also", ())])


def _values(template: Any) -> Iterator[Any]:
    """Yield the values of a parameter that matter for its check; of a mapping or list that holds parameters one."""
    if isinstance(template, Choice):
        for option in template.options:
            yield from _values(option)
    elif isinstance(template, Numeric):
        yield from _ends(template)
    else:
        yield sample(template, np.random.default_rng(0))


def _ends(parameter: Numeric) -> tuple[Any, ...]:
    """Return the smallest and the largest value of a range, or the middle of an unbounded kind."""
    if parameter.limits is not None:
        return tuple(parameter.at(index) for index in parameter.limits)
    if isinstance(parameter, Normal):
        middle = math.exp(min(parameter.mu, 709.0)) if isinstance(parameter, LogNormal) else parameter.mu
        return (parameter.nearest(middle / (parameter.step or 1.0)),)
    return tuple(getattr(parameter, name) for name in ("low", "high"))


def main() -> None:
    """Read a campaign from standard input, print what was found."""
    reply(inspect)


def reply(look: Callable[[Any], dict[str, Any]]) -> None:
    """Read a question as JSON from standard input; print the answer, or what is wrong, as one JSON object.

    Args:
        look: Gives the answer to a question, or raises one of the service's errors.
    """
    try:
        answer = look(json.load(sys.stdin))
    except AutotuneError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except ModuleNotFoundError as error:
        message = f"this installation lacks {error.name}; install it with `pip install 'autotune[scvi]'`"
        answer = {"error": "ObjectiveError", "message": message}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
