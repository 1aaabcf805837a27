"""The command ``autotune worker``, also ``python -m workers``."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace

import click

from autotune import logs
from autotune.cli.output import store_option
from autotune.errors import InputError
from autotune.processes import stop_on_signals, stop_with_parent
from autotune.store.mongo import open_store
from workers.admission import Admission
from workers.agent import Agent
from workers.devices import Slot, make_slots


@click.command()
@click.option("--campaign", "campaigns", multiple=True, metavar="NAME", help="Serve this campaign only; repeatable.")
@click.option(
    "--devices", default="auto", show_default=True, help="auto (all GPUs, else the CPU), cpu, or GPU numbers: 0,1."
)
@click.option("--slots-per-device", default=1, show_default=True, metavar="K", help="Trials at a time on each device.")
@click.option("--threads", type=int, metavar="N", help="CPU threads per slot; default: this machine's cores, shared.")
@click.option(
    "--grace",
    "grace_s",
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds that running trials may still take when the worker is asked to end.",
)
@click.option(
    "--allow-objective",
    "allowed",
    multiple=True,
    metavar="MODULE",
    help="A module or package that objectives may come from, beside the working directory; repeatable.",
)
@click.option(
    "--allow-mismatch", is_flag=True, help="Serve campaigns launched with other package versions or source; recorded."
)
@click.option("--once", is_flag=True, help="End when the campaigns need nothing more.")
@click.option("--share", default="0/1", hidden=True, help="i/n: the i-th of n workers that divide this machine.")
@click.option("--with-parent", type=int, hidden=True, help="End when this process, the parent, ends.")
@store_option
def worker(
    store_uri: str | None,
    campaigns: tuple[str, ...],
    devices: str,
    slots_per_device: int,
    threads: int | None,
    grace_s: float,
    allowed: tuple[str, ...],
    allow_mismatch: bool,
    once: bool,
    share: str,
    with_parent: int | None,
) -> None:
    """Pull trials from the store and train them, one at a time on each device.

    Joins campaigns that run already. At the first Ctrl-C or SIGTERM running trials may still end within --grace, then
    they go back to the store, and it ends with exit code 0; a second one ends at once.
    """
    logs.configure()
    slots = share_slots(make_slots(devices, slots_per_device, threads), share, given_threads=threads)
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    stop = threading.Event()
    with open_store(store_uri) as opened, stop_on_signals(stop, at_once=lambda: os._exit(130)):
        stop_with_parent(stop, with_parent)
        agent = Agent(
            opened, slots, campaigns=campaigns or None, once=once, grace_s=grace_s,
            admission=Admission(allowed, allow_mismatch=allow_mismatch),
        )  # fmt: skip
        agent.run(stop)


def share_slots(slots: list[Slot], share: str, *, given_threads: int | None) -> list[Slot]:
    """Return the slots of one of several workers that divide this machine.

    GPUs are dealt out in turn; a worker that gets none shares one. On the CPU all keep their slots. The cores are
    divided.

    Args:
        slots: The slots of a worker that has the machine for itself.
        share: ``i/n``: the i-th (from 0) of n workers.
        given_threads: Threads per slot that the user asked for; None: divide.

    Raises:
        InputError: If `share` is not of that form.
    """
    first, _, second = share.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise InputError(f"--share takes i/n with i < n, not '{share}'")
    index, count = int(first), int(second)
    devices = list(dict.fromkeys(slot.device for slot in slots))
    mine = devices[index::count] or [devices[index % len(devices)]]
    if devices == ["cpu"]:
        mine = devices
    kept = [slot for slot in slots if slot.device in mine]
    cores = len(os.sched_getaffinity(0))
    threads = given_threads or max(1, cores // max(1, count * len(kept)))
    return [replace(slot, index=i, threads=threads) for i, slot in enumerate(kept)]
