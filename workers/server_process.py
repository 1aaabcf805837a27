"""The agent's end of one fork server: starts the process, asks it for children, and hears how children ended."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import WorkerError
from autotune.home import without_store
from workers.channel import Channel, Message
from workers.devices import THREAD_VARIABLES
from workers.training import Child, signal_group

START_TIMEOUT_S = 600.0
SPAWN_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.1
_ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")


class ServerProcess:
    """One fork server's process, running.

    Args:
        preload: The campaign file as plain values, or None to load nothing.
        folder: Where the children's logs go.

    Raises:
        WorkerError: If the process cannot be started.
    """

    def __init__(self, preload: Mapping[str, Any] | None, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                env={**without_store(os.environ), **_ONE_THREAD, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
                start_new_session=True,
            )
        except OSError as error:
            self._channel.close()
            raise WorkerError(f"the fork server cannot be started: {error}") from error
        finally:
            theirs.close()
        self._channel.send({"preload": None if preload is None else dict(preload)})
        self._listener = threading.Thread(target=self._listen, name="fork-server", daemon=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs; it does not from the moment it is a zombie, whichever thread reaps it."""
        if self._process.returncode is not None:
            return False
        try:  # not poll(): that says "it runs" of a dead process while the listener is in wait()
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def answer(self, stop: threading.Event) -> Message:
        """Wait until it has loaded the objective, and return what it says of that; kill it when it is of no use.

        Args:
            stop: When set, the server is killed and the answer is a refusal.

        Returns:
            ``{"ready": whether it serves, "error": why not, or what could not be loaded, or None}``.
        """
        end_s = time.monotonic() + START_TIMEOUT_S
        answer = None
        while answer is None and not self._channel.closed and not stop.is_set() and time.monotonic() < end_s:
            answer = self._channel.receive(_POLL_S)
        answer = answer or {"ready": False, "error": "it ended or did not answer"}
        if answer["ready"]:
            self._listener.start()
        else:
            self.kill()
            self._channel.close()
        return answer

    def spawn(self, request: Mapping[str, Any], env: Mapping[str, str]) -> Child:
        """Start the process of a trial.

        Args:
            request: What `workers.child.main` gets.
            env: Environment variables of the process.

        Raises:
            WorkerError: If the server is gone, stuck, or cannot fork.
        """
        name = secrets.token_hex(8)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            handle, log = tempfile.mkstemp(prefix="trial-", suffix=".log", dir=self._folder)
            os.close(handle)
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise WorkerError(f"the training process cannot be started: {error}") from error
        child = Child(channel=Channel(ours), log=Path(log))
        message = {"spawn": name, "request": dict(request), "env": dict(env), "log": log}
        with self._lock:
            self._children[name] = child
        with self._sending:
            sent = self._channel.send(message, theirs.fileno())
        theirs.close()
        if not sent:
            child.started.set()
        if not child.started.wait(SPAWN_TIMEOUT_S):
            self.kill()
        if child.pid is None:
            with self._lock:
                self._children.pop(name, None)
            child.close()
            raise WorkerError(child.error or "the fork server is gone")
        return child

    def _listen(self) -> None:
        """Read what the server says until it is gone, then end what it left."""
        while (message := self._channel.receive(None)) is not None:
            with self._lock:
                if "started" in message and message["started"] in self._children:
                    child = self._children[message["started"]]
                    child.pid = message["pid"]
                    child.started.set()
                elif message.get("ended") in self._children:
                    child = self._children.pop(message["ended"])
                    child.status, child.peak_rss_kb = message["status"], message["peak_rss_kb"]
                    child.error = message.get("error")
                    child.started.set()
                    child.ended.set()
        self._process.wait()
        with self._lock:
            orphans = list(self._children.values())
            self._children.clear()
        with self._sending:
            self._channel.close()
        for child in orphans:
            if child.pid is not None:
                signal_group(child.pid, signal.SIGKILL)  # the kernel ended the child, but not what it had started
            child.started.set()
            child.ended.set()

    def stop(self) -> None:
        """End the server; it kills what still runs."""
        self._channel.shutdown()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._listener.join()

    def kill(self) -> None:
        """Kill the server at once, with what it started while loading; the kernel ends its children."""
        if self.alive:
            signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
