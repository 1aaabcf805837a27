"""Who uses a device of this host, across all worker processes of the user: many at once, or one alone.

Two locks per device, held through files, so that the kernel gives them back when a process dies: the *gate* is passed
by whoever begins to use the device, the *use* is held by all who do. One who wants the device alone closes the gate
and waits until all others have left; nobody who comes later can pass before.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from autotune.errors import WorkerError

_PAUSE_S = (0.01, 0.25)

_T = TypeVar("_T")


class Hold:
    """The right to use a device, until `release` or the end of the process. Also a context manager.

    Attributes:
        alone: Whether nobody else uses the device.
    """

    def __init__(self, fds: list[int], *, alone: bool) -> None:
        self._fds = fds
        self._lock = threading.Lock()
        self.alone = alone

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let others use the device; does nothing when called again."""
        with self._lock:
            fds, self._fds = self._fds, []
        for fd in fds:
            _unlock(fd)


class DeviceShare:
    """The users of one device. Threads of one process count as users of their own.

    Args:
        device: ``cpu`` or ``cuda:<uuid>``.
        folder: Where the lock files lie; created if missing, for this user alone.
    """

    def __init__(self, device: str, folder: Path) -> None:
        name = hashlib.sha256(device.encode()).hexdigest()[:16]
        self.device = device
        self._gate = folder / f"{name}.gate"
        self._use = folder / f"{name}.use"

    def try_shared(self) -> Hold | None:
        """Begin to use the device beside others; None if somebody has it alone, or waits for that.

        Raises:
            WorkerError: If the lock files cannot be used.
        """
        gate = self._locked(self._gate, fcntl.LOCK_SH)
        if gate is None:
            return None
        try:
            use = self._locked(self._use, fcntl.LOCK_SH)
        finally:
            _unlock(gate)
        return None if use is None else Hold([use], alone=False)

    def shared(self, stop: threading.Event) -> Hold | None:
        """Begin to use the device beside others, as soon as nobody has it alone or waits for that; None: `stop`.

        Raises:
            WorkerError: If the lock files cannot be used.
        """
        return _polled(self.try_shared, stop, lambda: False)

    def alone(self, stop: threading.Event, interrupt: Callable[[], bool] = lambda: False) -> Hold | None:
        """Begin to use the device alone, when all others have left; nobody new may begin meanwhile.

        A thread that holds the device already waits for itself.

        Args:
            stop: Give up when it is set.
            interrupt: Give up when it returns True; asked several times a second.

        Returns:
            None if it gave up.

        Raises:
            WorkerError: If the lock files cannot be used.
        """
        gate = _polled(lambda: self._locked(self._gate, fcntl.LOCK_EX), stop, interrupt)
        if gate is None:
            return None
        use = None
        try:
            use = _polled(lambda: self._locked(self._use, fcntl.LOCK_EX), stop, interrupt)
        finally:
            if use is None:
                _unlock(gate)
        return None if use is None else Hold([use, gate], alone=True)  # the gate opens last

    def _locked(self, path: Path, kind: int) -> int | None:
        """Return a new descriptor that holds the lock; None if it is not to be had now."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        except OSError as error:
            raise WorkerError(
                f"cannot lock {path} ({error.strerror}); set AUTOTUNE_HOME to a folder of yours on a local disk"
            ) from None
        return fd


def _unlock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a process that is being started may still have a copy
    finally:
        os.close(fd)


def _polled(attempt: Callable[[], _T | None], stop: threading.Event, interrupt: Callable[[], bool]) -> _T | None:
    """Try until it gives something, `stop` is set or `interrupt` says so."""
    pause_s = _PAUSE_S[0]
    while not stop.is_set() and not interrupt():
        if (got := attempt()) is not None:
            return got
        stop.wait(pause_s)
        pause_s = min(_PAUSE_S[1], pause_s * 2)
    return None
