"""Clocks an hour off: no lease is lost or stolen."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import skew


@pytest.mark.timeout(180)
def test_skewed_clocks_cost_no_attempt(server_uri: str, tmp_path: Path) -> None:
    try:
        figures = skew.run(tmp_path, short=True, seed=0)
    except skew.FaketimeMissingError as error:
        pytest.skip(str(error))
    assert figures["losses"] == []
    [campaign] = figures["campaigns"]
    assert sum(campaign["attempts_by_worker"].values()) == 6
    assert all(campaign["attempts_by_worker"].values())
