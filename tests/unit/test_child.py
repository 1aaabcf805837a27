"""What a trial's process does before the objective runs."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import threadpoolctl

from workers.child import limit_threads, seed_generators


def test_the_global_random_numbers_follow_the_trials_seed() -> None:
    def draws(seed: int) -> tuple[float, float]:
        seed_generators(seed)
        return random.random(), float(np.random.random())

    before = random.getstate(), np.random.get_state()
    try:
        assert draws(7) == draws(7)
        assert draws(7) != draws(2**32 - 1)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def test_threads_are_limited_for_libraries_that_are_loaded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with threadpoolctl.threadpool_limits():  # puts back what was
        limit_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
