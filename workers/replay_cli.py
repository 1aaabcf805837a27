"""The command ``autotune replay``: runs a finished trial again, outside its campaign, and compares the scores."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import exit_codes
from autotune.cli.output import store_option
from autotune.errors import InputError, StateError, WorkerError
from autotune.processes import stop_on_signals
from autotune.store.mongo import open_store
from autotune.trial import Result, Trial
from workers.admission import Admission
from workers.channel import Message
from workers.children import Children
from workers.datasets import DatasetCache
from workers.devices import Slot, make_slots
from workers.ending import cause_of_death, kernel_oom_kills, result_of
from workers.training import Child

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord
    from autotune.store.mongo import MongoStore

_GRACE_S = 3.0
_POLL_S = 0.25


@click.command()
@click.argument("name")
@click.argument("number", type=int)
@click.option(
    "--tolerance", default=0.0, show_default=True, metavar="T", help="Scores that differ by no more are equal."
)
@click.option(
    "--devices", default="auto", show_default=True, help="auto (the first GPU, else the CPU), cpu, or a GPU number."
)
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: this machine's cores.")
@click.option(
    "--allow-objective", "allowed", multiple=True, metavar="MODULE", help="As for `autotune worker`; repeatable."
)
@click.option("--allow-mismatch", is_flag=True, help="Run it with other package versions or source all the same.")
@store_option
def replay(
    name: str,
    number: int,
    tolerance: float,
    devices: str,
    threads: int | None,
    allowed: tuple[str, ...],
    allow_mismatch: bool,
    store_uri: str | None,
) -> int:
    """Run finished trial NUMBER of campaign NAME again, with its configuration and seed, and compare the scores.

    Nothing is written to the store. Exit code 0: equal within --tolerance; 1: not, or it did not get to its end.
    """
    if not tolerance >= 0:
        raise InputError(f"--tolerance must be 0 or more, not {tolerance:g}")
    slot = make_slots(devices, 1, threads)[0]
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    stop = threading.Event()
    with open_store(store_uri) as store, stop_on_signals(stop, at_once=lambda: os._exit(exit_codes.INTERRUPTED)):
        record, trial = store.campaigns.get(name), store.trials.get(name, number)
        if trial.score is None:
            raise StateError(f"trial {number} of '{name}' is {trial.state}; only a finished one has a score to compare")
        refusal = Admission(allowed, allow_mismatch=allow_mismatch).refusal(record)
        if refusal is not None:
            raise WorkerError(refusal)
        result = run_again(store, record, trial, slot, stop)
    return _compare(record, trial, result, tolerance)


def _compare(record: CampaignRecord, trial: Trial, result: Result, tolerance: float) -> int:
    then = float(trial.score or 0.0)
    difference = abs(result.score - then)
    equal = difference <= tolerance
    click.echo(f"{record.metric['name']} of trial {trial.number}: {then!r} then, {result.score!r} now")
    verdict = "equal" if equal else "not equal"
    click.echo(f"{verdict} within {tolerance:g} (difference {difference:g})")
    return exit_codes.OK if equal else exit_codes.FAILURE


def run_again(store: MongoStore, record: CampaignRecord, trial: Trial, slot: Slot, stop: threading.Event) -> Result:
    """Run a trial's configuration with its seed in a child process, as a worker does; nothing is written to the store.

    Args:
        store: Where the data come from, if this host lacks them.
        record: The campaign.
        trial: The trial.
        slot: What to run it on.
        stop: When set, the training is ended.

    Raises:
        DataError: If the campaign's data are not to be had.
        WorkerError: If the training did not return a result; says why.
    """
    with _served(store, record, stop) as children:
        children.start(stop)
        ooms = kernel_oom_kills()
        child = children.spawn(_request(children.spec, record, trial, slot), slot.environment())
        try:
            last = _last_message(child, stop)
            if last is not None and "result" in last:
                return result_of(last)
            raise WorkerError(
                f"the replay of trial {trial.number} of '{trial.campaign}' {_why(child, last, stop, ooms)}"
            )
        finally:
            child.terminate(_GRACE_S)
            child.close()


@contextmanager
def _served(store: MongoStore, record: CampaignRecord, stop: threading.Event) -> Iterator[Children]:
    folder = Path(tempfile.mkdtemp(prefix="autotune-replay-"))
    data = DatasetCache(store)
    children: Children | None = None
    try:
        children = Children(data.localise(record.spec, stop), folder)
        yield children
    finally:
        if children is not None:
            children.stop()
        data.close()
        shutil.rmtree(folder, ignore_errors=True)


def _request(spec: Mapping[str, Any], record: CampaignRecord, trial: Trial, slot: Slot) -> dict[str, Any]:
    return {
        "spec": dict(spec),
        "metric": dict(record.metric),
        "trial": {
            "params": {**trial.params, **(spec.get("fixed") or {})},
            "campaign": trial.campaign,
            "number": trial.number,
            "fold": trial.fold,
            "replicate": trial.replicate,
            "attempt": max(0, trial.claims - 1),
            "seed": trial.seed,
            "device": slot.trial_device,
            "threads": slot.threads,
        },
    }


def _last_message(child: Child, stop: threading.Event) -> Message | None:
    """Read a training's messages; return its last one, or None when it died or was stopped before."""
    while not stop.is_set():
        message = child.channel.receive(_POLL_S)
        if message is not None and "report" not in message:
            return message
        child.trim_log()
        if message is None and (child.channel.closed or child.ended.is_set()):
            while (message := child.channel.receive(0.0)) is not None:
                if "report" not in message:
                    return message
            return None
    return None


def _why(child: Child, last: Message | None, stop: threading.Event, ooms: int) -> str:
    if last is not None:
        return f"failed ({last['failed']['cause']}): {last['failed']['message']}"
    if stop.is_set():
        return "was stopped"
    child.ended.wait(_GRACE_S)
    return f"failed: {cause_of_death(child.status, oom_killed=kernel_oom_kills() > ooms)[1]}"
