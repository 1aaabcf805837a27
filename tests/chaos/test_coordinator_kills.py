"""Coordinators killed with -9 at random points: the budget is exact, and the proposals are those of a quiet run."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.store.mongo import MongoStore
from benchmarks.chaos import coordinator_kills


@pytest.mark.timeout(300)
def test_killed_coordinators_change_nothing(server_uri: str, tmp_path: Path) -> None:
    figures = coordinator_kills.run(tmp_path, short=True, seed=0)
    assert figures["losses"] == []
    assert figures["kills"] >= 12
    assert figures["standby_proposes_after_s"]["number"] > 0


def test_other_proposals_are_a_loss(store: MongoStore) -> None:
    """The check itself: it sees a seed that is another."""
    search = {"algorithm": "random", "seed": 3}
    whole = coordinator_kills.undisturbed(store, "whole", search, 4)
    assert coordinator_kills.audit(store, "whole", whole, 4) == []
    number, params, seed = whole[2]
    whole[2] = (number, params, seed + 1)
    [loss] = coordinator_kills.audit(store, "whole", whole, 4)
    assert loss.startswith("from trial 2 on")
