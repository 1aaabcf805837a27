"""An objective whose module loads a numeric library with threads of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import threadpoolctl

from workers.reporting import Trial

np.linalg.inv(np.eye(3))


def pools(trial: Trial) -> dict[str, Any]:
    """Return how many threads each numeric library uses here."""
    return {"loss": 0.0, "pools": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]}
