"""The children of one campaign: keeps a fork server for them, with the objective loaded where that is possible."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import WorkerError
from workers.server_process import ServerProcess
from workers.training import Child

_log = logging.getLogger(__name__)


class Children:
    """The fork server of a campaign, and its children.

    Args:
        spec: The campaign file as plain values; its objective and data are loaded in the server.
        folder: Where the children's logs go.

    Attributes:
        spec: That campaign file; its data lie where this host has them.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self.spec = dict(spec)
        self._folder = folder
        self._lock = threading.Lock()
        self._server: ServerProcess | None = None

    @property
    def server_pid(self) -> int | None:
        """Process id of the fork server, or None when there is none."""
        server = self._server
        return None if server is None else server.pid

    def start(self, stop: threading.Event) -> None:
        """Start the server if it does not run; returns when it has loaded the objective.

        Where loading leaves the server unfit to fork, or kills it, another one is started that loads nothing: its
        children then load the objective themselves.

        Args:
            stop: When set, waiting ends at once.

        Raises:
            WorkerError: If it does not start, or `stop` was set.
        """
        with self._lock:
            if self._server is not None and self._server.alive:
                return
            for preload in (self.spec, None):
                if stop.is_set():
                    raise WorkerError("the worker was stopped before the fork server was ready")
                started_s = time.monotonic()
                server = ServerProcess(preload, self._folder)
                answer = server.answer(stop)
                names = {"campaign": self.spec["name"], "preload": preload is not None}
                if answer["ready"]:
                    self._server = server
                    if answer.get("error"):
                        _log.warning("%s", answer["error"], extra={"action": "preload-failed", **names})
                    _log.info("ready in %.1f s", time.monotonic() - started_s, extra={"action": "fork-server", **names})
                    return
                _log.warning("%s", answer["error"], extra={"action": "fork-server-refused", **names})
            raise WorkerError("the fork server did not start; see the worker's log")

    def spawn(self, request: Mapping[str, Any], env: Mapping[str, str]) -> Child:
        """Start the process of a trial.

        Args:
            request: What `workers.child.main` gets.
            env: Environment variables of the process.

        Raises:
            WorkerError: If the fork server is gone; start it again.
        """
        server = self._server
        if server is None:
            raise WorkerError("the fork server is gone")
        return server.spawn(request, env)

    def stop(self) -> None:
        """End the server; it kills what still runs."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.stop()
