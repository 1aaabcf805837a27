"""Distributed hyperparameter search for deep models in biology and medicine.

``autotune.launch(campaign, workers=2)`` runs a campaign and returns its result; the command line does
the same and more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.campaign import Campaign, load_campaign
    from autotune.errors import AutotuneError
    from autotune.local.benchmark import benchmark
    from autotune.local.session import CampaignResult, launch, resume
    from autotune.local.steering import cancel, enqueue, extend, pause, retry
    from autotune.local.tuning import Tuned, tune_scvi
    from autotune.space import Space, parse_space
    from autotune.store.campaigns import Extension
    from autotune.store.mongo import MongoStore, open_store
    from autotune.trial import Trial

_HOMES = {
    "AutotuneError": "autotune.errors",
    "Campaign": "autotune.campaign",
    "CampaignResult": "autotune.local.session",
    "Extension": "autotune.store.campaigns",
    "MongoStore": "autotune.store.mongo",
    "Space": "autotune.space",
    "Trial": "autotune.trial",
    "Tuned": "autotune.local.tuning",
    "benchmark": "autotune.local.benchmark",
    "cancel": "autotune.local.steering",
    "enqueue": "autotune.local.steering",
    "extend": "autotune.local.steering",
    "launch": "autotune.local.session",
    "load_campaign": "autotune.campaign",
    "open_store": "autotune.store.mongo",
    "parse_space": "autotune.space",
    "pause": "autotune.local.steering",
    "resume": "autotune.local.session",
    "retry": "autotune.local.steering",
    "tune_scvi": "autotune.local.tuning",
}

__all__ = [
    "AutotuneError",
    "Campaign",
    "CampaignResult",
    "Extension",
    "MongoStore",
    "Space",
    "Trial",
    "Tuned",
    "benchmark",
    "cancel",
    "enqueue",
    "extend",
    "launch",
    "load_campaign",
    "open_store",
    "parse_space",
    "pause",
    "resume",
    "retry",
    "tune_scvi",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import autotune`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autotune' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
