"""Launches a campaign from this machine and follows it to its end; the public `launch` and `resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.campaign import Campaign
from autotune.errors import StateError
from autotune.local.companion import complete
from autotune.local.crew import Crew
from autotune.local.follow import Progress, follow, who
from autotune.local.resolve import as_campaign, objective_paths, resolve
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import ENDED
from autotune.store.campaigns import opened as opened_for_good
from autotune.store.mongo import MongoStore, open_store
from autotune.trial import CampaignState, Trial, TrialState

if TYPE_CHECKING:
    import pandas as pd

    from autotune.report.report import Report


@dataclass(frozen=True, kw_only=True)
class CampaignResult:
    """A campaign as it was when `launch` returned.

    Attributes:
        campaign: Its record.
        trials: All its trials, in order of number.
    """

    campaign: CampaignRecord
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best score, or None when none finished."""
        return best_trial(self.trials, self.campaign.metric["mode"])

    def frame(self) -> pd.DataFrame:
        """Return all trials as a table, one row each."""
        from autotune.history import frame

        return frame(self.trials, self.campaign.metric["name"])

    def report(self) -> Report:
        """Return the tables of best and worst configurations and run times."""
        from autotune.report.report import Report

        return Report(campaign=self.campaign, trials=self.trials)


def best_trial(trials: tuple[Trial, ...] | list[Trial], mode: str) -> Trial | None:
    """Return the finished trial with the best score (the lowest number among equals), or None."""
    sign = -1.0 if mode == "max" else 1.0
    scored = [(sign * t.score, t.number, t) for t in trials if t.state is TrialState.FINISHED and t.score is not None]
    return min(scored)[2] if scored else None


def launch(
    campaign: Campaign | Mapping[str, Any] | str | Path,
    *,
    store: str | MongoStore | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    allow_mismatch: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> CampaignResult:
    """Run a campaign from this machine to its end.

    Launching the same definition again goes on where it stopped; a finished campaign is returned as it is.

    Args:
        campaign: A file, a mapping with the same keys, or a `Campaign`.
        store: URI of the store, or an open one; default: ``AUTOTUNE_STORE``, else the embedded store.
        workers: Number of local workers; they divide this machine's devices. 0: workers elsewhere do the work.
        devices: ``auto``, ``cpu`` or GPU numbers.
        slots_per_device: Number of trials at a time on each device.
        allow_mismatch: Whether workers may differ from the launch in package versions or source; recorded per attempt.
        on_progress: Called a few times a second; with many trials its counts may be up to 2 s old.

    Returns:
        The campaign with its trials.

    Raises:
        InputError: What is wrong with the campaign, one line; nothing has been written.
        StoreUnreachableError: If the store does not answer within 5 seconds.
        KeyboardInterrupt: On Ctrl-C; running trials went back to the store and the campaign is paused.
    """
    checked = as_campaign(campaign)
    with OpenStore(store) as opened:
        crew = Crew(
            store_uri=opened.uri, campaign=checked.name, workers=workers, devices=devices,
            slots_per_device=slots_per_device, allow_mismatch=allow_mismatch,
        )  # fmt: skip
        submit(opened, checked, objective_paths(campaign))
        return result_of(opened, follow(opened, crew, on_progress))


def resume(
    name: str,
    *,
    store: str | MongoStore | None = None,
    workers: int = 1,
    devices: str = "auto",
    slots_per_device: int = 1,
    allow_mismatch: bool = False,
    allowed: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> CampaignResult:
    """Go on with a campaign that was paused or lost its coordinator, to exactly its budget. Arguments as for `launch`.

    Args:
        allowed: Modules that workers may import objectives from; on a store of this machine the campaign's own always.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it has ended.
    """
    with OpenStore(store) as opened:
        crew = Crew(
            store_uri=opened.uri, campaign=name, workers=workers, devices=devices, slots_per_device=slots_per_device,
            allow_mismatch=allow_mismatch, allowed=tuple(allowed), trusted=opened.is_local,
        )  # fmt: skip
        reopen(opened, name)
        return result_of(opened, follow(opened, crew, on_progress))


def result_of(store: MongoStore, name: str) -> CampaignResult:
    """Return a campaign with its trials, as they are now."""
    return CampaignResult(campaign=store.campaigns.get(name), trials=tuple(store.trials.find(name)))


def submit(store: MongoStore, campaign: Campaign, paths: tuple[str, ...] = ()) -> CampaignRecord:
    """Write a campaign into the store, or find the same definition there; a paused one goes on.

    Args:
        store: An open store.
        campaign: The campaign, validated.
        paths: Folders where workers on this machine should look for the objective's module.

    Raises:
        InputError: What is wrong with the campaign, one line; nothing has been written.
        CampaignExistsError: If another definition has that name.
        StateError: If the same definition failed or was cancelled.
    """
    record = resolve(campaign, paths)
    if not store.campaigns.create(record, who()):
        store.campaigns.relocate(record)
        found = store.campaigns.get(record.name)
        if found.state is not CampaignState.FINISHED:
            reopen(store, record.name)
    return store.campaigns.get(record.name)


_ON = {
    CampaignState.FINISHED: "to run more trials: autotune extend {name} --trials N",
    CampaignState.FAILED: "to try what failed again: autotune retry {name} --all",
    CampaignState.CANCELLED: "to run more, launch it under another name",
}


def reopen(store: MongoStore, name: str) -> None:
    """Let a paused campaign go on; one that runs is left as it is.

    Raises:
        NotFoundError: If there is no such campaign.
        StateError: If it has ended, or its test part is open.
    """
    record = store.campaigns.get(name)
    if record.unsealed_at is not None:
        raise opened_for_good(name)
    if record.evaluation and record.state is CampaignState.PAUSED:
        complete(store, name)
    if record.evaluation and record.state in ENDED:
        of = record.evaluation.get("of")
        raise StateError(f"'{name}', the benchmark of '{of}', is {record.state}; go on with: autotune benchmark {of}")
    if record.state not in (CampaignState.RUNNING, CampaignState.PAUSED):
        why = f" ({record.message})" if record.message else ""
        raise StateError(f"campaign '{name}' is {record.state}{why}; {_ON[record.state].format(name=name)}")
    store.campaigns.set_state(name, CampaignState.RUNNING, expected=[CampaignState.PAUSED], who=who())


class OpenStore:
    """Opens a store for a ``with`` block; one that was given open is left open."""

    def __init__(self, store: str | MongoStore | None) -> None:
        self._given = store
        self._store: MongoStore | None = None

    def __enter__(self) -> MongoStore:
        if isinstance(self._given, MongoStore):
            return self._given
        self._store = open_store(self._given)
        return self._store

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()
