"""What a worker's slots run on: the GPUs of this host within the outer mask, or the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.errors import InputError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What numeric libraries read, when they are loaded, to know how many threads they may use."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one trial at a time.

    Attributes:
        index: 0, 1, 2, ... in this worker.
        device: ``cpu`` or ``cuda:<uuid>``, as kept with each attempt.
        visible: Value of ``CUDA_VISIBLE_DEVICES`` for the trial; empty for the CPU.
        threads: CPU threads that the trial may use.
        share: The part of the device that it has: 1 over the number of this worker's slots on it.
    """

    index: int
    device: str
    visible: str
    threads: int
    share: float = 1.0

    @property
    def trial_device(self) -> str:
        """What the objective is told: it sees its own device only, so a GPU is always ``cuda:0``."""
        return "cuda:0" if self.visible else "cpu"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that confine a trial to this slot."""
        return {"CUDA_VISIBLE_DEVICES": self.visible}


def visible_gpus(environment: Mapping[str, str] | None = None, listing: str | None = None) -> list[str]:
    """Return the ids of the GPUs that this process may use, in order, without importing a GPU library.

    Args:
        environment: Its ``CUDA_VISIBLE_DEVICES`` is the outer mask (indexes or UUIDs); default: this process's.
        listing: Output of ``nvidia-smi --query-gpu=index,uuid --format=csv,noheader``; default: ask it.

    Returns:
        UUIDs; MIG instances in the mask are kept as they are. As CUDA does, entries behind one that is not valid do
        not count.
    """
    mask = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    rows = _nvidia_smi() if listing is None else listing
    uuids = {}
    for row in rows.splitlines():
        index, _, uuid = row.partition(",")
        if index.strip().isdecimal() and uuid.strip():
            uuids[index.strip()] = uuid.strip()
    if mask is None:
        return list(uuids.values())
    chosen: list[str] = []
    for entry in (e.strip() for e in mask.split(",")):
        named = _named_by(entry, uuids)
        if named is None:
            break
        if named not in chosen:
            chosen.append(named)
    return chosen


def _named_by(entry: str, uuids: Mapping[str, str]) -> str | None:
    """Return the GPU that one entry of the mask means, an index, a UUID or the start of one; None: it is not valid."""
    if entry in uuids:
        return uuids[entry]
    if entry.startswith("MIG-") and uuids:
        return entry
    matching = [uuid for uuid in uuids.values() if entry.startswith("GPU-") and uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def make_slots(
    devices: str = "auto", per_device: int = 1, threads: int | None = None, gpus: list[str] | None = None
) -> list[Slot]:
    """Return the slots of a worker.

    Args:
        devices: ``auto`` (all GPUs, else the CPU), ``cpu``, or indexes of GPUs within the outer mask: ``0,1``.
        per_device: Number of slots on each device.
        threads: CPU threads of each slot; default: the cores of this process divided by the slots.
        gpus: Ids of the GPUs; default: those that are found.

    Raises:
        InputError: If a device is named that is not there, or a number is not positive.
    """
    if per_device < 1:
        raise InputError(f"--slots-per-device must be at least 1, not {per_device}")
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, not {threads}")
    chosen = [("cpu", "")] if devices == "cpu" else [(f"cuda:{g}", g) for g in _choose(devices, gpus)] or [("cpu", "")]
    count = len(chosen) * per_device
    share = threads or max(1, len(os.sched_getaffinity(0)) // count)
    places = [place for place in chosen for _ in range(per_device)]
    return [
        Slot(index=i, device=d, visible=v, threads=share, share=1.0 / per_device) for i, (d, v) in enumerate(places)
    ]


def _choose(devices: str, gpus: list[str] | None) -> list[str]:
    found = visible_gpus() if gpus is None else gpus
    if devices == "auto":
        return found
    chosen: list[str] = []
    for part in devices.split(","):
        name = part.strip()
        if name in found:
            gpu = name
        elif not name.isdecimal():
            raise InputError(f"--devices takes auto, cpu or GPU numbers such as 0,1, not '{devices}'")
        elif int(name) >= len(found):
            raise InputError(f"there is no GPU {name} here; this process sees {len(found)}: use --devices auto or cpu")
        else:
            gpu = found[int(name)]
        if gpu in chosen:
            raise InputError(f"--devices names GPU {name} twice; for more trials on it use --slots-per-device")
        chosen.append(gpu)
    return chosen
