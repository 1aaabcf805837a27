"""Objectives that end in every way a training can end; the tests name them as ``tests.objectives.endings:...``."""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from workers.reporting import Trial

_NEVER = threading.Event()
_IMPORTER = os.getpid()


def chosen(trial: Trial) -> Any:
    """Do what the parameter ``do`` names: one campaign, loaded once, whose trials end differently."""
    return globals()[trial.params["do"]](trial)


def square(trial: Trial) -> float:
    """Return x squared."""
    return float(trial.params["x"]) ** 2


def reports(trial: Trial) -> float:
    """Report ten steps, then return x squared."""
    for step in range(10):
        trial.report(step, loss=10.0 - step)
    return square(trial)


def environment(trial: Trial) -> dict[str, Any]:
    """Return what the process sees of its slot."""
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    open_files = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    seen = {name: os.environ.get(name) for name in names}
    return {"loss": 0.0, "seen": seen, "open": len(open_files), "device": trial.device, "pid": os.getpid()}


def loaded_by(trial: Trial) -> dict[str, Any]:
    """Return the id of the process that imported this module."""
    return {"loss": 0.0, "importer": str(_IMPORTER)}


def fails(trial: Trial) -> NoReturn:
    """Print, then raise."""
    sys.stdout.write("about to fail\n")
    raise ValueError("no such thing")


def bad_text(trial: Trial) -> NoReturn:
    """Raise an error whose text no database can hold."""
    raise OSError(f"cannot read {os.fsdecode(bytes([0x66, 0xFF]))}")


def not_a_number(trial: Trial) -> float:
    """Return NaN."""
    return float("nan")


def exits(trial: Trial) -> NoReturn:
    """Call sys.exit."""
    sys.exit(3)


def cancelled(trial: Trial) -> NoReturn:
    """Raise an exception that is no Exception."""
    raise asyncio.CancelledError


def exits_hard(trial: Trial) -> NoReturn:
    """End without a word."""
    os._exit(9)


def segfaults(trial: Trial) -> None:
    """Read address 0."""
    ctypes.string_at(0)


def killed(trial: Trial) -> None:
    """Die as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminated(trial: Trial) -> None:
    """Die as by ``kill``."""
    os.kill(os.getpid(), signal.SIGTERM)


def hangs(trial: Trial) -> None:
    """Write a file that says so, and hang."""
    _mark(trial)
    _NEVER.wait()


def hangs_deaf(trial: Trial) -> None:
    """Ignore SIGTERM, and hang."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangs(trial)


def polite(trial: Trial) -> float:
    """Report until the worker asks to stop; clean up then."""
    _mark(trial)
    try:
        for step in range(1_000_000):
            trial.report(step, loss=1.0)
            _NEVER.wait(0.02)
    finally:
        Path(trial.params["folder"], "cleaned").touch()
    return 1.0


def holds(trial: Trial) -> float:
    """Hang until the file ``go``, or ``go-NUMBER`` for this trial alone, is in the folder; then return the square."""
    _mark(trial)
    while not any(Path(trial.params["folder"], name).exists() for name in ("go", f"go-{trial.number}")):
        _NEVER.wait(0.02)
    return float(trial.params["x"]) ** 2


def holds_first(trial: Trial) -> float:
    """Hang as `holds` does in a trial's first attempt only."""
    if trial.attempt == 0 and trial.number == 0:
        return holds(trial)
    return float(trial.params["x"]) ** 2


def stalls_first(trial: Trial) -> float:
    """Report five times a second, then return the square; trial 0 falls silent after three reports."""
    _mark(trial)
    for step in range(trial.params["steps"]):
        trial.report(step, loss=1.0)
        _NEVER.wait(0.2)
        if trial.number == 0 and step == 2:
            _NEVER.wait()
    return square(trial)


def reports_at_the_end(trial: Trial) -> float:
    """Report steps 0 to 4, hang as `holds` does in the first attempt, report steps 5 to 9, return the square."""
    for step in range(5):
        trial.report(step, loss=10.0 - step)
    if trial.attempt == 0:
        holds(trial)
    for step in range(5, 10):
        trial.report(step, loss=10.0 - step)
    return square(trial)


def naps(trial: Trial) -> float:
    """Take as many seconds as the parameter ``seconds`` says; return the square."""
    _mark(trial)
    _NEVER.wait(trial.params["seconds"])
    return square(trial)


def hungry_first(trial: Trial) -> float:
    """Run out of memory in the first attempts of some trials; later attempts of these take their time.

    The first attempts of the trials below the parameter ``together`` wait as `holds` does.
    """
    hungry = trial.number in trial.params["hungry"]
    if trial.attempt == 0 and trial.number < trial.params.get("together", 0):
        holds(trial)
    with _written_down(trial):
        _NEVER.wait(0.8 if hungry and trial.attempt else 0.2)
        if hungry and trial.attempt == 0:
            raise MemoryError("too much")
    return square(trial)


def hungry_always(trial: Trial) -> float:
    """Run out of memory in every attempt of some trials."""
    with _written_down(trial):
        _NEVER.wait(0.1)
        if trial.number in trial.params["hungry"]:
            raise MemoryError("too much")
    return square(trial)


def holds_beside_hungry(trial: Trial) -> float:
    """Trial 0 hangs as `holds` does; trial 1 runs out of memory in its first attempt; all write down when they ran."""
    with _written_down(trial):
        if trial.number == 0:
            return holds(trial)
        _mark(trial)
        if trial.number == 1 and trial.attempt == 0:
            raise MemoryError("too much")
    return square(trial)


def address_space(trial: Trial) -> float:
    """Allocate more than a limit of this process allows; with the memory for itself it gets by."""
    if trial.attempt == 0:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        bytearray(2**32)
    return square(trial)


def killed_for_memory(trial: Trial) -> float:
    """Be killed by the kernel in the first attempt, by way of the control group that ``group`` names."""
    if trial.attempt == 0:
        Path(trial.params["group"], "cgroup.procs").write_text(str(os.getpid()))
        kept = [bytearray(os.urandom(2**20)) for _ in range(512)]
        return float(len(kept))
    return square(trial)


def family(trial: Trial) -> None:
    """Start a forked child and a program, in this group and in a session of its own, and hang."""
    forked = multiprocessing.get_context("fork").Process(target=_NEVER.wait)
    forked.start()
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    pids = [forked.pid, *(subprocess.Popen(command, start_new_session=alone).pid for alone in (False, True))]
    Path(trial.params["folder"], "family").write_text(" ".join(map(str, pids)))
    hangs(trial)


def leaves_family(trial: Trial) -> float:
    """Start programs and return without ending them."""
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    started = [subprocess.Popen(command, start_new_session=alone) for alone in (False, True)]
    Path(trial.params["folder"], "family").write_text(" ".join(str(p.pid) for p in started))
    return 1.0


def prints_much(trial: Trial) -> NoReturn:
    """Print 40 MB, wait as `holds` does where a folder is given, print one more line, then fail."""
    for number in range(20_000):
        sys.stdout.write(f"{number} " + "x" * 2_000 + "\n")
    sys.stdout.flush()
    if trial.params["folder"]:
        holds(trial)
    sys.stdout.write("the last line\n")
    sys.stdout.flush()
    raise ValueError("after much talk")


def prints_bytes(trial: Trial) -> NoReturn:
    """Print what is no text, then fail."""
    os.write(1, b"caf\xe9 \xff\xfe\n")
    raise ValueError("garbage")


def huge_fact(trial: Trial) -> dict[str, Any]:
    """Return a number that no database can hold."""
    return {"loss": 1.0, "count": 2**70}


def nested_facts(trial: Trial) -> dict[str, Any]:
    """Return facts with keys that are not plain words."""
    return {"loss": 1.0, "genes": {"AC1.2": 1, "": 2, "é": [1.5, None, True]}}


def burst(trial: Trial) -> float:
    """Report as fast as possible, many more reports than a socket holds, and return at once."""
    for step in range(5_000):
        trial.report(step, loss=float(step))
    return 1.0


def resumable(trial: Trial) -> float:
    """Lose one part in a hundred a step down to x squared; keep the state, and write down the steps it trains.

    Where the parameter ``hold_at`` is a step, wait as `holds` does after that one was reported.
    """
    trained: list[int] = []
    if (kept := trial.checkpoint.load()) is not None:
        trained = json.loads((kept / "state.json").read_text())
    for step in range(len(trained) + 1, trial.params["steps"] + 1):
        _train_step(trial, step)
        trained.append(step)
        trial.report(step, loss=loss_at(trial, step))
        if trial.checkpoint.wanted(step):
            trial.checkpoint.save(step, partial(_write_state, trained))
        if step == trial.params.get("hold_at"):
            holds(trial)
    if trained != list(range(1, trial.params["steps"] + 1)):
        raise RuntimeError(f"the state was not that of its step: {trained}")
    return loss_at(trial, trial.params["steps"])


def forgetful(trial: Trial) -> float:
    """Train as `resumable` does, and know nothing of checkpoints."""
    for step in range(1, trial.params["steps"] + 1):
        _train_step(trial, step)
        trial.report(step, loss=loss_at(trial, step))
    return loss_at(trial, trial.params["steps"])


def loss_at(trial: Trial, step: int) -> float:
    """Return the loss of a step of `resumable`: it falls by the same for all, so that no rung changes the order."""
    odd = trial.params.get("not_a_number", {}).get(str(trial.number))
    if odd is not None and step >= odd:
        return math.nan
    return float(trial.params["x"]) ** 2 + 1.0 + trial.params.get("slope", -0.01) * step


def _train_step(trial: Trial, step: int) -> None:
    """Take the time of a step, and write it down; fail where the parameter ``fail`` says so (number -> step).

    Where the parameter ``hurries`` is true, steps take no time any more once the file ``go`` is in the folder.
    """
    if not (trial.params.get("hurries") and Path(trial.params["folder"], "go").exists()):
        _NEVER.wait(trial.params["seconds"])
    if trial.params.get("fail", {}).get(str(trial.number)) == step:
        raise ValueError("fails at this step")
    if not trial.params.get("folder"):
        return
    with Path(trial.params["folder"], f"steps-{trial.number}").open("a") as file:
        file.write(f"{trial.attempt} {step} {time.monotonic()}\n")


def _write_state(trained: list[int], folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(trained))


def _mark(trial: Trial) -> None:
    folder = trial.params.get("folder")
    if folder:
        Path(folder, f"running-{trial.number}-{trial.attempt}").write_text(str(os.getpid()))


@contextmanager
def _written_down(trial: Trial) -> Iterator[None]:
    """Write into a file when an attempt began and ended, by the host's monotonic clock."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        file = Path(trial.params["folder"], f"span-{trial.number}-{trial.attempt}")
        file.write_text(f"{began_s} {time.monotonic()}")
