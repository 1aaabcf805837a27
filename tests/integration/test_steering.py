"""Steering a campaign through the API: each state, races with the coordinator, and what is written down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from autotune.coordinator import Coordinator
from autotune.errors import InputError, NotFoundError, QueryError, SpaceError, StateError
from autotune.local import steering
from autotune.planning import trial_seed
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, failure, result, until, worker_record
from autotune.trial import CampaignState, Cause, Origin, TrialState

RUNNING, PAUSED, FINISHED = CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.FINISHED
FAILED, CANCELLED = CampaignState.FAILED, CampaignState.CANCELLED
NAME = "demo"
SPACE = {"x": {"float": [-2, 2]}, "layers": {"int": [1, 4]}}
Make = Callable[..., CampaignRecord]


@pytest.fixture
def campaign(make_campaign: Make) -> CampaignRecord:
    return make_campaign(NAME, max_trials=4, space=SPACE, search={"algorithm": "random", "seed": 7})


def ended_in(store: MongoStore, state: CampaignState) -> None:
    """Bring the campaign to a state."""
    if state is not RUNNING:
        store.campaigns.set_state(NAME, state, expected=[RUNNING], message="why")


def add_trial(store: MongoStore, number: int, end: Cause | None = None, score: float = 1.0) -> None:
    """Write a trial that ended: with a score, or for a cause."""
    store.trials.propose(NAME, number, {"x": number / 10, "layers": 1}, f"hash-{number}", seed=number)
    lease = claim(store, NAME)
    assert lease.number == number
    if end is None:
        store.trials.finish(lease, result(score))
    else:
        store.trials.end_attempt(lease, failure(end))


def actions(store: MongoStore) -> list[str]:
    return [e["action"] for e in store.campaigns.events(NAME)]


@contextmanager
def coordinated(store: MongoStore) -> Iterator[threading.Thread]:
    """Run a coordinator for a block."""
    stop = threading.Event()
    thread = threading.Thread(target=Coordinator(store, NAME).run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.usefixtures("campaign")
class TestPauseAndCancel:
    def test_twice_is_once(self, store: MongoStore) -> None:
        assert [steering.pause(store, NAME), steering.pause(store, NAME)] == [True, False]
        store.trials.propose(NAME, 0, {"x": 0.0, "layers": 1}, "hash", seed=0)
        assert [steering.cancel(store, NAME), steering.cancel(store, NAME)] == [(True, 1), (False, 0)]
        assert actions(store) == ["create", "paused", "cancelled"]
        events = store.campaigns.events(NAME)
        assert events[1]["who"] == events[2]["who"] != ""

    def test_a_cancellation_that_broke_off_is_completed(self, store: MongoStore) -> None:
        store.trials.propose(NAME, 0, {"x": 0.0, "layers": 1}, "hash", seed=0)
        ended_in(store, CANCELLED)
        assert steering.cancel(store, NAME) == (True, 1)
        assert steering.cancel(store, NAME) == (False, 0)

    @pytest.mark.parametrize("state", [FINISHED, FAILED])
    def test_what_ended_is_refused(self, store: MongoStore, state: CampaignState) -> None:
        ended_in(store, state)
        for steer in (steering.pause, steering.cancel):
            with pytest.raises(StateError, match=f"is {state}: why"):
                steer(store, NAME)
        assert actions(store) == ["create", str(state)]


@pytest.mark.usefixtures("campaign")
class TestExtend:
    @pytest.mark.parametrize(
        ("state", "after", "reopened"),
        [(RUNNING, RUNNING, False), (PAUSED, PAUSED, False), (FINISHED, RUNNING, True), (FAILED, FAILED, False)],
    )
    def test_each_state(self, store: MongoStore, state: CampaignState, after: CampaignState, reopened: bool) -> None:
        ended_in(store, state)
        larger = Extension(max_trials=9, max_hours=1.5)
        done = steering.extend(store, NAME, larger)
        assert (done.changed, done.reopened, done.campaign.state) == (True, reopened, after)
        assert (done.campaign.max_trials, done.campaign.max_hours) == (9, 1.5)
        again = steering.extend(store, NAME, larger)
        assert (again.changed, again.reopened, again.campaign.state) == (False, False, after)
        assert actions(store).count("extend") == 1

    def test_cancelled_is_refused(self, store: MongoStore) -> None:
        ended_in(store, CANCELLED)
        with pytest.raises(StateError, match="cancelled"):
            steering.extend(store, NAME, Extension(max_trials=9))
        assert "extend" not in actions(store)

    @pytest.mark.parametrize(
        "extension",
        [
            Extension(),
            Extension(max_trials=0),
            Extension(max_trials=-(10**400)),
            Extension(max_trials=10**7),
            Extension(max_hours=0.0),
            Extension(max_hours=float("nan")),
            Extension(max_device_hours=float("inf")),
            Extension(max_trials=9, max_device_hours=-1.0),
        ],
    )
    def test_what_is_no_budget(self, store: MongoStore, extension: Extension) -> None:
        before = store.campaigns.get(NAME)
        with pytest.raises(InputError):
            steering.extend(store, NAME, extension)
        assert store.campaigns.get(NAME) == before


@pytest.mark.usefixtures("campaign")
class TestEnqueue:
    def test_a_trial_of_a_persons_choice(self, store: MongoStore) -> None:
        add_trial(store, 0)
        revision = store.campaigns.get(NAME).revision
        done = steering.enqueue(store, NAME, {"layers": 2.0, "x": 1})
        assert (done.number, done.new, done.state) == (1, True, RUNNING)
        trial = store.trials.get(NAME, 1)
        assert (trial.state, trial.origin, trial.seed) == (TrialState.QUEUED, Origin.PERSON, trial_seed(7, 1))
        assert trial.params == {"x": 1.0, "layers": 2}
        assert [type(v) for v in trial.params.values()] == [float, int], "normalised as the space says"
        assert store.campaigns.get(NAME).revision > revision
        assert store.campaigns.events(NAME)[-1]["detail"] == {"number": 1, "params": {"x": 1.0, "layers": 2}}

    def test_twice_is_once_even_after_the_end(self, store: MongoStore) -> None:
        first = steering.enqueue(store, NAME, {"x": 1, "layers": 2})
        for state in (RUNNING, FINISHED):
            ended_in(store, state)
            again = steering.enqueue(store, NAME, {"x": 1.0, "layers": 2})
            assert (again.number, again.new) == (first.number, False)
        assert len(store.trials.find(NAME)) == 1
        assert actions(store).count("enqueue") == 1

    def test_like_another_trial(self, store: MongoStore) -> None:
        add_trial(store, 0)
        done = steering.enqueue(store, NAME, {"layers": 3}, like=0)
        assert store.trials.get(NAME, done.number).params == {"x": 0.0, "layers": 3}
        with pytest.raises(NotFoundError, match="no trial 9"):
            steering.enqueue(store, NAME, {"layers": 3}, like=9)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"x": 1}, "'layers' is missing; write layers=VALUE, or .*--like"),
            ({"x": 1, "layer": 2}, "unknown parameter 'layer'; did you mean 'layers'"),
            ({"x": 1, "layers": 2, "y": 3}, "unknown parameter 'y'"),
            ({"x": 3, "layers": 2}, "x"),
            ({"x": "one", "layers": 2}, "x"),
            ({"x": None, "layers": 2}, "x"),
            ({"x": {"$gt": 1}, "layers": 2}, "x"),
            ({}, "'x' is missing"),
        ],
    )
    def test_what_is_not_in_the_space(self, store: MongoStore, params: dict[str, Any], message: str) -> None:
        with pytest.raises(SpaceError, match=message):
            steering.enqueue(store, NAME, params)
        assert store.trials.find(NAME) == []

    def test_the_budget_holds(self, store: MongoStore) -> None:
        for number in range(4):
            add_trial(store, number)
        with pytest.raises(StateError, match=r"4 trials of 4; extend it first: autotune extend demo --trials 5"):
            steering.enqueue(store, NAME, {"x": 1, "layers": 2})
        steering.extend(store, NAME, Extension(max_trials=5))
        assert steering.enqueue(store, NAME, {"x": 1, "layers": 2}).number == 4

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (FINISHED, "is finished .why.; extend it first"),
            (FAILED, "autotune retry demo"),
            (CANCELLED, "is cancelled"),
        ],
    )
    def test_what_ended_is_refused(self, store: MongoStore, state: CampaignState, message: str) -> None:
        ended_in(store, state)
        with pytest.raises(StateError, match=message):
            steering.enqueue(store, NAME, {"x": 1, "layers": 2})
        assert store.trials.find(NAME) == []

    def test_a_paused_campaign_takes_it_and_stays_paused(self, store: MongoStore) -> None:
        ended_in(store, PAUSED)
        assert steering.enqueue(store, NAME, {"x": 1, "layers": 2}).state is PAUSED
        assert store.trials.get(NAME, 0).state is TrialState.QUEUED

    def test_many_people_and_the_coordinator_at_once(self, store: MongoStore) -> None:
        steering.extend(store, NAME, Extension(max_trials=30))
        store.workers.register(worker_record("w", slots=10))
        people = 12
        start = threading.Barrier(people)

        def enqueue(person: int) -> tuple[int, bool]:
            start.wait()
            done = steering.enqueue(store, NAME, {"x": (person // 2) / 100, "layers": 4})
            return done.number, done.new

        with coordinated(store), ThreadPoolExecutor(people) as pool:
            done = list(pool.map(enqueue, range(people)))
            until(lambda: len(store.trials.find(NAME)) >= 10, 30)
        trials = store.trials.find(NAME)
        assert [t.number for t in trials] == list(range(len(trials)))
        by_hand = [t for t in trials if t.origin is Origin.PERSON]
        assert len(by_hand) == people // 2
        assert sum(new for _, new in done) == people // 2
        assert {number for number, _ in done} == {t.number for t in by_hand}
        assert [t.seed for t in trials] == [trial_seed(7, t.number) for t in trials]
        assert actions(store).count("enqueue") == people // 2


@pytest.mark.usefixtures("campaign")
class TestRetry:
    def fill(self, store: MongoStore) -> None:
        add_trial(store, 0, Cause.ERROR)
        add_trial(store, 1)
        add_trial(store, 2, Cause.NOT_A_NUMBER)
        add_trial(store, 3, Cause.STOPPED)

    def test_only_what_matches_and_ended_without_a_result(self, store: MongoStore) -> None:
        self.fill(store)
        assert steering.retry(store, NAME, ["x>=0"], dry_run=True).numbers == (0, 2, 3)
        assert actions(store) == ["create"]
        done = steering.retry(store, NAME, ["cause=error"])
        assert (done.numbers, done.reopened, done.state) == ((0,), False, RUNNING)
        assert steering.retry(store, NAME, ["cause=error"]).numbers == ()
        assert steering.retry(store, NAME, ["state=finished"]).numbers == ()
        assert steering.retry(store, NAME, everything=True).numbers == (2, 3)
        assert steering.retry(store, NAME, everything=True).numbers == ()
        assert store.trials.get(NAME, 1).state is TrialState.FINISHED
        assert actions(store) == ["create", "retry", "retry"]
        assert store.campaigns.events(NAME)[1]["detail"] == {"trials": 1, "numbers": [0], "where": ["cause=error"]}

    @pytest.mark.parametrize(
        ("state", "after", "reopened"),
        [(RUNNING, RUNNING, False), (PAUSED, PAUSED, False), (FINISHED, RUNNING, True), (FAILED, RUNNING, True)],
    )
    def test_each_state(self, store: MongoStore, state: CampaignState, after: CampaignState, reopened: bool) -> None:
        self.fill(store)
        ended_in(store, state)
        done = steering.retry(store, NAME, everything=True)
        assert (done.numbers, done.reopened, done.state) == ((0, 2, 3), reopened, after)
        found = store.campaigns.get(NAME)
        assert (found.state, found.ended_at) == (after, None)
        assert found.revision > 0
        assert store.trials.counts(NAME) == {TrialState.QUEUED: 3, TrialState.FINISHED: 1}
        before = actions(store)
        assert steering.retry(store, NAME, everything=True).numbers == ()
        assert actions(store) == before
        assert before.count("retry") == 1

    def test_an_ended_campaign_without_such_trials_stays_ended(self, store: MongoStore) -> None:
        add_trial(store, 0)
        ended_in(store, FINISHED)
        done = steering.retry(store, NAME, everything=True)
        assert (done.numbers, done.reopened, done.state) == ((), False, FINISHED)
        assert actions(store) == ["create", "finished"]

    def test_cancelled_is_refused(self, store: MongoStore) -> None:
        self.fill(store)
        ended_in(store, CANCELLED)
        with pytest.raises(StateError, match="is cancelled"):
            steering.retry(store, NAME, everything=True)
        assert store.trials.get(NAME, 0).state is TrialState.FAILED

    def test_wrong_questions(self, store: MongoStore) -> None:
        self.fill(store)
        for where, everything in ((["x>0"], True), ([], False)):
            with pytest.raises(InputError, match="--where EXPR"):
                steering.retry(store, NAME, where, everything=everything)
        with pytest.raises(QueryError, match="did you mean 'layers'"):
            steering.retry(store, NAME, ["layerz=1"])
        with pytest.raises(QueryError, match="is not a condition"):
            steering.retry(store, NAME, ["error"])
        with pytest.raises(NotFoundError):
            steering.retry(store, "nobody", everything=True)

    def test_a_coordinator_that_stands_by_does_not_undo_it(self, store: MongoStore) -> None:
        """It cancels what is queued in a failed campaign; what is retried meanwhile must not be among that."""
        self.fill(store)
        coordinator = Coordinator(store, NAME)
        ended_in(store, FAILED)
        stop = threading.Event()

        def stand_by() -> None:
            while not stop.is_set():
                coordinator.step()

        thread = threading.Thread(target=stand_by, daemon=True)
        thread.start()
        try:
            assert steering.retry(store, NAME, everything=True).numbers == (0, 2, 3)
        finally:
            stop.set()
            thread.join(30)
        assert store.campaigns.get(NAME).state is RUNNING
        assert store.trials.counts(NAME).get(TrialState.QUEUED) == 3

    def test_a_campaign_that_ends_at_that_moment_goes_on(
        self, store: MongoStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The coordinator saw all trials ended, and ends the campaign just after one of them was queued again."""
        self.fill(store)
        retry = store.trials.retry

        def retry_then_end(campaign: str, numbers: list[int]) -> list[int]:
            done = retry(campaign, numbers)
            ended_in(store, FINISHED)
            return done

        monkeypatch.setattr(store.trials, "retry", retry_then_end)
        done = steering.retry(store, NAME, ["cause=error"])
        assert (done.numbers, done.state) == ((0,), RUNNING)
        assert store.campaigns.get(NAME).state is RUNNING


@pytest.mark.usefixtures("campaign")
def test_the_coordinator_uses_a_larger_budget_and_retried_trials(store: MongoStore) -> None:
    store.workers.register(worker_record("w", slots=2))
    add_trial(store, 0, Cause.ERROR)
    for number in (1, 2, 3):
        add_trial(store, number)
    with coordinated(store) as thread:
        thread.join(30)
    assert store.campaigns.get(NAME).state is FINISHED
    assert steering.extend(store, NAME, Extension(max_trials=6)).reopened
    assert steering.retry(store, NAME, everything=True).numbers == (0,)
    with coordinated(store) as thread:
        for _ in range(3):
            until(lambda: store.trials.counts(NAME).get(TrialState.QUEUED, 0) > 0, 30)
            store.trials.finish(claim(store, NAME), result(1.0))
        thread.join(30)
    assert store.campaigns.get(NAME).state is FINISHED
    assert store.trials.counts(NAME) == {TrialState.FINISHED: 6}
    assert [t.claims for t in store.trials.find(NAME)] == [2, 1, 1, 1, 1, 1]
