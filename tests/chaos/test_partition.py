"""A worker's link to the store is cut while a trial trains: exactly one result counts, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import partition
from benchmarks.chaos.namespaces import NamespacesUnavailableError, Site, namespaces_site, proxy_site

_CASES = ("taken-over", "outlasting", "alone", "short-cuts")


@pytest.fixture(scope="module", params=["namespaces", "proxy"])
def site(request: pytest.FixtureRequest, server_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where it happens; skipped where there is no mongod, and three hosts where there are no network namespaces."""
    folder = tmp_path_factory.mktemp(request.param)
    try:
        make = {"namespaces": namespaces_site, "proxy": proxy_site}[request.param](folder)
        with make as opened:
            yield opened
    except NamespacesUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", _CASES)
def test_cut_link_loses_nothing(site: Site, case: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    figures = partition.play(site, tmp_path, case, partition.plays(short=True, draw=draw)[case], short=True)
    assert figures["losses"] == []
    if case == "taken-over":
        assert figures["late_results"] == 1
    if case != "short-cuts":
        assert figures["cut_s"] > partition.LEASE["duration_s"]
    if site.only_door:
        assert figures["connections_of_the_worker"] == [site.only_door]


def test_result_accepted_twice_is_a_loss(site: Site, tmp_path: Path) -> None:
    """The check itself: a trial whose attempts both count is found."""
    with partition.Case.opened(site, tmp_path / "twice", "twice") as case:
        case.worker("far")
        (case.folder / "open").touch()
        case.finish()
        assert case.losses == []
        trials = case.store.connection.database["trials"]
        first = trials.find_one({"number": 0})
        assert first is not None
        trials.update_one({"number": 0}, {"$set": {"attempts": [*first["attempts"], *first["attempts"]]}})
        case.finish()
    assert case.losses == [f"{site.name} twice: trial 0 has 2 accepted results"]
