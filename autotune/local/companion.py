"""The campaign that scores the finalists of another one on its test part: its definition, and its trials.

Its trials follow from its definition: each configuration with each seed. They are written while it is paused, and it
runs when all are there, so a command that was killed at any point is completed by the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.errors import CampaignError, DuplicateError, StateError, nearest
from autotune.local.follow import who
from autotune.local.resolve import definition_hash
from autotune.space.canonical import digest
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState, Origin, Trial, TrialState

SUFFIX = "-benchmark"
DEFAULT, TUNED = "default", "tuned"
_TIMES_LONGER = 4.0
"""An evaluation trains twice, as imputation has a model of its own, and scores with more draws than a search does."""
_STREAM = 0x7E57
"""Keeps the seeds of a benchmark apart from those of the search, which chose its winner partly for its seed."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One trial of a benchmark.

    Attributes:
        number: Its number.
        replicate: Index of its seed.
        params: Its configuration.
        seed: Its seed; one for all configurations of a replicate.
    """

    number: int
    replicate: int
    params: Mapping[str, Any]
    seed: int


def companion_name(name: str) -> str:
    """Return the name of the benchmark of a campaign."""
    return f"{name}{SUFFIX}"


def replicate_seed(campaign_seed: int, replicate: int) -> int:
    """Return the seed of all trials of a replicate, below 2**32; none of the search's (`planning.trial_seed`)."""
    return int(np.random.SeedSequence([campaign_seed, _STREAM, replicate]).generate_state(1)[0])


def planned(record: CampaignRecord) -> list[Planned]:
    """Return the trials of a benchmark, replicate by replicate; equal configurations are trained once."""
    evaluation = record.evaluation or {}
    configurations = list({digest(params): params for params in evaluation["runs"].values()}.values())
    seed = int(record.spec["search"]["seed"])
    return [
        Planned(
            number=replicate * len(configurations) + index, replicate=replicate, params=params,
            seed=replicate_seed(seed, replicate),
        )
        for replicate in range(int(evaluation["seeds"]))
        for index, params in enumerate(configurations)
    ]  # fmt: skip


def complete(store: MongoStore, name: str) -> CampaignRecord:
    """Write the trials that a benchmark lacks and let it run; one that runs or has ended is left as it is.

    A cancelled one is taken up again: the test part is scored by this benchmark or by none.
    """
    record = store.campaigns.get(name)
    if record.state is CampaignState.CANCELLED:
        held = [CampaignState.CANCELLED]
        store.campaigns.set_state(name, CampaignState.PAUSED, expected=held, message="it goes on", who=who())
        record = store.campaigns.get(name)
    if record.state is CampaignState.PAUSED:
        dropped = [t.number for t in store.trials.heads(name) if t.state is TrialState.CANCELLED]
        store.trials.retry(name, dropped)  # also those of an earlier call that was killed at this point
        for trial in planned(record):
            try:
                store.trials.propose(
                    name, trial.number, trial.params, digest(trial.params), seed=trial.seed,
                    replicate=trial.replicate, origin=Origin.PERSON,
                )  # fmt: skip
            except DuplicateError:  # an earlier call, or another one at this moment, wrote it: they are all the same
                continue
        store.campaigns.set_state(name, CampaignState.RUNNING, expected=[CampaignState.PAUSED], who=who())
    return store.campaigns.get(name)


def refuse_companion(record: CampaignRecord, command: str) -> None:
    """Refuse what would change the trials of a benchmark.

    Raises:
        StateError: If the campaign is one.
    """
    evaluation = record.evaluation
    if evaluation:
        raise StateError(
            f"'{record.name}' is the benchmark of '{evaluation.get('of')}': its trials are fixed, {command} does not "
            "apply"
        )


def companion_of(
    parent: CampaignRecord,
    trials: Sequence[Trial],
    *,
    seeds: int,
    finalists: int,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any] | None,
) -> CampaignRecord:
    """Return the campaign that scores the finalists of a finished one.

    Args:
        parent: The finished campaign.
        trials: Its trials.
        seeds: Number of seeds.
        finalists: Number of best configurations.
        settings: All settings of the evaluation.
        metrics: What the evaluation returns; empty: not known.
        defaults: The objective's default parameters; None: it has none, and there is no default run.

    Raises:
        CampaignError: If the evaluation does not return the metric of the campaign on the test part.
    """
    chosen = _finalists(parent, trials, finalists)
    runs = {} if defaults is None else {DEFAULT: {k: defaults[k] for k in parent.space if k in defaults}}
    runs |= {label: dict(trial.params) for label, trial in chosen.items()}
    count = seeds * len({digest(params) for params in runs.values()})
    metric = {"name": sealed_metric(parent.metric["name"], metrics), "mode": parent.metric["mode"]}
    evaluation = {
        "of": parent.name,
        "settings": dict(settings),
        "seeds": seeds,
        "finalists": finalists,
        "runs": runs,
        "chosen": {label: trial.number for label, trial in chosen.items()},
        "modes": {name: str(spec["mode"]) for name, spec in metrics.items() if "mode" in spec},
    }
    spec = {
        **parent.spec,
        "name": companion_name(parent.name),
        "split": {**(parent.spec.get("split") or {}), "unsealed": True},
        "metric": metric,
        "metrics": [metric["name"], *(name for name in metrics if name != metric["name"])],
        "search": {"algorithm": "none", "seed": int(parent.spec["search"]["seed"])},
        "schedule": {"algorithm": "none"},
        "checkpoints": {**(parent.spec.get("checkpoints") or {}), "keep_best": 0},
        "limits": {key: s and s * _TIMES_LONGER for key, s in (parent.spec.get("limits") or {}).items()},
        "budget": {"max_trials": count, "max_hours": None, "max_device_hours": None},
        "evaluation": evaluation,
        "description": f"benchmark of {parent.name} on its test part",
    }
    return CampaignRecord(
        name=spec["name"],
        state=CampaignState.PAUSED,
        message="its trials are being written",
        spec=spec,
        spec_hash=definition_hash(spec),
        space=parent.space,
        metric=metric,
        facts=parent.facts,
        paths=parent.paths,
        environment=parent.environment,
        max_trials=count,
    )


def _finalists(parent: CampaignRecord, trials: Sequence[Trial], count: int) -> dict[str, Trial]:
    """Return the best configurations by label: ``tuned``, ``tuned-2``, ..., each as its first trial."""
    from autotune.report.ranking import rank  # pandas, which a launch does without

    by_number = {trial.number: trial for trial in trials}
    best = [e for e in rank(trials, parent.metric["mode"]) if e.state is TrialState.FINISHED and np.isfinite(e.score)]
    return {TUNED if i == 0 else f"{TUNED}-{i + 1}": by_number[entry.number] for i, entry in enumerate(best[:count])}


def sealed_metric(name: str, known: Mapping[str, Any]) -> str:
    """Return the name of a metric on the test part: ``marginal_ll_test``, ``elbo_test`` of ``elbo_validation``.

    Args:
        name: The metric of the search.
        known: What the evaluation returns; empty: not known.

    Raises:
        CampaignError: If the evaluation returns no such metric.
    """
    plain = name.removesuffix("_validation").removesuffix("_train")
    candidates = [f"{name}_test", f"{plain}_test"] if known else [f"{plain}_test"]
    found = next((candidate for candidate in candidates if not known or candidate in known), None)
    if found is None:
        raise CampaignError(
            f"the evaluation returns no metric '{plain}_test' for the campaign's '{name}'{nearest(plain, known)}"
        )
    return found
