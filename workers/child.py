"""What the process of a trial does: load the objective, run it, send reports and the result to the agent."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers import objectives, outcome
from workers.channel import Channel, Message
from workers.checkpoints.keeper import Keeper
from workers.devices import THREAD_VARIABLES
from workers.outbox import Outbox
from workers.reporting import NoCheckpoint, Trial, TrialStopped


class Sender:
    """Sends reports, and raises in the objective when the agent asked the trial to stop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox = Outbox(channel.fileno())
        self._stop_reason: str | None = None
        self.keeper: Keeper | None = None

    def listen(self) -> None:
        """Read the agent's messages until it goes away; then end this process at once: nobody wants its result."""
        while True:
            message = self._channel.receive(None)
            if message is None:
                os._exit(71)
            if "stop" in message:
                self._stop_reason = str(message["stop"])
            if "ask" in message and self.keeper is not None:
                self.keeper.ask(str(message["ask"]))

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one report.

        Raises:
            TrialStopped: If the agent asked for it.
        """
        self._outbox.send({"report": step, "metrics": dict(metrics)})
        if self._stop_reason is not None:
            raise TrialStopped(self._stop_reason)
        if self.keeper is not None:
            self.keeper.reported(step)

    def saved(self, step: int, folder: Path) -> None:
        """Tell the agent of a checkpoint."""
        self._outbox.send({"checkpoint": step, "folder": str(folder)})

    def send(self, message: Message) -> None:
        """Send a message behind all others; return when it is with the agent."""
        self._outbox.send(message)
        self._outbox.flush()


def main(channel: Channel, request: Mapping[str, Any]) -> int:
    """Run one trial; return the exit code of the process.

    Args:
        channel: The channel to the agent.
        request: ``{"spec": ..., "metric": {"name", "mode"}, "trial": {...}}``, and where the task is not ``run`` also
            ``"task"`` with what it needs (`workers.objectives.Objective.perform`).
    """
    sender = Sender(channel)
    kept = request.get("checkpoint") or {}
    keeper = sender.keeper = Keeper(
        Path(kept.get("root") or os.devnull), earlier=Path(kept["earlier"]) if kept.get("earlier") else None,
        target=kept.get("target"), every=kept.get("every"), saved=sender.saved,
    ) if kept else None  # fmt: skip
    threading.Thread(target=sender.listen, name="agent", daemon=True).start()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    timing: dict[str, float] = {}
    loading = True
    try:
        started_s = time.monotonic()
        limit_threads(int(request["trial"]["threads"]))
        objective = objectives.load(request["spec"])
        loading = False
        timing["load_s"] = time.monotonic() - started_s
        metric = request["metric"]
        trial = Trial(
            **request["trial"], metric=metric["name"], mode=metric["mode"], data=objective.data, send=sender.report,
            schedule_metric=objectives.schedule_metric(request["spec"]),
            checkpoint=NoCheckpoint() if keeper is None else keeper,
        )  # fmt: skip
        seed_generators(trial.seed)
        started_s = time.monotonic()
        returned = objective.perform(request, trial)
        timing |= outcome.run_timing(time.monotonic() - started_s, returned)
        if keeper is not None and keeper.paused_at is not None:
            raise TrialStopped("the objective went on after its trial was paused")
        result = outcome.as_result(returned, metric["name"])
    except BaseException as error:  # noqa: BLE001 - however the objective ends, the agent is told why
        if keeper is not None and keeper.paused_at is not None:
            sender.send({"paused": keeper.paused_at, "timing": {**timing, **memory()}})
            return 0
        failure = outcome.as_failure(error)
        failed = {"cause": str(failure.cause), "message": failure.message, "traceback": failure.traceback}
        with contextlib.suppress(Exception):
            sys.stdout.flush()  # the agent reads the log when it has the message
            sys.stderr.flush()
        sender.send({"failed": failed, "timing": {**timing, **memory()}, "loading": loading})
        return 1
    plain = {"score": result.score, "metrics": dict(result.metrics), "facts": dict(result.facts)}
    sender.send({"result": plain, "timing": {**timing, **memory()}})
    return 0


def seed_generators(seed: int) -> None:
    """Seed the global random numbers: processes forked from one server would otherwise all draw the same.

    Args:
        seed: The trial's seed, so that a trial can be run again; below 2**32.
    """
    random.seed(seed)
    for name, place in (("numpy", "random.seed"), ("torch", "manual_seed")):
        function: Any = sys.modules.get(name)
        for part in place.split("."):
            function = getattr(function, part, None)
        if function is not None:
            function(seed)


def memory() -> dict[str, float]:
    """Return ``{"peak_rss_mb": the most memory of this process so far}``, and what `gpu_memory` knows."""
    return {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **gpu_memory()}


def gpu_memory() -> dict[str, float]:
    """Return ``{"peak_gpu_mb": the most memory that torch held on this process's GPU}``; empty where there was none."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return {}
        return {"peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20}
    except Exception:  # noqa: BLE001 - a broken device must not hide why the training ended
        return {}


def limit_threads(threads: int) -> None:
    """Keep the numeric libraries of this process, loaded or not yet, to `threads` threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        import threadpoolctl
    except ModuleNotFoundError:
        return
    threadpoolctl.threadpool_limits(threads)
