"""From a campaign file to the record that goes into the store: defaults filled in, data looked at, space checked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autotune import errors
from autotune.campaign import Campaign, load_campaign, parse_campaign, resolve_data_path
from autotune.errors import CampaignError, SpaceError
from autotune.installed import versions
from autotune.local.inquiry import ask
from autotune.schedule import schedule_metric, schedule_settings
from autotune.search import make_search, search_settings
from autotune.sources import source_hash
from autotune.space import Space, parse_space
from autotune.store.base import CampaignRecord


def objective_paths(source: Campaign | Mapping[str, Any] | str | Path) -> tuple[str, ...]:
    """Return the folders of this machine where workers should look for the objective's module.

    The folder of a campaign file; that of the module, or of its topmost package, of an objective given as a function;
    and the working directory.
    """
    folders = [Path.cwd()]
    if isinstance(source, str | Path):
        folders.insert(0, Path(source).absolute().parent)
    elif isinstance(source, Mapping) and callable(source.get("objective")):
        name = str(getattr(source["objective"], "__module__", ""))
        file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        if file is not None:
            parent = Path(file).absolute().parent
            folders.insert(0, parent.parent if Path(file).name == "__init__.py" else parent)
    return tuple(dict.fromkeys(str(folder) for folder in folders))


def as_campaign(source: Campaign | Mapping[str, Any] | str | Path) -> Campaign:
    """Return a campaign from a file, a mapping, or one that is validated already.

    In a mapping, `objective` may be a function (importable by workers) and `space` hyperopt or Ray Tune expressions.

    Raises:
        CampaignError: If it is not a valid campaign.
    """
    if isinstance(source, Campaign):
        return source
    if isinstance(source, str | Path):
        return load_campaign(source)
    if not isinstance(source, Mapping):
        raise CampaignError(f"a campaign is a file or a mapping, not {type(source).__name__}")
    content = json_sections(source)
    if callable(content.get("objective")):
        content["objective"] = callable_name(content["objective"])
    if content.get("space", "default") != "default":
        content["space"] = parse_space(content["space"]).to_json()
    resolve_data_path(content, Path.cwd())
    return parse_campaign(content)


def json_sections(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a campaign's mapping in plain values: paths become text, NumPy scalars numbers."""
    return {key: value if key in ("space", "objective") else _plain(value) for key, value in source.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def callable_name(function: Any) -> str:
    """Return ``module:qualified_name`` of a function.

    Raises:
        CampaignError: If workers could not import it by that name.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__" or "<" in name or not name:
        raise CampaignError(
            f"objective: workers import the objective by name, and {name or function!r} is not importable; "
            "put it at the top level of a module (a .py file) and pass it from there"
        )
    return f"{module}:{name}"


def resolve(campaign: Campaign, paths: tuple[str, ...] = ()) -> CampaignRecord:
    """Look at the campaign's data, fill in what the objective knows, check the space and the search.

    Args:
        campaign: The campaign, validated.
        paths: Folders where workers on this machine should look for the objective's module.

    Raises:
        InputError: One line that says what is wrong; nothing has been written.
    """
    _check_sealed(campaign)
    try:
        found = inspect(campaign)
        space = _space(campaign, found)
        search = search_settings(campaign.search)
        make_search(search).check(space)
    except SpaceError as error:
        raise CampaignError(f"space: {error}") from None
    metric = _metric(campaign, found)
    schedule = _schedule(campaign, found, metric)
    spec = {**campaign.to_json(), "metric": metric, "search": search, "schedule": schedule, "space": space.to_json()}
    if campaign.metric is not None and campaign.metric.also:
        spec["metrics"] = [metric["name"], *campaign.metric.also]
    facts = found.get("facts", {})
    sha256 = facts.get("data", {}).get("sha256")
    if sha256:
        spec["data"] = {**(campaign.data or {}), "sha256": sha256}
    return CampaignRecord(
        name=campaign.name,
        spec=spec,
        spec_hash=definition_hash(spec),
        space=space.to_json(),
        metric=metric,
        facts=facts,
        paths=paths,
        environment=found.get("environment") or environment_of(campaign.objective, paths),
        max_trials=campaign.budget.max_trials,
        max_hours=campaign.budget.max_hours,
        max_device_hours=campaign.budget.max_device_hours,
    )


def environment_of(objective: str, paths: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return package versions of this host and the hash of the source of ``module:callable``, None if it is not here.

    Args:
        objective: The objective.
        paths: Folders to look in before those of `sys.path`.
    """
    return {"versions": versions(), "objective_hash": source_hash(objective, paths)}


def definition_hash(spec: Mapping[str, Any]) -> str:
    """Return the hash that tells two campaigns of one name apart.

    The description does not count, nor where the data lies, since its content's hash counts.
    """
    kept = {k: v for k, v in spec.items() if k != "description"}
    if isinstance(kept.get("data"), dict) and kept["data"].get("sha256"):
        kept["data"] = {k: v for k, v in kept["data"].items() if k != "path"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def inspect(campaign: Campaign) -> dict[str, Any]:
    """Ask the objective about the campaign, in a process of its own that may import heavy libraries.

    Returns:
        ``{"space": default space, "metrics": {name: {"mode": ...}}, "default_metric": ..., "facts": {...}}``;
        empty for a ``module:callable`` without data: it is imported where it runs.

    Raises:
        InputError: What is wrong with data, split, fixed values or names, one line.
        WorkerError: If that process died.
    """
    if campaign.is_callable and campaign.data is None:
        return {}
    return ask("workers.inspection", campaign.to_json(), "looking at the campaign's data")


def _space(campaign: Campaign, found: Mapping[str, Any]) -> Space:
    if campaign.space == "default":
        if "space" not in found:
            raise CampaignError(
                f"space: '{campaign.objective}' has no default space; write one: name: {{float: [0, 1]}}"
            )
        kept = {name: value for name, value in found["space"].items() if name not in campaign.fixed}
        if not kept:
            raise CampaignError("space: every parameter of the default space is fixed; there is nothing to search")
        return parse_space(kept)
    space = parse_space(campaign.space)
    both = sorted(set(space.to_json()) & set(campaign.fixed))
    if both:
        raise CampaignError(f"'{both[0]}' is both in space and in fixed; remove it from one of them")
    return space


def _schedule(campaign: Campaign, found: Mapping[str, Any], metric: Mapping[str, str]) -> dict[str, Any]:
    """Return the schedule's settings with the defaults that the objective knows.

    Its metric is one that is reported while a trial trains: the named one, else the workload's, else the campaign's.
    """
    given = {key: value for key, value in campaign.schedule.items() if key not in ("metric", "mode")}
    defaults = found.get("schedule", {})
    settings = schedule_settings(given, {"maximum": defaults.get("maximum")})
    if settings["algorithm"] == "none":
        return {"algorithm": "none"}
    known, maximum = defaults.get("maximum"), settings.get("maximum")
    if known is not None and maximum is not None and maximum != known:
        raise CampaignError(
            f"schedule: maximum is {maximum}, but '{campaign.objective}' trains {known} (fixed.max_epochs); "
            "leave maximum out, or make them equal"
        )
    return {**settings, "metric": schedule_metric(campaign.schedule, metric, defaults)}


def _metric(campaign: Campaign, found: Mapping[str, Any]) -> dict[str, str]:
    known = found.get("metrics", {})
    if campaign.metric is None:
        if "default_metric" not in found:
            raise CampaignError("key 'metric' is missing; write metric: {name: loss, mode: min}")
        name = str(found["default_metric"])
        return {"name": name, "mode": str(known[name]["mode"])}
    name = campaign.metric.name
    for one in (name, *campaign.metric.also):
        if known and one not in known:
            raise CampaignError(f"metric: '{campaign.objective}' has no metric '{one}'{errors.nearest(one, known)}")
    mode = campaign.metric.mode or (str(known[name]["mode"]) if known else None)
    if mode is None:
        raise CampaignError(
            f"metric: which way is {name} better? write metric: {{name: {name}, mode: min}}, or mode: max"
        )
    if known and known[name]["mode"] != mode:
        raise CampaignError(f"metric: {name} is better when it is {'smaller' if mode == 'max' else 'larger'}; "
                            f"write mode: {known[name]['mode']}")  # fmt: skip
    return {"name": name, "mode": mode}


def _check_sealed(campaign: Campaign) -> None:
    """Refuse a campaign that would open the test part: only `autotune benchmark` does, when the search is over."""
    if "unsealed" in (campaign.split or {}):
        raise CampaignError(
            "split.unsealed is not for campaign files: the test part stays sealed until the campaign is finished; "
            "then: autotune benchmark NAME"
        )
