"""Where the service keeps files on this host: the one module that knows their names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from autotune.errors import StoreSetupError

HOME_VARIABLE = "AUTOTUNE_HOME"
STORE_VARIABLES = ("AUTOTUNE_STORE", "AUTOTUNE_STORE_FILE")
"""Where commands look for the store's address, or for a file that holds it."""


def home() -> Path:
    """Return the service's folder: ``AUTOTUNE_HOME``, by default in the user data directory; created if missing.

    Raises:
        StoreSetupError: If it cannot be created.
    """
    folder = Path(os.environ.get(HOME_VARIABLE) or platformdirs.user_data_dir("autotune", appauthor=False))
    return _made(folder.expanduser().absolute())


def mongo_folder() -> Path:
    """Return the folder of the embedded server: its data, log and state."""
    return _made(home() / "mongo")


def log_file(name: str) -> Path:
    """Return the log file of a background process."""
    return _made(home() / "logs") / f"{name}.log"


def without_store(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the store's address: who trains must not know its password.

    Args:
        environment: The environment of this process.
    """
    return {name: value for name, value in environment.items() if name not in STORE_VARIABLES}


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreSetupError(
            f"cannot create {folder} ({error.strerror}); set {HOME_VARIABLE} to a folder of yours"
        ) from None
    return folder
