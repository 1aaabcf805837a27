"""From the ``search`` section of a campaign to a search algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from autotune.errors import CampaignError, nearest
from autotune.search.base import Search
from autotune.search.grid import GridSearch
from autotune.search.hyperopt_tpe import HyperoptTpe
from autotune.search.random import RandomSearch
from autotune.search.tpe import GAMMAS, LIARS, Tpe

GROUP = "autotune.search"
"""Entry point group of further algorithms: each a callable that takes the settings and gives a `Search`."""

_HYPEROPT: dict[str, Any] = {
    "seed": 0,
    "startup": 20,
    "gamma": 0.25,
    "candidates": 24,
    "prior_weight": 1.0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "tpe": {
        "seed": 0,
        "startup": 10,
        "gamma": GAMMAS["linear"],
        "candidates": 24,
        "prior_weight": 1.0,
        "split": "linear",
        "liar": "mean",
        "multivariate": True,
        "independent": 0.0,
        "focus": 2.0,
        "avoid_failures": True,
    },
    "hyperopt_tpe": _HYPEROPT,
    "random": {"seed": 0, "avoid_failures": False},
    "grid": {"seed": 0},
}
_WORDS = {"liar": LIARS, "split": tuple(GAMMAS)}
_MOST_FOCUS = 10
_SMALLEST = {"seed": 0, "startup": 1, "candidates": 1}


def search_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked settings with all defaults filled in.

    Args:
        settings: ``algorithm`` (``tpe`` by default, ``hyperopt_tpe``, ``random``, ``grid``, or the name of an
            entry point of group ``autotune.search``), ``seed`` (0); for tpe also ``startup`` (10), ``gamma`` (0.1, or
            0.25 with ``split: sqrt``), ``candidates`` (24), ``prior_weight`` (1.0), ``split`` (linear), ``liar``
            (mean), ``multivariate`` (true), ``independent`` (0) and ``focus`` (2); for hyperopt_tpe ``startup`` (20),
            ``gamma`` (0.25), ``candidates`` (24) and ``prior_weight`` (1.0); for tpe and random ``avoid_failures``
            (true, false). The settings of an entry point are passed on as they are, with the seed filled in.

    Raises:
        CampaignError: Unknown algorithm or key (names the nearest known one), or a value out of range.
    """
    if not isinstance(settings, Mapping):
        raise CampaignError(f"search settings are a mapping such as {{algorithm: tpe}}, not {settings!r}")
    algorithm = settings.get("algorithm", "tpe")
    if not isinstance(algorithm, str):
        raise CampaignError(f"search algorithm {algorithm!r} is not a name; known: {', '.join(sorted(_DEFAULTS))}")
    defaults = _DEFAULTS.get(algorithm)
    if defaults is None:
        _entry_point(algorithm)
        return {"algorithm": algorithm, **settings, "seed": _checked("seed", settings.get("seed", 0))}
    for key in settings:
        if key != "algorithm" and key not in defaults:
            hint = nearest(str(key), ["algorithm", *defaults])
            raise CampaignError(f"unknown setting '{key}' of search algorithm {algorithm}{hint}")
    checked = {k: _checked(k, settings.get(k, v)) for k, v in defaults.items()}
    if "split" in checked and "gamma" not in settings:
        checked["gamma"] = GAMMAS[str(checked["split"])]
    return {"algorithm": algorithm} | checked


def stored_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a stored campaign; what its release did not have yet is off."""
    if settings.get("algorithm", "tpe") != "tpe":
        return settings
    return {"split": "sqrt", "multivariate": False, "independent": 0.0, "focus": 0.0, **settings}


def make_search(settings: Mapping[str, Any]) -> Search:
    """Return the search algorithm of the settings.

    Raises:
        CampaignError: As `search_settings`.
    """
    checked = search_settings(settings)
    algorithm = checked["algorithm"]
    if algorithm not in _DEFAULTS:
        return cast(Search, _entry_point(algorithm).load()(checked))
    values = {k: v for k, v in checked.items() if k != "algorithm"}
    if algorithm == "random":
        return RandomSearch(**values)
    if algorithm == "grid":
        return GridSearch(**values)
    return Tpe(**values) if algorithm == "tpe" else HyperoptTpe(**values)


def _entry_point(name: str) -> EntryPoint:
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise CampaignError(f"unknown search algorithm '{name}'{nearest(name, [*_DEFAULTS, *found])}")
    return found[name]


def _checked(key: str, value: Any) -> int | float | str:
    if key in _WORDS:
        if value not in _WORDS[key]:
            raise CampaignError(f"search setting {key}: {value!r} is none of {', '.join(_WORDS[key])}; correct it")
        return str(value)
    if key in ("avoid_failures", "multivariate"):
        if not isinstance(value, bool):
            raise CampaignError(f"search setting {key}: {value!r} is neither true nor false; correct it")
        return value
    if key in _SMALLEST:
        if isinstance(value, bool) or not isinstance(value, int) or value < _SMALLEST[key]:
            raise CampaignError(
                f"search setting {key}: {value!r} is not a whole number from {_SMALLEST[key]} on; correct it"
            )
        return int(value)
    if key == "independent":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise CampaignError(f"search setting {key}: {value!r} is not a share from 0 to 1; correct it")
        return float(value)
    if key == "focus":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_FOCUS:
            raise CampaignError(f"search setting {key}: {value!r} is not a number from 0 to {_MOST_FOCUS}; correct it")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CampaignError(f"search setting {key}: {value!r} is not a positive number; correct it")
    return float(value)
