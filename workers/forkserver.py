"""The fork server: a small process that loads a campaign's code and data once, then forks one child per trial.

Run as ``python -m workers.forkserver FD``, with FD one end of a Unix socket to the agent. It has one thread, trains
nothing and initialises no device, so that forking it is safe. When the agent goes away it kills its children and ends.

Messages from the agent: ``{"preload": spec | null}`` first; then ``{"spawn": id, "request": {...}, "env": {...},
"log": path}`` with the child's socket. Messages to the agent: ``{"ready": ..., "error": ...}`` once, then
``{"started": id, "pid": ...}`` and ``{"ended": id, "status": ..., "peak_rss_kb": ..., "error": ...}`` per child.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.channel import Channel, Message
from workers.training import signal_group

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class ForkServer:
    """Serves one agent over one channel until the agent goes away."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: dict[int, str] = {}
        self._helpers: set[int] = set()
        self._pid = os.getpid()
        self._wakeup, self._wakeup_end = os.pipe()
        for fd in (self._wakeup, self._wakeup_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Work until the agent goes away, then kill what still runs."""
        message, _ = self._channel.receive_with_fd()
        if message is None:
            return
        with ended_by_hangup(self._channel):
            answer = preload(message.get("preload"))
        self._helpers.update(_child_pids())  # what the loaded libraries started for themselves stays
        self._channel.send(answer)
        gc.collect()
        gc.freeze()
        while not self._channel.closed:
            readable, _, _ = select.select([self._channel.fileno(), self._wakeup], [], [])
            if self._wakeup in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
                self._collect()
            if self._channel.fileno() in readable:
                self._receive()
        self._kill_all()

    def _receive(self) -> None:
        """Take what the agent sent: one read may bring several messages."""
        while True:
            request, fd = self._channel.receive_with_fd()
            if request is not None and fd is not None:
                self._spawn(request, fd)
            if not self._channel.has_message:
                return

    def _spawn(self, request: Message, fd: int) -> None:
        name = request["spawn"]
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            text = f"the fork server cannot start a process: {error}"
            self._channel.send({"ended": name, "status": None, "peak_rss_kb": None, "error": text})
            return
        if pid == 0:
            self._become_child(request, fd)
        os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._children[pid] = name
        self._channel.send({"started": name, "pid": pid})

    def _become_child(self, request: Message, fd: int) -> None:
        """Turn this process, just forked, into the trial's; never returns."""
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)
            die_with(self._pid)
            self._channel.close()
            os.close(self._wakeup)
            os.close(self._wakeup_end)
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, destination in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, destination)
            os.close(log)
            os.close(null)
            os.environ.update(request["env"])
            from workers import child

            status = child.main(Channel(socket.socket(fileno=fd)), request["request"])
        except BaseException:  # noqa: BLE001 - the process ends here in any case
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _collect(self) -> None:
        """Tell the agent of every child that ended, and kill what it left."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid in self._children:
                signal_group(ended.si_pid, signal.SIGKILL)  # before it is reaped: until then its number is not reused
            _, status, usage = os.wait4(ended.si_pid, 0)
            name = self._children.pop(ended.si_pid, None)
            if name is not None:
                if not self._children:
                    self._kill_adopted()
                code = os.waitstatus_to_exitcode(status)
                self._channel.send({"ended": name, "status": code, "peak_rss_kb": usage.ru_maxrss})

    def _kill_all(self) -> None:
        for pid in self._children:
            signal_group(pid, signal.SIGKILL)
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)  # only when it has ended are the processes that it left ours
        self._children.clear()
        self._kill_adopted()

    def _kill_adopted(self) -> None:
        """Kill processes that trials left in sessions of their own: when their parent ended they became ours."""
        for _ in range(100):  # the children of one that is killed become ours in turn
            adopted = [pid for pid in _child_pids() if pid not in self._children and pid not in self._helpers]
            if not adopted:
                return
            for pid in adopted:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _child_pids() -> list[int]:
    """Return the process ids of this process's children; empty where the system does not say."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except (OSError, ValueError):
        return []


@contextlib.contextmanager
def ended_by_hangup(channel: Channel) -> Iterator[None]:
    """While inside, this process ends when the other end of `channel` goes away, whatever it is doing.

    The kernel sends SIGIO then, whose default is to end the process: loading may take minutes, and an agent that was
    killed must not leave that behind. The agent sends nothing while it waits for the answer.
    """
    before = fcntl.fcntl(channel.fileno(), fcntl.F_GETFL)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(channel.fileno(), fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel.fileno(), fcntl.F_SETFL, before | os.O_ASYNC)
    if select.select([channel], [], [], 0)[0]:
        os._exit(0)  # it went away before the kernel was asked to tell
    try:
        yield
    finally:
        fcntl.fcntl(channel.fileno(), fcntl.F_SETFL, before)


def preload(spec: dict[str, Any] | None) -> Message:
    """Load a campaign's code and data; return the message that says how it went.

    A failure is no error here: the trial's own process tries again and fails with the reason. Code that leaves
    threads or an initialised device behind makes forking unsafe; the agent is told, and starts a server without it.
    """
    failed = None
    if spec is not None:
        try:
            from workers import child, objectives, outcome  # noqa: F401 - loaded for the children

            objectives.load(spec)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the trial's to report
            failed = f"{type(error).__name__}: {error}"[:500]
    unsafe = unsafe_to_fork()
    return {"ready": unsafe is None, "error": unsafe or failed}


def unsafe_to_fork() -> str | None:
    """Return why forking this process is unsafe, or None."""
    others = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
    if others:
        return f"loading the objective left threads: {', '.join(others)}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "loading the objective initialised CUDA"
    return None


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux); end it now if the parent has ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(70)


def _prctl(option: int, value: int) -> None:
    """Call ``prctl``; elsewhere than on Linux do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Serve the agent at the other end of the socket whose number is the first argument."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    ForkServer(Channel(sock)).serve()


if __name__ == "__main__":
    main()
