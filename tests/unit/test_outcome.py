"""What a training's end means: results, causes of failures, causes of death; and what `Trial.report` takes."""

from __future__ import annotations

import decimal
import fractions
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.errors import DataError, ObjectiveError
from autotune.trial import Cause
from workers.ending import cause_of_death, kernel_oom_kills
from workers.outcome import MAX_FACTS_CHARS, as_failure, as_result
from workers.reporting import Metric, Result, Trial, TrialStopped


class Scalar:
    """A tensor of no dimensions, or of one."""

    def __init__(self, *values: float) -> None:
        self._values = values

    def item(self) -> float:
        """Return the only value."""
        if len(self._values) != 1:
            raise RuntimeError("a Tensor with 3 elements cannot be converted to Scalar")
        return self._values[0]


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (1, 1.0), (1.5, 1.5), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (np.array(2.5), 2.5), (np.array([2.5]), 2.5),
        (Scalar(4.0), 4.0), (fractions.Fraction(1, 4), 0.25), (-0.0, 0.0),
        ({"loss": 1}, 1.0), ({"loss": np.float64(2)}, 2.0), ({"loss": Scalar(3.0), "other": 1}, 3.0),
        (Result(metrics={"loss": Metric(value=0.25)}), 0.25),
        (Result(metrics={"loss": Metric(value=np.float32(0.25))}), 0.25),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_score(returned: Any, score: float) -> None:
    result = as_result(returned, "loss")
    assert result.score == score
    assert type(result.score) is float
    assert type(result.metrics["loss"]["value"]) is float


def test_mapping_is_split_in_metrics_and_facts() -> None:
    returned = {
        "loss": 1,
        "auc": np.float32(0.5),
        "model": "vae",
        "good": True,
        "sizes": [1, {"a.b": None}],
        "none": None,
    }
    result = as_result(returned, "loss")
    assert result.metrics == {"loss": {"value": 1.0}, "auc": {"value": 0.5}}
    assert result.facts == {"model": "vae", "good": True, "sizes": [1, {"a.b": None}], "none": None}


def test_counts_of_a_mapping_are_facts() -> None:
    result = as_result({"n_bad": 3, "n_epochs": 12, "loss": 1.0}, "n_bad")
    assert result.score == 3.0
    assert set(result.metrics) == {"n_bad", "loss"}
    assert result.facts == {"n_epochs": 12}


def test_result_says_what_its_metrics_are() -> None:
    metric = Metric(value=1.0, se=np.float64(0.1), split="validation", draws=10, n=np.int64(20))  # type: ignore[arg-type]
    result = as_result(Result(metrics={"loss": metric}, facts={"n_params": np.int32(7)}), "loss")
    assert result.metrics == {"loss": {"value": 1.0, "se": 0.1, "split": "validation", "draws": 10, "n": 20}}
    assert result.facts == {"n_params": 7}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: {"loss": v}, lambda v: Result(metrics={"loss": Metric(value=v)})]
)
def test_score_that_is_not_finite(value: float, wrap: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is -?(nan|inf)") as caught:
        as_result(wrap(value), "loss")
    assert as_failure(caught.value).cause is Cause.NOT_A_NUMBER


def test_another_metric_may_be_nan() -> None:
    assert as_result({"loss": 1.0, "auc": float("nan")}, "loss").score == 1.0


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "NoneType; return a number, or a dict with 'loss'"),
        ("1.0", "not str"),
        (True, "not bool"),
        (np.bool_(True), "not bool"),
        (1j, "not complex"),
        (decimal.Decimal(1), "not Decimal"),
        (np.zeros(3), "not an array"),
        (Scalar(1.0, 2.0), "not an array"),
        ([1.0], "not list"),
        ({}, "no metric 'loss'"),
        ({"los": 1.0}, "no metric 'loss'; did you mean 'los'"),
        ({"loss": True}, "returned True as 'loss'; it must be a number"),
        ({"loss": None}, "returned None as 'loss'; it must be a number"),
        ({"loss": np.zeros(3)}, "array as 'loss'"),
        ({"loss": 1.0, "f": {1, 2}}, "a set as 'f'"),
        ({"loss": 1.0, "f": object()}, "an? object as 'f'"),
        ({"loss": 1.0, "f": 2**63}, "64 bits as 'f'"),
        ({"loss": 1.0, "f": [{"g": -(2**64)}]}, "64 bits as 'f'"),
        ({"loss": 1.0, "f": {"$set": 1}}, r"'\$set' in 'f'"),
        ({"loss": 1.0, "f": "x" * MAX_FACTS_CHARS}, "characters of facts"),
        ({"loss": 1.0, "a.b": 1}, "'a.b' is not usable"),
        ({"loss": 1.0, "$a": "b"}, r"'\$a' is not usable"),
        ({"loss": 1.0, "": 1}, "'' is not usable"),
        ({"loss": 1.0, "a\0": 1}, "not usable"),
        (Result(metrics={}), "no metric 'loss'"),
        (Result(metrics={"loss": 1.0}), "wrap it in Metric"),  # type: ignore[dict-item]
        (Result(metrics={"loss": Metric(value="1")}), "loss.value must be a number, not str"),  # type: ignore[arg-type]
        (Result(metrics={"loss": Metric(value=None)}), "no value for 'loss'"),  # type: ignore[arg-type]
        (Result(metrics={"loss": Metric(value=1.0, se="x")}), "loss.se must be a number"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_unusable_results(returned: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        as_result(returned, "loss")


def test_deeply_nested_fact_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ObjectiveError, match="a list as 'f'"):
        as_result({"loss": 1.0, "f": nested}, "loss")


def test_texts_that_utf8_cannot_hold_are_replaced() -> None:
    assert as_result({"loss": 1.0, "file": "a\udcff"}, "loss").facts == {"file": "a?"}
    failure = as_failure(OSError("a\udcff"))
    assert failure.message == "OSError: a?"
    assert failure.traceback is not None
    failure.traceback.encode()


OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (OutOfMemoryError("whatever"), Cause.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), Cause.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), Cause.OUT_OF_MEMORY),
        (OSError(12, "Cannot allocate memory"), Cause.OUT_OF_MEMORY),
        (np._core._exceptions._ArrayMemoryError((10,), np.dtype(float)), Cause.OUT_OF_MEMORY),  # type: ignore[attr-defined]
        (ValueError("the memory of it ran out of memory"), Cause.ERROR),
        (FloatingPointError("overflow"), Cause.NOT_A_NUMBER),
        (TrialStopped("the lease is gone"), Cause.STOPPED),
        (TimeoutError("too slow"), Cause.TIMEOUT),
        (SystemExit(3), Cause.ERROR),
        (KeyboardInterrupt(), Cause.ERROR),
        (GeneratorExit(), Cause.ERROR),
        (ZeroDivisionError("division by zero"), Cause.ERROR),
    ],
)
def test_cause_of_an_exception(error: BaseException, cause: Cause) -> None:
    assert as_failure(error).cause is cause


def test_message_and_traceback() -> None:
    def inner() -> None:
        raise ValueError("one\n  two")

    with pytest.raises(ValueError, match="one") as caught:
        inner()
    failure = as_failure(caught.value)
    assert failure.message == "ValueError: one two"
    assert failure.traceback is not None
    assert "in inner" in failure.traceback
    assert as_failure(SystemExit(3)).message == "SystemExit: 3"
    assert as_failure(KeyError()).message == "KeyError"
    assert as_failure(DataError("no file x")).message == "no file x"


def test_huge_messages_are_shortened() -> None:
    failure = as_failure(ValueError("x" * 5_000_000))
    assert len(failure.message) < 3_000
    assert len(failure.traceback or "") < 200_000


@pytest.mark.parametrize(
    ("status", "oom", "cause", "text", "killed"),
    [
        (None, False, Cause.LOST, "fork server", True),
        (0, False, Cause.ERROR, "code 0 without a result", False),
        (9, False, Cause.ERROR, "code 9", False),
        (-signal.SIGKILL, False, Cause.LOST, "SIGKILL", True),
        (-signal.SIGKILL, True, Cause.OUT_OF_MEMORY, "out of memory", False),
        (-signal.SIGTERM, True, Cause.LOST, "SIGTERM", True),
        (-signal.SIGHUP, False, Cause.LOST, "SIGHUP", True),
        (-signal.SIGSEGV, False, Cause.ERROR, "SIGSEGV", False),
        (-signal.SIGABRT, False, Cause.ERROR, "SIGABRT", False),
        (-64, False, Cause.ERROR, "SIGRTMAX", False),
        (-99, False, Cause.ERROR, "signal 99", False),
    ],
)
def test_cause_of_death(status: int | None, oom: bool, cause: Cause, text: str, killed: bool) -> None:
    got_cause, message, got_killed = cause_of_death(status, oom_killed=oom)
    assert (got_cause, got_killed) == (cause, killed)
    assert text in message


def test_kernel_oom_kills(tmp_path: Path) -> None:
    file = tmp_path / "vmstat"
    assert kernel_oom_kills(file) == 0
    file.write_text("nr_free_pages 5\n")
    assert kernel_oom_kills(file) == 0
    file.write_text("nr_free_pages 5\noom_kill 17\noom_kill_x 3\n")
    assert kernel_oom_kills(file) == 17


@pytest.fixture
def sent() -> list[tuple[int, Mapping[str, float]]]:
    return []


@pytest.fixture
def trial(sent: list[tuple[int, Mapping[str, float]]]) -> Trial:
    return Trial(params={}, send=lambda step, metrics: sent.append((step, metrics)))


def test_report_sends_plain_numbers(trial: Trial, sent: list[tuple[int, Mapping[str, float]]]) -> None:
    trial.report(0)
    odd: list[Any] = [np.int64(3), np.float32(0.5), Scalar(1.5), np.array([7])]
    trial.report(odd[0], loss=odd[1], n=2, t=odd[2], a=odd[3])
    assert sent == [(0, {}), (3, {"loss": 0.5, "n": 2.0, "t": 1.5, "a": 7.0})]
    assert type(sent[1][0]) is int
    assert {type(v) for v in sent[1][1].values()} == {float}


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", None, 2**63, np.float64(1)])
def test_report_refuses_steps(trial: Trial, step: Any) -> None:
    with pytest.raises(TypeError, match="step must be a non-negative integer"):
        trial.report(step, loss=1.0)


@pytest.mark.parametrize("value", [None, "1", True, np.zeros(2), Scalar(1.0, 2.0), [1.0], 1j])
def test_report_refuses_values(trial: Trial, sent: list[tuple[int, Mapping[str, float]]], value: Any) -> None:
    with pytest.raises(TypeError, match="loss must be a number"):
        trial.report(1, loss=value)
    assert sent == []


@pytest.mark.parametrize("name", ["a.b", "$a", "", "a\nb", "a\0"])
def test_report_refuses_names(trial: Trial, name: str) -> None:
    with pytest.raises(ValueError, match="not usable as a name"):
        trial.report(1, **{name: 1.0})
