"""Where the time of trials went."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autotune.report.timing import PHASES, phases
from autotune.trial import Attempt, Trial, TrialState

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def make(number: int, timing: dict[str, float], *, waited: float = 1.0, took: float = 10.0, **more: Any) -> Trial:
    attempt = Attempt(token="t", owner="w", started_at=at(waited), ended_at=at(waited + took), timing=timing)
    settings: dict[str, Any] = {"state": TrialState.FINISHED, "score": 1.0, "attempts": (attempt,), **more}
    return Trial(
        campaign="c", number=number, params={}, config_hash=str(number), proposed_at=START, started_at=at(waited),
        **settings,
    )  # fmt: skip


def test_phases_of_a_trial_in_a_process_of_its_own_add_up() -> None:
    timing = {"server_s": 2.0, "load_s": 0.5, "run_s": 6.0, "score_s": 1.0, "total_s": 7.5}
    found = {p.phase: p for p in phases([make(0, timing)])}
    assert {name: p.total_s for name, p in found.items()} == pytest.approx(
        {"queue": 1.0, "server": 2.0, "start": 1.0, "load": 0.5, "train": 5.0, "score": 1.0, "finish": 0.5}
    )
    assert sum(p.total_s for name, p in found.items() if name != "queue") == pytest.approx(10.0)
    assert sum(p.share or 0.0 for p in found.values()) == pytest.approx(1.0)
    assert found["queue"].share is None
    assert list(found) == [name for name in PHASES if name in found]


def test_a_trial_in_the_workers_process_has_fewer_phases() -> None:
    found = {p.phase: p.total_s for p in phases([make(0, {"run_s": 9.0, "total_s": 9.5})])}
    assert found == pytest.approx({"queue": 1.0, "train": 9.0, "finish": 0.5})


def test_only_finished_trials_count_with_their_last_attempt() -> None:
    timing = {"run_s": 9.0, "total_s": 9.5}
    lost = Attempt(token="a", owner="w", started_at=at(1), ended_at=at(99), cause="lost", timing={"run_s": 90.0})
    again = make(1, timing)
    again = make(1, timing, attempts=(lost, *again.attempts))
    failed = make(2, {"run_s": 1000.0, "total_s": 1000.0}, state=TrialState.FAILED, score=None)
    found = {p.phase: p for p in phases([make(0, timing), again, failed])}
    assert found["train"].total_s == pytest.approx(18.0)
    assert (found["train"].median_s, found["train"].p95_s) == pytest.approx((9.0, 9.0))


def test_nothing_finished_is_nothing_to_show() -> None:
    assert phases([]) == []
    assert [p.phase for p in phases([make(0, {})])] == ["queue"]
