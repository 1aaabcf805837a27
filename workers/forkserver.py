"""The fork server: a small process that loads a campaign's code and data once, then forks one child per trial.

Run as ``python -m workers.forkserver FD``, with FD one end of a Unix socket to the agent. It has one thread, trains
nothing and initialises no device, so that forking it is safe. When the agent goes away it kills its children and ends.

Messages from the agent: ``{"preload": spec | null}`` first; then ``{"spawn": id, "request": {...}, "env": {...}, "log": path}``
with the child's socket. Messages to the agent: ``{"ready": ...}``, ``{"started": id, "pid": ...}``, ``{"ended": id, "status": ..., "peak_rss_kb": ...}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from workers.channel import Channel, Message

_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Serves one agent over one channel until the agent goes away."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: dict[int, str] = {}
        self._wakeup, wakeup = os.pipe()
        for fd in (self._wakeup, wakeup):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def serve(self) -> None:
        """Work until the agent goes away, then kill what still runs."""
        message, _ = self._channel.receive_with_fds()
        if message is None:
            return
        self._channel.send(preload(message.get("preload")))
        gc.collect()
        gc.freeze()
        while not self._channel.closed:
            readable, _, _ = select.select([self._channel, self._wakeup], [], [])
            if self._wakeup in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
                self._collect()
            if self._channel in readable:
                request, fds = self._channel.receive_with_fds()
                if request is not None and fds:
                    self._spawn(request, fds[0])
        for pid in self._children:
            kill_group(pid)

    def _spawn(self, request: Message, fd: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(request, fd)
        os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._children[pid] = request["spawn"]
        self._channel.send({"started": request["spawn"], "pid": pid})

    def _become_child(self, request: Message, fd: int) -> None:
        """Turn this process, just forked, into the trial's; never returns."""
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)
            die_with_parent()
            self._channel.close()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, destination in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, destination)
            os.environ.update(request["env"])
            gc.unfreeze()
            from workers import child

            status = child.main(Channel(socket.socket(fileno=fd)), request["request"])
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _collect(self) -> None:
        """Tell the agent of every child that ended, and kill what it left in its process group."""
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            kill_group(pid)
            name = self._children.pop(pid, None)
            if name is not None:
                code = os.waitstatus_to_exitcode(status)
                self._channel.send({"ended": name, "status": code, "peak_rss_kb": usage.ru_maxrss})


def preload(spec: dict[str, Any] | None) -> Message:
    """Load a campaign's code and data; return the message that says how it went.

    A failure is no error here: the trial's own process tries again and fails with the reason. Code that leaves
    threads or an initialised device behind makes forking unsafe; the agent is told, and starts a server without it.
    """
    if spec is None:
        return {"ready": True, "preloaded": False}
    try:
        from workers import child, objectives, outcome  # noqa: F401 - loaded for the children

        objectives.load(spec)
    except Exception as error:
        return {"ready": True, "preloaded": False, "error": f"{type(error).__name__}: {error}"[:500]}
    unsafe = unsafe_to_fork()
    return {"ready": unsafe is None, "preloaded": unsafe is None, "error": unsafe}


def unsafe_to_fork() -> str | None:
    """Return why forking this process is unsafe, or None."""
    others = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
    if others:
        return f"loading the objective left threads: {', '.join(others)}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "loading the objective initialised CUDA"
    return None


def kill_group(pid: int) -> None:
    """Kill a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if parent != os.getppid():
            os._exit(70)


def main() -> None:
    """Serve the agent at the other end of the socket whose number is the first argument."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    ForkServer(Channel(sock)).serve()


if __name__ == "__main__":
    main()
