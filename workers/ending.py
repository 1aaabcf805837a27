"""How a training ended: what its last message, its exit code and the kernel say of it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.trial import Cause, Failure, Result
from workers.channel import Message


@dataclass(frozen=True, kw_only=True)
class Paused:
    """A training that has reached its rung.

    Attributes:
        step: The step that it reported last.
    """

    step: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child's training ended.

    Attributes:
        result: Its result, or None.
        failure: Why it has none, or None.
        paused: That it has reached its rung, or None.
        rung_score: Best value of the schedule's metric that it reported, or None.
        process_killed: Whether something other than this worker killed its process.
        timing: Seconds per phase.
    """

    result: Result | None = None
    failure: Failure | None = None
    paused: Paused | None = None
    rung_score: float | None = None
    process_killed: bool = False
    timing: Mapping[str, float]


def result_of(message: Message) -> Result:
    """Return the result in a child's last message."""
    result = message["result"]
    return Result(score=result["score"], metrics=result["metrics"], facts=result["facts"])


def failure_of(message: Message, log_tail: str) -> Failure:
    """Return the failure in a child's last message."""
    failed = message["failed"]
    return Failure(
        cause=Cause(failed["cause"]), message=failed["message"], traceback=failed["traceback"],
        log_tail=log_tail, exit_code=1,
    )  # fmt: skip


def cause_of_death(status: int | None, *, oom_killed: bool) -> tuple[Cause, str, bool]:
    """Return (cause, message, whether the process was killed from outside) of a child that ended without a word.

    Args:
        status: Its exit code, negative for a signal, None when unknown.
        oom_killed: Whether the kernel killed something for lack of memory while it ran.
    """
    if status is None:
        return Cause.LOST, "the fork server of the training died", True
    if status >= 0:
        return Cause.ERROR, f"the training process exited with code {status} without a result", False
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status == -signal.SIGKILL and oom_killed:
        return Cause.OUT_OF_MEMORY, "the kernel killed the training process: the host ran out of memory", False
    if -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Cause.LOST, f"the training process was killed by {name}", True
    return Cause.ERROR, f"the training process died by {name}", False


def kernel_oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
