"""An objective whose module starts a thread when it is imported: its process must not be forked."""

from __future__ import annotations

import threading

from workers.reporting import Trial

_never = threading.Event()
threading.Thread(target=_never.wait, name="stray", daemon=True).start()


def square(trial: Trial) -> float:
    """Return x squared."""
    return float(trial.params["x"]) ** 2
