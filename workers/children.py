"""The agent's side of the fork servers: starts them, asks them for children, and hears how children ended."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import WorkerError
from workers.channel import Channel

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


@dataclass(kw_only=True)
class Child:
    """The process of one trial, as the agent sees it.

    Attributes:
        channel: To the process.
        log: File with what it prints.
        pid: Its process id once started.
        status: Exit code once ended; negative for a signal; None when its fork server died before it could tell.
        peak_rss_kb: Its largest memory, kilobytes.
        started: Set when `pid` is known.
        ended: Set when it ended.
    """

    channel: Channel
    log: Path
    pid: int | None = None
    status: int | None = None
    peak_rss_kb: int | None = None
    started: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def terminate(self, grace_s: float) -> None:
        """End the process and its children: SIGTERM, and SIGKILL after `grace_s` seconds."""
        self.started.wait(grace_s)
        if self.pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            self.ended.wait(grace_s)

    def log_tail(self, lines: int = 200, chars: int = 8000) -> str:
        """Return the end of what the process printed."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.path.getsize(self.log) - chars))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Forget the process: close its channel and delete its log."""
        self.channel.close()
        self.log.unlink(missing_ok=True)


class Children:
    """One fork server of a campaign, and its children.

    Args:
        spec: The campaign file as plain values; its objective and data are loaded in the server.
        folder: Where the children's logs go.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self._spec = dict(spec)
        self._folder = folder
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    def start(self) -> None:
        """Start the server if it does not run; returns when it has loaded the objective.

        Raises:
            WorkerError: If it does not start.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            if not self._launch(preload=True) and not self._launch(preload=False):
                raise WorkerError("the fork server did not start; see the worker's log")

    def _launch(self, *, preload: bool) -> bool:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**os.environ, **_ONE_THREAD, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            start_new_session=True,
        )
        theirs.close()
        channel = Channel(ours)
        channel.send({"preload": self._spec if preload else None})
        ready = channel.receive(START_TIMEOUT_S)
        if ready is None or not ready["ready"]:
            reason = ready["error"] if ready else "it ended or did not answer"
            _log.warning("%s", reason, extra={"action": "fork-server-refused", "preload": preload})
            channel.close()
            process.kill()
            process.wait()
            return False
        if ready.get("error"):
            _log.warning("%s", ready["error"], extra={"action": "preload-failed", "campaign": self._spec["name"]})
        self._process, self._channel = process, channel
        threading.Thread(target=self._listen, args=(process, channel), name="fork-server", daemon=True).start()
        return True

    def spawn(self, request: Mapping[str, Any], env: Mapping[str, str]) -> Child:
        """Start the process of a trial.

        Args:
            request: What `workers.child.main` gets.
            env: Environment variables of the process.

        Raises:
            WorkerError: If the fork server is gone.
        """
        ours, theirs = socket.socketpair()
        name = secrets.token_hex(8)
        handle, log = tempfile.mkstemp(prefix="trial-", suffix=".log", dir=self._folder)
        os.close(handle)
        child = Child(channel=Channel(ours), log=Path(log))
        message = {"spawn": name, "request": dict(request), "env": dict(env), "log": log}
        with self._lock:
            self._children[name] = child
            sent = self._channel is not None and self._channel.send(message, (theirs.fileno(),))
            if not sent:
                del self._children[name]
        theirs.close()
        if not sent:
            child.close()
            raise WorkerError("the fork server is gone")
        return child

    def _listen(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        while (message := channel.receive(None)) is not None:
            with self._lock:
                child = self._children.get(message.get("started") or message.get("ended") or "")
                if child is None:
                    continue
                if "started" in message:
                    child.pid = message["pid"]
                    child.started.set()
                else:
                    del self._children[message["ended"]]
                    child.status, child.peak_rss_kb = message["status"], message["peak_rss_kb"]
                    child.ended.set()
        process.wait()
        with self._lock:
            orphans = list(self._children.values())
            self._children.clear()
        for child in orphans:
            child.started.set()
            child.ended.set()

    def stop(self) -> None:
        """End the server; it kills what still runs."""
        with self._lock:
            process, channel = self._process, self._channel
            self._process = self._channel = None
        if channel is not None and process is not None:
            channel.shutdown()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
