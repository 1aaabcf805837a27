"""The command ``autotune replay``: runs a finished trial again, outside its campaign, and compares the scores."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from autotune.cli import exit_codes
from autotune.cli.output import store_option
from autotune.errors import InputError, StateError, WorkerError
from autotune.processes import stop_on_signals
from autotune.store.mongo import open_store
from autotune.trial import Result, Trial
from workers.admission import Admission
from workers.again import run_again, slot_like, unlike

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord


@click.command()
@click.argument("name")
@click.argument("number", type=int)
@click.option(
    "--tolerance", default=0.0, show_default=True, metavar="T", help="Scores that differ by no more are equal."
)
@click.option(
    "--devices", help="auto (the first GPU, else the CPU), cpu, or a GPU number; default: what the trial had."
)
@click.option("--threads", type=int, metavar="N", help="CPU threads; default: as many as the trial had.")
@click.option(
    "--allow-objective", "allowed", multiple=True, metavar="MODULE", help="As for `autotune worker`; repeatable."
)
@click.option("--allow-mismatch", is_flag=True, help="Run it with other package versions or source all the same.")
@store_option
def replay(
    name: str,
    number: int,
    tolerance: float,
    devices: str | None,
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
    with open_store(store_uri) as store, stopped_by_signals() as stop:
        record, trial = store.campaigns.get(name), store.trials.get(name, number)
        if trial.score is None:
            raise StateError(f"trial {number} of '{name}' is {trial.state}; only a finished one has a score to compare")
        check_admitted(record, allowed, allow_mismatch=allow_mismatch)
        slot = slot_like(trial, devices, threads)
        result = run_again(store, record, trial, slot, stop)
    equal = compare(record, trial, result, unlike(trial, slot), tolerance)
    return exit_codes.OK if equal else exit_codes.FAILURE


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets; the second one ends this process at once.

    Raises:
        click.Abort: If what was stopped so ended with an error.
    """
    stop = threading.Event()
    with stop_on_signals(stop, at_once=lambda: os._exit(exit_codes.INTERRUPTED)):
        try:
            yield stop
        except WorkerError:
            if stop.is_set():
                raise click.Abort from None
            raise


def check_admitted(record: CampaignRecord, allowed: tuple[str, ...], *, allow_mismatch: bool) -> None:
    """Refuse a campaign whose code may not run here; modules of the working directory may.

    Raises:
        WorkerError: Says what to do.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    refusal = Admission(allowed, allow_mismatch=allow_mismatch).refusal(record)
    if refusal is not None:
        raise WorkerError(refusal)


def compare(record: CampaignRecord, trial: Trial, result: Result, why: list[str], tolerance: float = 0.0) -> bool:
    """Print the score of a trial then and now, and whether they are equal.

    Args:
        record: The campaign.
        trial: The trial, finished.
        result: What running it again gave.
        why: What may explain a difference.
        tolerance: Scores that differ by no more are equal.
    """
    then = float(trial.score or 0.0)
    difference = abs(result.score - then)
    equal = difference <= tolerance
    click.echo(f"{record.metric['name']} of trial {trial.number}: {then!r} then, {result.score!r} now")
    verdict = "equal" if equal else "not equal"
    click.echo(f"{verdict} within {tolerance:g} (difference {difference:g})")
    for reason in why if not equal else ():
        click.echo(f"it may differ because {reason}", err=True)
    return equal
