"""From the ``schedule`` section of a campaign to a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from autotune.errors import CampaignError, nearest
from autotune.schedule.asha import AshaSchedule
from autotune.schedule.base import Schedule
from autotune.schedule.brackets import reductions
from autotune.schedule.hyperband import HyperbandSchedule
from autotune.schedule.median import MedianSchedule
from autotune.schedule.none import NoSchedule

GROUP = "autotune.schedule"
"""Entry point group of further schedules: each a callable that takes the settings and gives a `Schedule`."""

_RUNGS: dict[str, int | None] = {"minimum": 1, "maximum": None, "eta": 3}
_KEYS: dict[str, dict[str, int | None]] = {
    "none": {"maximum": None},
    "median": {"maximum": None, "warm_up": 1, "least": 5},
    "asha": _RUNGS,
    "hyperband": _RUNGS,
}


def schedule_settings(settings: Mapping[str, Any], defaults: Mapping[str, int | None] | None = None) -> dict[str, Any]:
    """Return checked settings with all defaults filled in.

    Args:
        settings: ``algorithm`` (``none`` by default, ``median``, ``asha``, ``hyperband``, or the name of an entry point
            of group ``autotune.schedule``). For asha and hyperband ``minimum`` (1), ``maximum`` and ``eta`` (3); for
            median ``maximum``, ``warm_up`` (1) and ``least`` (5); for none ``maximum``. All are whole numbers; those in
            steps, epochs as a rule. The settings of an entry point are passed on as they are.
        defaults: What the workload says, for example ``{"maximum": 100}``; keys that the algorithm does not have are
            left out.

    Raises:
        CampaignError: Unknown algorithm or key (names the nearest known one), a value out of range, or no maximum where
            one is needed.
    """
    if not isinstance(settings, Mapping):
        raise CampaignError(f"schedule settings are a mapping such as {{algorithm: hyperband}}, not {settings!r}")
    algorithm = settings.get("algorithm", "none") or "none"
    if not isinstance(algorithm, str):
        raise CampaignError(f"schedule algorithm {algorithm!r} is not a name; known: {', '.join(sorted(_KEYS))}")
    keys = _KEYS.get(algorithm)
    if keys is None:
        _entry_point(algorithm)
        return {**settings, "algorithm": algorithm}
    for key in settings:
        if key != "algorithm" and key not in keys:
            hint = nearest(str(key), ["algorithm", *keys])
            raise CampaignError(f"unknown setting '{key}' of schedule {algorithm}{hint}")
    known = {k: v for k, v in (defaults or {}).items() if k in keys and v is not None}
    values = {
        k: _checked(k, default if settings.get(k) is None else settings[k]) for k, default in {**keys, **known}.items()
    }
    if keys is _RUNGS:
        if values["maximum"] is None:
            raise CampaignError(f"schedule {algorithm} needs maximum: the most epochs that a trial may train")
        reductions(cast(int, values["minimum"]), values["maximum"], cast(int, values["eta"]))
    return {"algorithm": algorithm, **values}


def make_schedule(settings: Mapping[str, Any], defaults: Mapping[str, int | None] | None = None) -> Schedule:
    """Return the schedule of the settings; see `schedule_settings`.

    Raises:
        CampaignError: As `schedule_settings`.
    """
    checked = schedule_settings(settings, defaults)
    algorithm = checked["algorithm"]
    if algorithm not in _KEYS:
        return cast(Schedule, _entry_point(algorithm).load()(checked))
    values = {k: v for k, v in checked.items() if k != "algorithm"}
    if algorithm == "hyperband":
        return HyperbandSchedule(**values)
    if algorithm == "asha":
        return AshaSchedule(**values)
    return MedianSchedule(**values) if algorithm == "median" else NoSchedule(**values)


def schedule_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a campaign's definition as `make_schedule` takes them, without the metric.

    Args:
        spec: The campaign file as plain values.
    """
    return {key: value for key, value in (spec.get("schedule") or {}).items() if key != "metric"}


def step_before(spec: Mapping[str, Any], rung: int, target: int | None) -> int:
    """Return the step of the rung before the one that a trial works towards; 0 at the first.

    Levels have the same steps in all brackets. 0 also where the schedule is of a package that is not here.

    Args:
        spec: The campaign file as plain values.
        rung: Index of the rung that the trial works towards.
        target: The step there, or None: its own end.
    """
    if rung == 0:
        return 0
    try:
        steps = [step for step in make_schedule(schedule_of(spec)).resources[:-1] if step is not None]
    except CampaignError:
        return 0
    return max((step for step in steps if target is None or step < target), default=0)


def schedule_metric(
    settings: Mapping[str, Any], metric: Mapping[str, str], known: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return ``{"name", "mode"}`` of the metric by which a schedule compares trials while they train.

    Args:
        settings: The ``schedule`` section: ``metric`` is the name of a metric that is reported, ``mode`` says whether
            it is better smaller (``min``) or larger (``max``).
        metric: The campaign's.
        known: What the workload says: ``metric``, its own for this purpose, and ``metrics``, name -> mode.

    Raises:
        CampaignError: If the workload reports no such metric, the mode is not the one that it has, or there is no way
            to know it.
    """
    known = known or {}
    reported, name, mode = known.get("metrics") or {}, settings.get("metric"), settings.get("mode")
    own = dict(known.get("metric") or metric)
    if name is None:
        name = own["name"]
    if not isinstance(name, str) or not name:
        raise CampaignError(f"schedule: metric {name!r} is not a name; write metric: loss")
    if mode not in (None, "min", "max"):
        raise CampaignError(f"schedule: mode {mode!r} is neither min nor max; write mode: min where smaller is better")
    if reported and name not in reported:
        raise CampaignError(f"schedule: no metric '{name}' is reported while a trial trains{nearest(name, reported)}")
    modes = {own["name"]: own["mode"], metric["name"]: metric["mode"], **reported}
    if name not in modes and mode is None:
        raise CampaignError(
            f"schedule: metric '{name}' is not the campaign's, so say what is better: add mode: min or mode: max"
        )
    if mode is not None and modes.get(name, mode) != mode:
        better = "smaller" if mode == "max" else "larger"
        raise CampaignError(f"schedule: {name} is better when it is {better}; write mode: {modes[name]}")
    return {"name": name, "mode": modes.get(name) or str(mode)}


def _entry_point(name: str) -> EntryPoint:
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise CampaignError(f"unknown schedule '{name}'{nearest(name, [*_KEYS, *found])}")
    return found[name]


def _checked(key: str, value: Any) -> int | None:
    if key == "maximum" and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CampaignError(f"schedule setting {key}: {value!r} is not a whole number from 1 on; correct it")
    return int(value)
