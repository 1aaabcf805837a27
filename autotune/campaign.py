"""The campaign file: YAML, JSON or a Python mapping, validated; an unknown key names the nearest known one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from autotune.errors import CampaignError, nearest
from autotune.trial import DETERMINISTIC, Cause
from autotune.yaml_reader import read_yaml

NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


MetricName = Annotated[str, Field(min_length=1, pattern=r"^[^.$\s][^.$]*$")]


class MetricSpec(_Section):
    """What is optimised. Short forms: the name alone, or a list of names, of which the first is optimised.

    Attributes:
        name: Name of a metric that the objective returns.
        mode: ``min`` or ``max``; None: what the workload says.
        also: Further metrics, that tables show after it, in this order.
    """

    name: MetricName
    mode: Literal["min", "max"] | None = None
    also: list[MetricName] = Field(default_factory=list)

    @field_validator("also")
    @classmethod
    def _also(cls, value: list[str], info: ValidationInfo) -> list[str]:
        names = [info.data.get("name"), *value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is named twice")
        return value


class Budget(_Section):
    """When the campaign ends: at the first of these. Trials that run then are stopped at a budget in hours.

    Attributes:
        max_trials: So many trials, each counted once however often it was tried.
        max_hours: So many hours in which the campaign runs; pauses do not count.
        max_device_hours: So many hours of devices, summed over all attempts; of two slots on one device each uses half.
    """

    max_trials: int = Field(ge=1, le=1_000_000)
    max_hours: float | None = Field(default=None, gt=0.0, le=1e6, strict=False)
    max_device_hours: float | None = Field(default=None, gt=0.0, le=1e9, strict=False)


class LeaseSettings(_Section):
    """How fast a lost worker is noticed.

    Attributes:
        duration_s: A trial goes back to the queue that long after its worker was last heard of.
        renewal_s: How often a worker renews its leases.
    """

    duration_s: float = Field(default=30.0, ge=1.0, le=86_400.0, strict=False)
    renewal_s: float = Field(default=10.0, ge=0.1, le=3_600.0, strict=False)


class FailureSettings(_Section):
    """What failures mean for the campaign.

    Attributes:
        abort_after: The campaign stops when its first so many trials all failed for the same cause; 0: never.
        retries: Cause -> how often a trial is tried again after it. Causes: ``out-of-memory`` (the next attempt has its
            device for itself), ``not-a-number``, ``error``, ``timeout``. Lost workers and preemptions never count.
        max_kills: A trial fails when its process was killed so often, by nobody knows whom, while its worker lived; 0:
            no limit.
    """

    abort_after: int = Field(default=10, ge=0)
    retries: dict[str, int] = Field(default_factory=lambda: {str(Cause.OUT_OF_MEMORY): 1})
    max_kills: int = Field(default=5, ge=0, le=50)

    @field_validator("retries")
    @classmethod
    def _retries(cls, value: dict[str, int]) -> dict[str, int]:
        for cause, count in value.items():
            if cause not in DETERMINISTIC:
                raise ValueError(f"unknown cause '{cause}'{nearest(cause, DETERMINISTIC)}")
            if not 0 <= count <= 50:
                raise ValueError(f"{cause}: {count} is not between 0 and 50")
        return {str(Cause.OUT_OF_MEMORY): 1, **value}


class Limits(_Section):
    """How long a training may take.

    Attributes:
        trial_s: A trial whose attempt runs so many seconds fails with the cause ``timeout``; None: no limit.
        silent_s: One that sends no report for so many seconds fails likewise; None: no limit.
    """

    trial_s: float | None = Field(default=None, gt=0.0, strict=False)
    silent_s: float | None = Field(default=None, gt=0.0, strict=False)


class Checkpoints(_Section):
    """Where the states of trainings are kept, and which.

    Attributes:
        url: None: in the store (GridFS); ``file:///shared/folder`` or another URL that fsspec knows.
        every: Also kept every so many steps, so that a lost worker costs no more; None: only where a trial is paused or
            given back.
        keep_best: Those of so many best trials are kept when they have ended.
        max_gb: Together they take at most so much; when there is no room, trials wait with theirs.
    """

    url: str | None = None
    every: int | None = Field(default=None, ge=1)
    keep_best: int = Field(default=1, ge=0)
    max_gb: float = Field(default=20.0, gt=0.0, strict=False)


class Campaign(_Section):
    """One search: objective, data, space, search algorithm, schedule, budget.

    Attributes:
        name: Unique name in its store: letters, digits, ``-`` and ``_``.
        objective: Name of a workload (``scvi``, ``baseline``) or ``module:callable``.
        data: What the workload reads, for example ``{path: cells.h5ad, genes: {top_variance: 558}}``; or None.
        split: How the data is divided, for example ``{validation: 0.25, seed: 0, by: donor_id}``; or None.
        metric: What is optimised; default: the workload's own metric. Of a list of names the first is optimised.
        space: ``"default"`` for the workload's own, or name -> parameter definition.
        search: Search algorithm with its settings and seed.
        schedule: Who trains how far: ``{algorithm: none}`` (every trial to its end), ``median``, ``asha`` or
            ``hyperband`` with ``minimum``, ``maximum``, ``eta`` and ``metric``, the name of a reported metric.
        checkpoints: Where the states of trainings are kept.
        budget: When the campaign ends.
        fixed: Parameters and settings with one value for all trials; they take precedence over the default space.
        lease: Lease and renewal intervals.
        isolation: ``process``: each trial trains in a process of its own. ``none``: in the worker's, for a
            ``module:callable`` that takes milliseconds.
        ahead: So many trials per slot are proposed before a slot is free for them; default: 0, with ``isolation: none``
            2. What they find is not known to proposals that were made before.
        failures: What failures mean for the campaign.
        limits: How long a training may take.
        description: Free text.
    """

    name: str
    objective: str = Field(min_length=1)
    data: dict[str, Any] | None = None
    split: dict[str, Any] | None = None
    metric: MetricSpec | None = None
    space: Any = "default"
    search: dict[str, Any] = Field(default_factory=lambda: {"algorithm": "tpe"})
    schedule: dict[str, Any] = Field(default_factory=lambda: {"algorithm": "none"})
    checkpoints: Checkpoints = Checkpoints()
    budget: Budget
    fixed: dict[str, Any] = Field(default_factory=dict)
    lease: LeaseSettings = LeaseSettings()
    isolation: Literal["process", "none"] = "process"
    ahead: int | None = Field(default=None, ge=0, le=1000)
    failures: FailureSettings = FailureSettings()
    limits: Limits = Limits()
    description: str = ""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME_PATTERN.match(value):
            raise ValueError("use up to 80 letters, digits, '-' and '_', starting with a letter or digit")
        return value

    @field_validator("metric", mode="before")
    @classmethod
    def _metric(cls, value: Any) -> Any:
        """Write out the short forms: a name, or a list whose first item is one or the long form."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, list):
            return value
        if not value:
            raise ValueError("the list is empty; name the metric to optimise first")
        first, *also = value
        if isinstance(first, Mapping) and "also" not in first:
            return {**first, "also": also}
        return {"name": first, "also": also}

    @property
    def is_callable(self) -> bool:
        """Whether the objective is ``module:callable`` and not a workload."""
        return ":" in self.objective

    def to_json(self) -> dict[str, Any]:
        """Return the campaign as plain JSON values; ``isolation`` and ``ahead`` only where they are not the default."""
        plain = self.model_dump(mode="json")
        return {k: v for k, v in plain.items() if (k, v) not in (("isolation", "process"), ("ahead", None))}


def parse_campaign(content: Mapping[str, Any], source: str = "campaign") -> Campaign:
    """Validate a mapping.

    Args:
        content: The campaign as plain values.
        source: What to call it in errors, for example the file's name.

    Raises:
        CampaignError: One line naming the key, and for an unknown key the nearest known one.
    """
    if not isinstance(content, Mapping):
        raise CampaignError(f"{source}: a campaign is a mapping of keys to values, not {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise CampaignError(f"{source}: key {key!r} must be text")
    try:
        campaign = Campaign.model_validate(dict(content))
    except ValidationError as error:
        raise CampaignError(f"{source}: {_explain(error)}") from None
    if campaign.lease.renewal_s * 2 > campaign.lease.duration_s:
        raise CampaignError(
            f"{source}: lease.renewal_s ({campaign.lease.renewal_s:g}) must be at most half of "
            f"lease.duration_s ({campaign.lease.duration_s:g})"
        )
    _check_isolation(campaign, source)
    _check_plain(campaign, source)
    return campaign


def load_campaign(path: str | Path, overrides: Iterable[str] = ()) -> Campaign:
    """Read a campaign file (YAML or JSON) and apply ``key=value`` overrides.

    A relative ``data.path`` is looked up beside the file first, then in the working directory, and made absolute.

    Args:
        path: The file.
        overrides: For example ``["budget.max_trials=12", "data.path=/data/cells.h5ad"]``; values are YAML.

    Raises:
        CampaignError: If the file cannot be read, is not valid YAML, or is not a valid campaign.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CampaignError(f"there is no campaign file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignError(f"cannot read {file}: {error}") from None
    content = read_yaml(text, str(file))
    if not isinstance(content, dict):
        raise CampaignError(f"{file}: a campaign is a mapping of keys to values, not {type(content).__name__}")
    for override in overrides:
        apply_override(content, override)
    resolve_data_path(content, file.parent)
    return parse_campaign(content, file.name)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in a campaign's content; the value is read as YAML.

    Raises:
        CampaignError: If the text has no ``=``, or a part of the key is not a mapping.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise CampaignError(f"--set takes key=value, for example budget.max_trials=12, not '{override}'")
    value = read_yaml(text, f"--set {key}: '{text}'")
    *parents, last = key.strip().split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise CampaignError(f"--set {key}: '{parent}' is a value, not a mapping")
    place[last] = value


def resolve_data_path(content: dict[str, Any], folder: Path) -> None:
    """Make a relative ``data.path`` absolute: beside the campaign file if it is there, else from the working folder."""
    data = content.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        return
    path = Path(data["path"]).expanduser()
    if not path.is_absolute():
        beside = folder / path
        path = beside if beside.exists() or not path.exists() else path
    data["path"] = str(path.absolute())


def _explain(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as one line."""
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            *parents, key = (str(part) for part in problem["loc"])
            inside = f" in '{'.'.join(parents)}'" if parents else ""
            return f"unknown key '{key}'{inside}{nearest(key, _known_keys(parents))}"
        case "missing":
            return f"key '{where}' is missing"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
        case _:
            return f"{where}: {problem['msg'].lower()}, not {problem['input']!r}"


def _known_keys(parents: list[str]) -> list[str]:
    model: Any = Campaign
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        model = next((a for a in getattr(annotation, "__args__", (annotation,)) if hasattr(a, "model_fields")), None)
        if model is None:
            return []
    return list(model.model_fields)


def _check_isolation(campaign: Campaign, source: str) -> None:
    """Refuse what a trial in the worker's own process cannot do, and proposals ahead of a schedule's rungs."""
    algorithm = campaign.schedule.get("algorithm", "none")
    if campaign.ahead and algorithm not in ("none", "median"):
        raise CampaignError(f"{source}: ahead: the schedule '{algorithm}' says who is next; leave ahead out")
    if campaign.isolation == "process":
        return
    reason = None
    if not campaign.is_callable:
        reason = f"the workload '{campaign.objective}' trains in a process of its own"
    elif campaign.data is not None:
        reason = "data is loaded into a process of its own"
    elif campaign.limits != Limits():
        reason = "without a process of its own a trial cannot be ended by limits"
    elif algorithm not in ("none", "median"):
        reason = f"without a process of its own a trial cannot be paused, as the schedule '{algorithm}' does"
    if reason is not None:
        raise CampaignError(f"{source}: isolation: {reason}; leave isolation: process")


def _check_plain(campaign: Campaign, source: str) -> None:
    """Refuse what JSON or MongoDB cannot hold, so that nothing is half-written later."""
    for section in ("data", "split", "search", "schedule", "fixed"):
        value = getattr(campaign, section)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CampaignError(f"{source}: {section} holds a value that is not plain JSON: {error}") from None
        for key in _keys(value):
            if not isinstance(key, str) or not key or key.startswith("$") or "." in key or "\0" in key:
                raise CampaignError(
                    f"{source}: {section} has the key {key!r}; keys are text without '.' or a leading '$'"
                )


def _keys(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
