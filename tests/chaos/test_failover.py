"""The failover scenario in its short form."""

from __future__ import annotations

from benchmarks.chaos import failover


def test_killed_primaries_lose_nothing(server_uri: str) -> None:
    outcome = failover.run(short=True)
    assert outcome.problems == [], outcome.rows
    assert outcome.figures["primaries_killed"] == 2
