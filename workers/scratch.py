"""The temporary folder of a worker; what killed workers left is cleared by the next one on the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "autotune-worker-"
_LOCK = "lock"


class Scratch:
    """A folder that goes with its worker.

    A lock on a file in it says that its worker lives: the kernel releases it however that process ends.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        clear_left_over()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        partial = self.path / f"{_LOCK}.new"
        self._lock = open(partial, "w")  # noqa: SIM115 - open for as long as the worker lives
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        partial.rename(self.path / _LOCK)  # only a locked file ever has the name

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def clear_left_over() -> None:
    """Delete the folders of this user's workers that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            with open(folder / _LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
