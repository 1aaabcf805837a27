"""Benchmarks: opens the test part of a finished campaign once, and scores its best and its default configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autotune.errors import CampaignExistsError, InputError, NotFoundError, StateError
from autotune.local.companion import companion_name, companion_of, complete, sealed_metric
from autotune.local.crew import Crew
from autotune.local.follow import Progress, follow, who
from autotune.local.inquiry import ask
from autotune.local.session import OpenStore, best_trial
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.trial import CampaignState

if TYPE_CHECKING:
    from autotune.report.benchmark import Benchmark

SEEDS = 5
FINALISTS = 1
_MOST_SEEDS = 1_000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asks of a benchmark; what is None or not named has its default, or is as it was before.

    Attributes:
        seeds: Number of seeds; `SEEDS` by default.
        finalists: Number of best configurations; `FINALISTS` by default.
        settings: Settings of the evaluation that differ from the objective's defaults.
        allowed: Modules that an objective may come from, beside the working directory.
    """

    seeds: int | None = None
    finalists: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    allowed: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if self.seeds is not None and not 1 <= self.seeds <= _MOST_SEEDS:
            raise InputError(f"--seeds must be from 1 to {_MOST_SEEDS}, not {self.seeds}")
        if self.finalists is not None and self.finalists < 1:
            raise InputError(f"--finalists must be 1 or more, not {self.finalists}")


def benchmark(
    name: str,
    *,
    store: str | MongoStore | None = None,
    seeds: int | None = None,
    finalists: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    allow_mismatch: bool = False,
    allowed: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Benchmark:
    """Score the default and the tuned configuration of a finished campaign on its test part, over several seeds.

    The campaign is over for good afterwards. Calling it again goes on with what is missing, or returns what there is.

    Args:
        name: The finished campaign.
        store: As for `launch`.
        seeds: Number of seeds; default: 5.
        finalists: Number of best configurations that are scored; default: 1.
        settings: Settings of the evaluation, for example ``{"imputation": "binomial", "imputation_rate": 0.1}``.
        workers: As for `launch`.
        devices: As for `launch`.
        slots_per_device: As for `launch`.
        allow_mismatch: As for `launch`.
        allowed: Modules that workers may import objectives from; on a store of this machine the campaign's own always.
        on_progress: Called a few times a second; with many trials its counts may be up to 2 s old.

    Returns:
        The table, with its caption.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it is not finished, has no test part, or none of its trials finished.
        InputError: If its objective cannot evaluate, or the benchmark was begun with other settings.
    """
    wanted = Wanted(seeds=seeds, finalists=finalists, settings=settings or {}, allowed=allowed)
    with OpenStore(store) as opened:
        crew = Crew(
            store_uri=opened.uri, campaign=companion_name(name), workers=workers, devices=devices,
            slots_per_device=slots_per_device, allow_mismatch=allow_mismatch, allowed=tuple(allowed),
            trusted=opened.is_local,
        )  # fmt: skip
        begin(opened, name, wanted)
        follow(opened, crew, on_progress)
        return load(opened, name)


def begin(store: MongoStore, name: str, wanted: Wanted) -> CampaignRecord:
    """Open the test part of a campaign and write its benchmark, or find the one that is there; it runs afterwards.

    Args:
        store: An open store.
        name: The finished campaign.
        wanted: What is asked.

    Returns:
        The benchmark's campaign, which may have ended.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it is not finished, has no test part, or none of its trials finished.
        InputError: If its objective cannot evaluate, or the benchmark was begun with other settings.
    """
    parent = store.campaigns.get(name)
    if parent.evaluation:
        raise StateError(f"'{name}' is a benchmark itself; see its table: autotune report {parent.evaluation['of']}")
    if companion(store, name) is None:
        _create(store, parent, wanted)
    elif parent.state is CampaignState.FINISHED:
        store.campaigns.unseal(name, who())  # a backup from before may have brought it back with its seal
    found = store.campaigns.get(companion_name(name))
    _check_same(found, wanted)
    return complete(store, found.name)


def companion(store: MongoStore, name: str) -> CampaignRecord | None:
    """Return the benchmark of a campaign, or None when there is none.

    Raises:
        CampaignExistsError: If its name is taken by a campaign that is none.
    """
    try:
        found = store.campaigns.get(companion_name(name))
    except NotFoundError:
        return None
    if (found.evaluation or {}).get("of") != name:
        raise CampaignExistsError(
            f"the benchmark of '{name}' would be called '{found.name}', which is another campaign of this store; "
            "launch the campaign under another name, or use another store"
        )
    return found


def load(store: MongoStore, name: str) -> Benchmark:
    """Return the benchmark of a campaign with its trials, as they are now.

    Args:
        store: An open store.
        name: The campaign, or its benchmark.

    Raises:
        NotFoundError: If there is none.
    """
    from autotune.report.benchmark import Benchmark

    record = store.campaigns.get(name)
    parent = store.campaigns.get(record.evaluation["of"]) if record.evaluation else record
    found = companion(store, parent.name)
    if found is None:
        raise NotFoundError(f"campaign '{name}' has no benchmark; when it is finished: autotune benchmark {name}")
    return Benchmark(
        parent=parent,
        trials_of_parent=tuple(store.trials.find(parent.name)),
        companion=found,
        trials_of_companion=tuple(store.trials.find(found.name)),
        opened_by=tuple(r.name for r in store.campaigns.find() if _same_test_part(r, parent)),
    )


def _same_test_part(other: CampaignRecord, parent: CampaignRecord) -> bool:
    """Return whether another campaign has opened the same test part."""
    sha256 = (parent.facts.get("split") or {}).get("sha256")
    same = sha256 is not None and (other.facts.get("split") or {}).get("sha256") == sha256
    return same and other.unsealed_at is not None and other.name != parent.name


def _create(store: MongoStore, parent: CampaignRecord, wanted: Wanted) -> None:
    """Check all that can be wrong, then open the seal, then write the benchmark."""
    name = parent.name
    if parent.state is not CampaignState.FINISHED:
        why = f" ({parent.message})" if parent.message else ""
        raise StateError(f"campaign '{name}' is {parent.state}{why}; its test part is opened when it is finished")
    _check_test_part(parent)
    if best_trial(store.trials.heads(name), parent.metric["mode"]) is None:
        raise StateError(f"no trial of campaign '{name}' finished: there is nothing to benchmark")
    module, _, function = str(parent.spec["objective"]).partition(":")
    trusted = store.is_local and bool(function)
    found = ask(
        "workers.evaluation",
        {"spec": dict(parent.spec), "given": dict(wanted.settings),
         "allowed": [*wanted.allowed, *([module] if trusted else [])]},
        "looking at the campaign's evaluation",
        paths=parent.paths if trusted else (),
    )  # fmt: skip
    sealed_metric(parent.metric["name"], found["metrics"])
    store.campaigns.unseal(name, who())
    record = companion_of(
        store.campaigns.get(name), store.trials.find(name), seeds=wanted.seeds or SEEDS,
        finalists=wanted.finalists or FINALISTS, **found,
    )  # fmt: skip
    try:
        store.campaigns.create(record, who())
    except CampaignExistsError:  # another command at this moment; whether it asked for the same is looked at next
        companion(store, name)


def _check_test_part(parent: CampaignRecord) -> None:
    split = parent.facts.get("split") or {}
    own_data = parent.spec.get("data") is None and not split  # the objective alone knows what its trials see
    if own_data or split.get("n_test") or split.get("protocol") == "published":
        return
    raise StateError(
        f"campaign '{parent.name}' has no test part; launch it under another name with split: {{test: 0.2}} and "
        "benchmark that one"
    )


def _check_same(found: CampaignRecord, wanted: Wanted) -> None:
    """Refuse to score the test part again with other settings.

    Raises:
        CampaignExistsError: If they differ in what was said.
    """
    evaluation = found.evaluation or {}
    asked = {"seeds": wanted.seeds, "finalists": wanted.finalists}
    pairs = [(key, evaluation.get(key), value) for key, value in asked.items() if value is not None]
    settings = evaluation.get("settings") or {}
    pairs += [(key, settings.get(key), value) for key, value in wanted.settings.items()]
    for key, was, value in pairs:
        if was != value:
            raise CampaignExistsError(
                f"the benchmark of '{evaluation.get('of')}' was begun with {key} {was}, not {value}: the test part is "
                "scored once; leave the option out to go on with it, or to see its table"
            )
