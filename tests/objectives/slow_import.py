"""An objective whose module takes for ever to import; it writes its process id before."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from workers.reporting import Trial

Path(os.environ["SLOW_IMPORT_FOLDER"], "loading").write_text(str(os.getpid()))
threading.Event().wait()


def square(trial: Trial) -> float:
    """Return x squared."""
    return float(trial.params["x"]) ** 2
