"""Where a trial is run again, and what is said of a place that is unlike the one where it was trained."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from autotune.trial import Attempt, Trial, TrialState
from workers.again import finisher, slot_like, unlike
from workers.devices import make_slots

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _attempt(device: str = "cpu", threads: int = 0, cause: str | None = None) -> Attempt:
    return Attempt(
        token="t", owner="w", device=device, threads=threads, cause=cause, message=cause, started_at=NOW, ended_at=NOW
    )


def _trial(*attempts: Attempt) -> Trial:
    return Trial(
        campaign="c", number=0, params={}, config_hash="h", state=TrialState.FINISHED, attempts=attempts, score=1.0
    )


def test_the_finishing_attempt_decides() -> None:
    trial = _trial(_attempt(threads=3, cause="lost"), _attempt(threads=5))
    assert finisher(trial) == trial.attempts[1]
    slot = slot_like(trial)
    assert (slot.device, slot.threads) == ("cpu", 5)
    assert slot_like(trial, threads=2).threads == 2
    assert finisher(_trial()) is None


def test_a_trial_of_a_cpu_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.devices.visible_gpus", lambda: ["GPU-1"])
    assert slot_like(_trial(_attempt())).device == "cpu"
    assert slot_like(_trial(_attempt("cuda:GPU-7"))).device == "cuda:GPU-1"
    assert slot_like(_trial(_attempt()), "auto").device == "cuda:GPU-1"
    assert slot_like(_trial()).device == "cuda:GPU-1"


@pytest.mark.parametrize(
    ("attempts", "said"),
    [
        ([_attempt(threads=2)], []),
        ([_attempt(threads=3)], ["it was trained with 3 CPU threads, here with 2"]),
        (
            [_attempt(threads=3, cause="lost"), _attempt(threads=2)],
            ["it was trained with 2 and 3 CPU threads, here with 2"],
        ),
        ([_attempt()], ["nobody wrote down with how many CPU threads it was trained, here with 2"]),
        ([_attempt("cuda:GPU-7", threads=2)], ["it was trained on a GPU, here on cpu"]),
    ],
)
def test_what_may_explain_other_last_bits(attempts: list[Attempt], said: list[str]) -> None:
    [slot] = make_slots("cpu", 1, 2)
    assert unlike(_trial(*attempts), slot) == said
