"""Asks about objectives and data in a process of its own, which may import heavy libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from autotune import errors
from autotune.errors import WorkerError
from autotune.home import without_store

TIMEOUT_S = 3600.0


def ask(module: str, question: Mapping[str, Any], what: str, paths: Sequence[str] = ()) -> dict[str, Any]:
    """Run a module that reads a question as JSON and prints its answer as one line of JSON.

    Args:
        module: For example ``workers.inspection``.
        question: Plain values.
        what: What it does, for the error: "looking at the campaign's data".
        paths: Folders to look in for modules before the usual ones.

    Raises:
        InputError: What the process found wrong, one line.
        WorkerError: If that process died.
    """
    environment = without_store(os.environ)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise WorkerError(f"{what} failed (exit code {done.returncode}): {last}") from None
    if "error" in answer:
        kind = getattr(errors, answer["error"], errors.InputError)
        raise kind(answer["message"])
    return dict(answer)
