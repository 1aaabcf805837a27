"""Benchmarks on a real store: the seal, the trials of the companion, races, and workers that die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from autotune.campaign import parse_campaign
from autotune.errors import CampaignError, CampaignExistsError, InputError, NotFoundError, ObjectiveError, StateError
from autotune.local import steering
from autotune.local.benchmark import Wanted, begin, load
from autotune.local.companion import complete, planned, replicate_seed, sealed_metric
from autotune.local.resolve import resolve
from autotune.local.session import reopen
from autotune.planning import trial_seed
from autotune.store.base import CampaignRecord
from autotune.store.campaigns import Extension
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, failure
from autotune.trial import CampaignState, Cause, Origin, Result, TrialState
from tests.objectives.support import (
    QUICK_LEASE,
    coordinating,
    process,
    run_out,
    wait_until,
    worker_command,
    working,
)

RUNNING, PAUSED, FINISHED = CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.FINISHED
NAME, COMPANION = "demo", "demo-benchmark"
Make = Callable[..., CampaignRecord]


@pytest.fixture
def make_finished(store: MongoStore, make_campaign: Make) -> Make:
    """Creates a finished campaign whose objective can be benchmarked; trial 2 of 4 is the best, trial 3 failed."""

    def make(name: str = NAME, **changes: Any) -> CampaignRecord:
        chosen = {"objective": "tests.objectives.evaluated:train", "search": {"algorithm": "random", "seed": 7}}
        record = make_campaign(name, **{**chosen, "lease": QUICK_LEASE, **changes})
        for number in range(4):
            x = number / 2
            store.trials.propose(name, number, {"x": x}, f"hash-{number}", seed=trial_seed(7, number))
            lease = claim(store, name)
            if number == 3:
                store.trials.end_attempt(lease, failure(Cause.ERROR))
                continue
            score = (x - 1) ** 2
            store.trials.finish(lease, Result(score=score, metrics={"loss": {"value": score, "se": 0.02}}))
        store.campaigns.set_state(name, FINISHED, expected=[RUNNING])
        return store.campaigns.get(record.name)

    return make


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Call all at the same moment; return the results, or the errors."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        start.wait()
        try:
            return call()
        except StateError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestTheSeal:
    def test_it_is_opened_once_and_written_down(self, store: MongoStore, make_finished: Make) -> None:
        assert make_finished().unsealed_at is None
        assert [store.campaigns.unseal(NAME, "ann"), store.campaigns.unseal(NAME, "bob")] == [True, False]
        assert store.campaigns.get(NAME).unsealed_at is not None
        events = [(e["action"], e["who"]) for e in store.campaigns.events(NAME)]
        assert events.count(("unseal", "ann")) == 1
        assert "bob" not in {who for _, who in events}

    @pytest.mark.parametrize("state", [s for s in CampaignState if s is not FINISHED])
    def test_only_of_a_finished_campaign(self, store: MongoStore, make_campaign: Make, state: CampaignState) -> None:
        make_campaign()
        if state is not RUNNING:
            store.campaigns.set_state(NAME, state, expected=[RUNNING])
        with pytest.raises(StateError, match=f"is {state}; its test part is opened when it is finished"):
            store.campaigns.unseal(NAME)
        assert store.campaigns.get(NAME).unsealed_at is None
        with pytest.raises(NotFoundError):
            store.campaigns.unseal("nobody")

    def test_afterwards_nothing_lets_it_go_on(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        store.campaigns.unseal(NAME)
        before = store.campaigns.get(NAME)
        refused: list[Callable[[], object]] = [
            lambda: steering.extend(store, NAME, Extension(max_trials=9)),
            lambda: steering.extend(store, NAME, Extension(max_trials=4)),
            lambda: steering.enqueue(store, NAME, {"x": 0.25}),
            lambda: steering.retry(store, NAME, everything=True),
            lambda: reopen(store, NAME),
            lambda: store.campaigns.extend(NAME, Extension(max_hours=3.0)),
            lambda: store.campaigns.set_state(NAME, RUNNING, expected=list(CampaignState)),
            lambda: store.campaigns.set_state(NAME, PAUSED, expected=list(CampaignState)),
        ]
        for call in refused:
            with pytest.raises(StateError, match="its test part has been opened by a benchmark") as caught:
                call()
            assert "\n" not in str(caught.value)
        assert store.campaigns.get(NAME) == before
        assert store.trials.counts(NAME) == {TrialState.FINISHED: 3, TrialState.FAILED: 1}

    @pytest.mark.parametrize("steer", ["extend", "retry"])
    def test_two_commands_at_once_have_one_winner(self, store: MongoStore, make_finished: Make, steer: str) -> None:
        for index in range(12):
            name = f"race-{index}"
            make_finished(name)

            def go_on(name: str = name) -> object:
                if steer == "extend":
                    return steering.extend(store, name, Extension(max_trials=9)).reopened
                return steering.retry(store, name, everything=True).reopened

            opened, went_on = at_once(lambda name=name: store.campaigns.unseal(name), go_on)  # type: ignore[misc]
            record = store.campaigns.get(name)
            if opened is True:
                assert isinstance(went_on, StateError)
                assert record.state is FINISHED
                assert not store.trials.heads(name, states=[TrialState.QUEUED])
            else:
                assert went_on is True
                assert (record.state, record.unsealed_at) == (RUNNING, None)

    def test_a_trial_that_slips_in_at_that_moment_never_runs(
        self, store: MongoStore, make_finished: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_finished(max_trials=6)
        store.campaigns.set_state(NAME, RUNNING, expected=[FINISHED])
        propose = store.trials.propose

        def slow(*args: Any, **kwargs: Any) -> object:
            done = propose(*args, **kwargs)
            store.campaigns.set_state(NAME, FINISHED, expected=[RUNNING])
            store.campaigns.unseal(NAME)
            return done

        monkeypatch.setattr(store.trials, "propose", slow)
        with pytest.raises(StateError, match="its test part has been opened"):
            steering.enqueue(store, NAME, {"x": 0.25})
        assert store.trials.counts(NAME)[TrialState.CANCELLED] == 1
        assert store.campaigns.get(NAME).state is FINISHED

    def test_no_campaign_file_opens_it(self) -> None:
        content = {
            "name": "c", "objective": "math:fsum", "metric": {"name": "loss", "mode": "min"},
            "space": {"x": {"float": [0, 1]}}, "budget": {"max_trials": 1}, "split": {"unsealed": False},
        }  # fmt: skip
        with pytest.raises(CampaignError, match=r"split\.unsealed is not for campaign files"):
            resolve(parse_campaign(content))


class TestTheCompanion:
    def test_each_configuration_with_each_seed(self, store: MongoStore, make_finished: Make) -> None:
        make_finished(limits={"trial_s": 60})
        record = begin(store, NAME, Wanted(seeds=3, finalists=2, settings={"noise": 0.5}))
        assert record.spec["limits"] == {"trial_s": 240.0, "silent_s": None}
        assert (record.name, record.state, record.max_trials) == (COMPANION, RUNNING, 9)
        assert record.metric == {"name": "loss_test", "mode": "min"}
        assert record.spec["metrics"] == ["loss_test", "loss"]
        evaluation = record.evaluation
        assert evaluation is not None
        assert evaluation["of"] == NAME
        assert evaluation["settings"] == {"noise": 0.5, "flavour": "plain"}
        assert evaluation["runs"] == {"default": {"x": 0.0}, "tuned": {"x": 1.0}, "tuned-2": {"x": 0.5}}
        assert evaluation["chosen"] == {"tuned": 2, "tuned-2": 1}
        assert record.spec["split"]["unsealed"] is True
        trials = store.trials.find(COMPANION)
        assert [t.number for t in trials] == list(range(9))
        assert [(t.replicate, t.params["x"]) for t in trials] == [(r, x) for r in range(3) for x in (0.0, 1.0, 0.5)]
        seeds = [{t.seed for t in trials if t.replicate == r} for r in range(3)]
        assert [len(s) for s in seeds] == [1, 1, 1]
        assert len(set.union(*seeds)) == 3
        assert set.union(*seeds).isdisjoint({trial_seed(7, number) for number in range(100)})
        assert store.campaigns.get(NAME).unsealed_at is not None

    def test_doing_it_twice_is_doing_it_once(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        first = begin(store, NAME, Wanted(seeds=2))
        trials, events = store.trials.find(COMPANION), store.campaigns.events(COMPANION)
        database = store.connection.database
        database["campaigns"].update_one({"_id": NAME}, {"$set": {"unsealed_at": None}})  # as an older backup has it
        again = begin(store, NAME, Wanted())
        assert store.campaigns.get(NAME).unsealed_at is not None
        assert (again.spec_hash, again.created_at) == (first.spec_hash, first.created_at)
        assert store.trials.find(COMPANION) == trials
        assert store.campaigns.events(COMPANION) == events

    @pytest.mark.parametrize(
        "other", [Wanted(seeds=5), Wanted(finalists=2), Wanted(settings={"noise": 0.2}), Wanted(settings={"new": 1})]
    )
    def test_the_test_part_is_scored_once(self, store: MongoStore, make_finished: Make, other: Wanted) -> None:
        make_finished()
        begin(store, NAME, Wanted(seeds=2))
        with pytest.raises(CampaignExistsError, match="the test part is scored once"):
            begin(store, NAME, other)

    @pytest.mark.parametrize("after", range(4))
    @pytest.mark.parametrize("how", ["benchmark", "resume"])
    def test_a_command_that_was_killed_is_completed(
        self, store: MongoStore, make_finished: Make, monkeypatch: pytest.MonkeyPatch, after: int, how: str
    ) -> None:
        make_finished()
        propose, left = store.trials.propose, [after]

        def dies(*args: Any, **kwargs: Any) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return propose(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(store.trials, "propose", dies)
            with pytest.raises(KeyboardInterrupt):
                begin(store, NAME, Wanted(seeds=2))
        assert store.campaigns.get(COMPANION).state is PAUSED
        assert len(store.trials.find(COMPANION)) == after
        if how == "benchmark":
            begin(store, NAME, Wanted(seeds=2))
        else:
            reopen(store, COMPANION)
        assert store.campaigns.get(COMPANION).state is RUNNING
        assert [t.number for t in store.trials.find(COMPANION)] == [0, 1, 2, 3]

    def test_a_command_that_was_killed_before_it_wrote_anything(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        store.campaigns.unseal(NAME)
        assert begin(store, NAME, Wanted(seeds=2)).max_trials == 4

    def test_many_commands_at_once_make_one_benchmark(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        done = at_once(*[lambda: begin(store, NAME, Wanted(seeds=2)).spec_hash for _ in range(3)])
        assert len(set(done)) == 1
        assert [t.number for t in store.trials.find(COMPANION)] == [0, 1, 2, 3]
        actions = [e["action"] for e in store.campaigns.events(COMPANION)]
        assert (actions.count("create"), actions.count("running")) == (1, 1)

    def test_equal_configurations_are_trained_once(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        record = begin(store, NAME, Wanted(seeds=2, finalists=9))  # the default, x = 0, is the third of the ranking
        assert list((record.evaluation or {})["runs"]) == ["default", "tuned", "tuned-2", "tuned-3"]
        assert record.max_trials == 6
        assert len(store.trials.find(COMPANION)) == 6

    def test_its_trials_are_fixed(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        begin(store, NAME, Wanted(seeds=2))
        for call in (
            lambda: steering.extend(store, COMPANION, Extension(max_trials=50)),
            lambda: steering.enqueue(store, COMPANION, {"x": 0.25}),
        ):
            with pytest.raises(StateError, match="its trials are fixed"):
                call()
        with pytest.raises(StateError, match="is a benchmark itself"):
            begin(store, COMPANION, Wanted())

    def test_a_cancelled_one_is_taken_up_again(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        begin(store, NAME, Wanted(seeds=2))
        lease = claim(store, COMPANION)
        store.trials.finish(lease, Result(score=1.0, metrics={"loss_test": {"value": 1.0}}))
        steering.cancel(store, COMPANION)
        with pytest.raises(StateError, match=f"go on with: autotune benchmark {NAME}"):
            reopen(store, COMPANION)
        assert begin(store, NAME, Wanted()).state is RUNNING
        assert store.trials.counts(COMPANION) == {TrialState.FINISHED: 1, TrialState.QUEUED: 3}

    def test_a_coordinator_adds_nothing(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        record = begin(store, NAME, Wanted(seeds=2))
        with working(store), coordinating(store, COMPANION):
            wait_until(lambda: store.campaigns.get(COMPANION).state is FINISHED, "end of the benchmark", 90)
        trials = store.trials.find(COMPANION)
        assert [t.number for t in trials] == [p.number for p in planned(record)]
        assert {t.origin for t in trials} == {Origin.PERSON}
        assert complete(store, COMPANION).state is FINISHED

    def test_a_copy_of_a_campaign_that_opened_the_same_split_is_named(
        self, store: MongoStore, make_finished: Make
    ) -> None:
        for name in (NAME, "copy", "sealed", "another"):
            make_finished(name)
            sha256 = "ab" if name != "another" else "cd"
            facts = {"split": {"sha256": sha256, "n_test": 10}}
            store.connection.database["campaigns"].update_one({"_id": name}, {"$set": {"facts": facts}})
        for name in ("copy", "another"):
            store.campaigns.unseal(name)
        begin(store, NAME, Wanted(seeds=2))
        made = load(store, NAME)
        assert made.opened_by == ("copy",)
        assert "The same test part was opened by copy too" in " ".join(made.caption)


class TestWhatIsRefused:
    def test_a_campaign_that_is_not_finished(self, store: MongoStore, make_campaign: Make) -> None:
        make_campaign(objective="tests.objectives.evaluated:train")
        with pytest.raises(StateError, match="is running; its test part is opened when it is finished"):
            begin(store, NAME, Wanted())
        with pytest.raises(NotFoundError):
            begin(store, "nobody", Wanted())
        with pytest.raises(NotFoundError, match="has no benchmark"):
            load(store, NAME)

    def test_one_without_a_finished_trial(self, store: MongoStore, make_campaign: Make) -> None:
        make_campaign(objective="tests.objectives.evaluated:train")
        store.campaigns.set_state(NAME, FINISHED, expected=[RUNNING])
        with pytest.raises(StateError, match="nothing to benchmark"):
            begin(store, NAME, Wanted())

    def test_one_without_a_test_part(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        database = store.connection.database
        for facts, refused in (
            ({"split": {"n_test": 0, "sha256": "ab"}}, True),
            ({"split": {"n_test": 0, "sha256": "ab", "protocol": "published"}}, False),
        ):
            database["campaigns"].update_one({"_id": NAME}, {"$set": {"facts": facts}})
            if refused:
                with pytest.raises(StateError, match=r"has no test part; .*split: \{test: 0.2\}"):
                    begin(store, NAME, Wanted())
                assert store.campaigns.get(NAME).unsealed_at is None
            else:
                begin(store, NAME, Wanted(seeds=2))
                assert "Protocol: published" in load(store, NAME).caption[0]

    def test_an_objective_that_cannot(self, store: MongoStore, make_finished: Make) -> None:
        make_finished(objective="tests.objectives.numeric:pools")
        with pytest.raises(ObjectiveError, match="its module has no function 'evaluate'"):
            begin(store, NAME, Wanted())
        assert store.campaigns.get(NAME).unsealed_at is None, "what can be wrong is found before the seal is opened"

    def test_settings_that_it_does_not_know(self, store: MongoStore, make_finished: Make) -> None:
        make_finished()
        with pytest.raises(CampaignError, match="has no evaluation setting 'noize'; did you mean 'noise'"):
            begin(store, NAME, Wanted(settings={"noize": 1}))
        for wrong in ({"seeds": 0}, {"seeds": 10_000}, {"finalists": 0}):
            with pytest.raises(InputError, match="must be"):
                Wanted(**wrong)
        assert store.campaigns.get(NAME).unsealed_at is None

    def test_a_name_that_is_taken(self, store: MongoStore, make_finished: Make, make_campaign: Make) -> None:
        make_finished()
        make_campaign(COMPANION)
        with pytest.raises(CampaignExistsError, match="is another campaign of this store"):
            begin(store, NAME, Wanted())
        assert store.campaigns.get(NAME).unsealed_at is None


def test_the_names_of_metrics_on_the_test_part() -> None:
    known = {"marginal_ll_test": {}, "elbo_test": {}, "reconstruction_test": {}}
    names = ["marginal_ll", "elbo_validation", "elbo_train", "reconstruction_validation"]
    assert [sealed_metric(name, known) for name in names] == [
        "marginal_ll_test", "elbo_test", "elbo_test", "reconstruction_test",
    ]  # fmt: skip
    assert sealed_metric("loss", {}) == "loss_test"
    with pytest.raises(CampaignError, match="returns no metric 'loss_test'"):
        sealed_metric("loss", known)


def test_seeds_of_replicates_are_fixed() -> None:
    assert [replicate_seed(0, r) for r in range(3)] == [replicate_seed(0, r) for r in range(3)]
    assert len({replicate_seed(s, r) for s in range(20) for r in range(20)}) == 400


def test_a_worker_that_is_killed_costs_nothing(
    store: MongoStore, store_uri: str, make_finished: Make, tmp_path: Path
) -> None:
    make_finished()
    begin(store, NAME, Wanted(seeds=2))
    gate = {"AUTOTUNE_TEST_GATE": str(tmp_path / "go"), "AUTOTUNE_HOME": str(tmp_path / "home")}
    worker = worker_command("--campaign", COMPANION, "--slots-per-device", "2", "--allow-objective", "tests.objectives")
    with coordinating(store, COMPANION):
        with process(worker, store_uri, tmp_path / "first", **gate) as first:
            wait_until(lambda: store.trials.counts(COMPANION).get(TrialState.RUNNING) == 2, "two trials run", 60)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        for trial in store.trials.find(COMPANION, [TrialState.RUNNING]):
            run_out(store, trial.number, COMPANION)
        (tmp_path / "go").touch()
        with process(worker, store_uri, tmp_path / "second", **gate):
            wait_until(lambda: store.campaigns.get(COMPANION).state is FINISHED, "end of the benchmark", 90)
    trials = store.trials.find(COMPANION)
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.FINISHED) for n in range(4)]
    assert sum(t.claims for t in trials) == 6
    made = load(store, NAME)
    assert made.table["run"].tolist() == ["default", "tuned"]
    assert made.table["verdict"].tolist() == [None, "better"]
    assert made.table["seeds"].tolist() == [2, 2]
