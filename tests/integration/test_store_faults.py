"""Replies that get lost, on a server with fail points: exactly one effect, or a trial that comes back by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.errors import StoreSetupError, StoreUnreachableError
from autotune.store import connection as connection_module
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import CAMPAIGN, LONG_S, campaign_record, expire, failure, propose, result, running
from autotune.testing.servers import fail_point, faulty_server
from autotune.trial import CampaignState, Cause, Report, TrialState

BROKEN = {"code": 9001, "errmsg": "socket exception"}
BEFORE: dict[str, Any] = {"closeConnection": True}
AFTER: dict[str, Any] = {"writeConcernError": {**BROKEN, "errorLabels": ["RetryableWriteError"]}}
LOST = pytest.mark.parametrize("fault", [BEFORE, AFTER], ids=["before-execution", "after-execution"])


@pytest.fixture(scope="module")
def faulty_uri(tmp_path_factory: pytest.TempPathFactory, server_uri: str) -> Iterator[str]:
    """URI of a server with fail points."""
    with faulty_server(tmp_path_factory.mktemp("faulty")) as uri:
        yield uri


@pytest.fixture
def faulty(faulty_uri: str, request: pytest.FixtureRequest) -> Iterator[MongoStore]:
    """An empty store there."""
    with MongoStore(faulty_uri.replace("/autotune?", "/faulty?")) as store:
        yield store
        store.connection.client.drop_database("faulty")


@LOST
def test_a_claim_whose_reply_is_lost_takes_one_trial(faulty: MongoStore, fault: dict[str, Any]) -> None:
    for number in (0, 1):
        propose(faulty, number)
    with fail_point(faulty, ["findAndModify"], **fault):
        trial = faulty.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
    assert trial is not None
    assert trial.number == 0
    assert len(faulty.trials.get(CAMPAIGN, 0).attempts) == 1
    assert faulty.trials.counts(CAMPAIGN) == {TrialState.RUNNING: 1, TrialState.QUEUED: 1}


@LOST
def test_a_result_whose_reply_is_lost_is_written_once(faulty: MongoStore, fault: dict[str, Any]) -> None:
    lease = running(faulty)
    with fail_point(faulty, ["update"], **fault):
        faulty.trials.finish(lease, result(0.5))
    trial = faulty.trials.get(CAMPAIGN, 0)
    assert (trial.state, trial.score, trial.attempts[0].late_result) == (TrialState.FINISHED, 0.5, None)


@LOST
def test_a_proposal_whose_reply_is_lost_is_written_once(faulty: MongoStore, fault: dict[str, Any]) -> None:
    with fail_point(faulty, ["findAndModify"], **fault):
        propose(faulty, 0)
    assert [t.number for t in faulty.trials.find(CAMPAIGN)] == [0]


@LOST
def test_reports_whose_reply_is_lost_are_written_once(faulty: MongoStore, fault: dict[str, Any]) -> None:
    lease = running(faulty)
    with fail_point(faulty, ["update"], **fault):
        faulty.reports.add(lease, [Report(step=1, metrics={"loss": 1.0})])
    assert [r.step for r in faulty.reports.curve(CAMPAIGN, 0)] == [1]


@pytest.mark.parametrize("command", ["find", "update", "commitTransaction"])
def test_a_cancellation_is_done_once_whatever_part_of_it_is_lost(faulty: MongoStore, command: str) -> None:
    faulty.campaigns.create(campaign_record())
    running(faulty, 0)
    propose(faulty, 1)
    with fail_point(faulty, [command], times=2, **BEFORE):
        assert faulty.trials.cancel_if(CAMPAIGN, "enough", state=CampaignState.RUNNING) == 2
    assert faulty.trials.counts(CAMPAIGN) == {TrialState.CANCELLED: 2}


@pytest.mark.parametrize("fault", [BEFORE, {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}])
def test_a_cancellation_that_does_not_get_through_is_given_up(
    faulty: MongoStore, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    """The driver by itself would try for two minutes; a coordinator has other things to do."""
    monkeypatch.setattr(connection_module, "TRANSACTION_S", 2.0)
    faulty.campaigns.create(campaign_record())
    running(faulty, 0)
    began_s = time.monotonic()
    with fail_point(faulty, ["update"], times=1_000_000, **fault), pytest.raises(StoreUnreachableError):
        faulty.trials.cancel_if(CAMPAIGN, "enough", state=CampaignState.RUNNING)
    assert time.monotonic() - began_s < 60.0
    assert faulty.trials.get(CAMPAIGN, 0).state is TrialState.RUNNING


def test_a_claim_lost_for_good_is_held_until_its_lease_runs_out(faulty: MongoStore) -> None:
    propose(faulty, 0)
    with fail_point(faulty, ["findAndModify"], times=10, **AFTER), pytest.raises(StoreUnreachableError):
        faulty.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
    assert faulty.trials.get(CAMPAIGN, 0).state is TrialState.RUNNING
    assert faulty.trials.claim([CAMPAIGN], owner="v", token="u", duration_s=LONG_S) is None
    assert faulty.trials.reap(CAMPAIGN) == []
    lease = faulty.trials.get(CAMPAIGN, 0).lease
    assert lease is not None
    expire(faulty, lease)
    assert faulty.trials.reap(CAMPAIGN) == [0]
    again = faulty.trials.claim([CAMPAIGN], owner="v", token="u", duration_s=LONG_S)
    assert again is not None
    assert again.number == 0


def test_a_claim_lost_for_good_is_found_again_by_its_token(faulty: MongoStore) -> None:
    propose(faulty, 0)
    propose(faulty, 1)
    with fail_point(faulty, ["findAndModify"], times=10, **AFTER), pytest.raises(StoreUnreachableError):
        faulty.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
    again = faulty.trials.claim([CAMPAIGN], owner="w", token="t", duration_s=LONG_S)
    assert again is not None
    assert again.number == 0
    assert faulty.trials.get(CAMPAIGN, 1).state is TrialState.QUEUED


def test_a_result_lost_for_good_can_be_sent_again(faulty: MongoStore) -> None:
    lease = running(faulty)
    with fail_point(faulty, ["update"], times=10, **AFTER), pytest.raises(StoreUnreachableError):
        faulty.trials.finish(lease, result(0.5))
    faulty.trials.finish(lease, result(0.5))
    assert faulty.trials.get(CAMPAIGN, 0).attempts[0].late_result is None
    assert faulty.trials.get(CAMPAIGN, 0).score == 0.5


def test_a_failure_lost_for_good_can_be_sent_again(faulty: MongoStore) -> None:
    lease = running(faulty)
    with fail_point(faulty, ["update"], times=10, **AFTER), pytest.raises(StoreUnreachableError):
        faulty.trials.end_attempt(lease, failure(Cause.PREEMPTED))
    assert faulty.trials.end_attempt(lease, failure(Cause.PREEMPTED)) is TrialState.QUEUED
    assert len(faulty.trials.get(CAMPAIGN, 0).attempts) == 1


def test_a_watch_survives_a_dropped_connection(faulty: MongoStore) -> None:
    with faulty.watch_work() as watch:
        with fail_point(faulty, ["getMore"], closeConnection=True):
            assert not watch.wait(0.05)
        propose(faulty, 0)
        assert watch.wait(10)


def test_no_fail_points_without_test_commands(store: MongoStore) -> None:
    with pytest.raises(Exception, match="configureFailPoint"), fail_point(store, ["find"]):
        pytest.fail("the embedded server takes commands that are for tests only")


def test_a_server_that_does_not_take_its_arguments_says_so(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_MONGOD", "/bin/false")
    with (
        pytest.raises(StoreSetupError, match="exit code 1"),
        faulty_server(tmp_path_factory.mktemp("false")),
    ):
        pytest.fail("it started")
