"""The soak in its short form: counts do not grow at all, memory within a generous bound."""

from __future__ import annotations

import pytest

from benchmarks.chaos import soak


def test_nothing_grows(server_uri: str) -> None:
    outcome = soak.run(short=True)
    assert outcome.problems == [], outcome.rows


@pytest.mark.parametrize(
    ("values", "rise"), [([5.0, 5.0, 5.0], 0.0), ([1.0, 2.0, 3.0], 2.0), ([3.0, 2.0, 1.0], -2.0), ([4.0], 0.0)]
)
def test_rise_of_a_line(values: list[float], rise: float) -> None:
    assert soak.rise(range(len(values)), values) == pytest.approx(rise)
