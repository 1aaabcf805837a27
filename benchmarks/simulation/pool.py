"""A simulated pool of slots: an event queue instead of a clock, `Schedule.actions` for the decisions, as in live code.

A trial goes as `workers` and the store let it: it trains to its rung, pauses there, is queued again when promoted, goes
back to its last checkpoint when its worker is lost, and fails for good where its training fails.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autotune.schedule import Action, Curve, Member, Promote, Propose, Schedule, Verdict
from autotune.schedule.median import MedianSchedule
from autotune.trial import TrialState
from benchmarks.simulation.curves import Faults, Training

LEASE_S = 30.0
_S = TrialState


@dataclass(kw_only=True)
class Outcome:
    """What a simulated campaign did.

    Attributes:
        members: The trials at the end.
        log: All actions in order.
        epochs: Epochs trained, those included that were lost.
        lost_epochs: Epochs that were trained again.
        busy_s: Slot seconds of training.
        down_s: Slot seconds between the loss of a worker and the end of its lease.
        idle_work_s: Slot seconds without training while work existed (see `Pool`).
        idle_tail_s: Slot seconds without training, nothing being left to begin.
        idle_waiting_s: The part of them in which trials were paused that were promoted later: what an oracle that knew
            the winners beforehand would have used.
        span_s: From the start to the end of the last trial.
        last_proposal_s: When the last trial began to exist.
        found: (epochs spent, best loss of a finished trial) at each improvement.
        decisions: How often the schedule was asked.
        lost: Attempts that were lost.
    """

    members: list[Member] = field(default_factory=list)
    log: list[Action] = field(default_factory=list)
    epochs: int = 0
    lost_epochs: int = 0
    busy_s: float = 0.0
    down_s: float = 0.0
    idle_work_s: float = 0.0
    idle_tail_s: float = 0.0
    idle_waiting_s: float = 0.0
    span_s: float = 0.0
    last_proposal_s: float = 0.0
    found: list[tuple[int, float]] = field(default_factory=list)
    decisions: int = 0
    lost: int = 0


class Pool:
    """Runs one campaign.

    Work exists for as many idle slots as trials may still be proposed or are queued, and as the schedule would promote
    if it were asked: in each case until `decision_s` later a training begins. All other idle time is the tail's.
    """

    def __init__(
        self,
        schedule: Schedule,
        trainings: Sequence[Training],
        *,
        slots: int,
        faults: Faults,
        seed: int = 0,
        decision_s: float = 0.05,
    ) -> None:
        """Prepare a campaign of ``len(trainings)`` trials.

        Args:
            schedule: Who decides.
            trainings: What happens to trial 0, 1, ...
            slots: Number of slots.
            faults: How many attempts are lost; the rest is in the trainings.
            seed: Seed of that.
            decision_s: Time from the end of an attempt to the begin of what follows it.
        """
        self._schedule, self._trainings, self._slots = schedule, trainings, slots
        self._lost_share, self._decision_s = faults.lost, decision_s
        self._rng = np.random.default_rng([seed, 4])
        self._stepwise = isinstance(schedule, MedianSchedule)
        self._outcome = Outcome()
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0
        self._now_s = 0.0
        self._occupied = self._down = 0
        self._queue: list[int] = []
        self._targets: list[int] = []
        self._done: list[int] = []  # epochs that each trial keeps: its last checkpoint
        self._curves: dict[int, Curve] = {}
        self._deciding = False
        self._paused_s: dict[int, float] = {}
        self._waits: list[tuple[float, float]] = []  # from a pause to the promotion
        self._tail: list[tuple[float, float, int]] = []  # from, to, idle slots

    def run(self) -> Outcome:
        """Run it to its end."""
        self._wake()
        while self._events:
            at_s, _, kind, number, epoch = heapq.heappop(self._events)
            self._advance(at_s)
            if kind == "decide":
                self._decide()
            else:
                getattr(self, f"_{kind}")(number, epoch)
                self._wake()
        self._outcome.span_s = self._now_s
        self._outcome.idle_waiting_s = idle_while_waiting(self._tail, self._waits)
        return self._outcome

    @property
    def _remaining(self) -> int:
        return len(self._trainings) - len(self._outcome.members)

    def _push(self, after_s: float, kind: str, number: int = -1, epoch: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now_s + after_s, self._count, kind, number, epoch))

    def _wake(self) -> None:
        if not self._deciding:
            self._deciding = True
            self._push(self._decision_s, "decide")

    def _advance(self, to_s: float) -> None:
        passed_s = to_s - self._now_s
        idle = self._slots - self._occupied
        self._outcome.busy_s += (self._occupied - self._down) * passed_s
        self._outcome.down_s += self._down * passed_s
        wanted = min(idle, self._remaining + len(self._queue))
        self._outcome.idle_work_s += wanted * passed_s
        if wanted < idle:
            self._outcome.idle_tail_s += (idle - wanted) * passed_s
            self._tail.append((self._now_s, to_s, idle - wanted))
        self._now_s = to_s

    def _decide(self) -> None:
        out, self._deciding = self._outcome, False
        idle, before = self._slots - self._occupied, self._remaining
        actions = self._schedule.actions(out.members, idle=idle, remaining=before)
        out.decisions += 1
        out.log += actions
        for action in actions:
            self._do(action)
        self._count_as_work(max(0, sum(isinstance(a, Propose | Promote) for a in actions) - before))
        while self._queue and self._occupied < self._slots:
            self._begin(heapq.heappop(self._queue))

    def _count_as_work(self, begun: int) -> None:
        """Move the wait for this decision from the tail to where it belongs, for the slots that it gives work."""
        k = len(self._tail)
        while begun and k and self._tail[k - 1][0] >= self._now_s - self._decision_s - 1e-9:
            k -= 1
            first_s, last_s, idle = self._tail[k]
            used = min(begun, idle)
            self._tail[k] = (first_s, last_s, idle - used)
            self._outcome.idle_work_s += used * (last_s - first_s)
            self._outcome.idle_tail_s -= used * (last_s - first_s)

    def _do(self, action: Action) -> None:
        out = self._outcome
        if isinstance(action, Propose):
            number = len(out.members)
            out.members.append(Member(number=number, state=_S.QUEUED, bracket=action.bracket, rung=action.rung))
            self._targets.append(self._epochs(number, action.resource))
            self._done.append(0)
            heapq.heappush(self._queue, number)
            out.last_proposal_s = self._now_s
        elif isinstance(action, Promote):
            self._set(action.number, state=_S.QUEUED, rung=action.rung)
            self._waits.append((self._paused_s[action.number], self._now_s - self._decision_s))
            self._targets[action.number] = self._epochs(action.number, action.resource)
            heapq.heappush(self._queue, action.number)
        else:
            self._set(action.number, state=_S.PRUNED)

    def _epochs(self, number: int, resource: int | None) -> int:
        whole = len(self._trainings[number].losses)
        return whole if resource is None else min(whole, resource)

    def _set(self, number: int, **fields: object) -> None:
        self._outcome.members[number] = replace(self._outcome.members[number], **fields)  # type: ignore[arg-type]

    def _begin(self, number: int) -> None:
        self._occupied += 1
        self._set(number, state=_S.RUNNING)
        training, first, last = self._trainings[number], self._done[number], self._targets[number]
        epoch, kind = (first + 1, "step") if self._stepwise else (last, "end")
        if training.fails_at is not None and first < training.fails_at <= epoch:
            epoch, kind = training.fails_at, "fail"
        if self._lost_share and self._rng.random() < self._lost_share:
            epoch, kind = first + int(self._rng.integers(0, epoch - first)), "lose"
        self._push((epoch - first) * training.epoch_s, kind, number, epoch)

    def _free(self, number: int, epoch: int) -> None:
        self._occupied -= 1
        self._outcome.epochs += epoch - self._done[number]

    def _end(self, number: int, epoch: int) -> None:
        self._free(number, epoch)
        self._done[number] = epoch
        member, training = self._outcome.members[number], self._trainings[number]
        loss = training.losses[epoch - 1]
        losses = (*member.losses[: member.rung], loss)
        whole = epoch == len(training.losses)
        if whole and not math.isfinite(loss):
            self._set(number, state=_S.FAILED, losses=losses)  # as a training that returns no number
            return
        self._set(number, state=_S.FINISHED if whole else _S.PAUSED, losses=losses)
        self._paused_s[number] = self._now_s
        found = self._outcome.found
        if whole and (not found or loss < found[-1][1]):
            found.append((self._outcome.epochs, loss))

    def _step(self, number: int, epoch: int) -> None:
        """One epoch of a trial that is judged after each."""
        training = self._trainings[number]
        self._curves[number] = Curve(steps=tuple(range(1, epoch + 1)), losses=tuple(training.losses[:epoch]))
        others = [c for n, c in self._curves.items() if n != number]
        if epoch == self._targets[number]:
            self._end(number, epoch)
        elif training.fails_at == epoch + 1:
            self._push(training.epoch_s, "fail", number, epoch + 1)
        elif self._schedule.verdict(self._curves[number], others) is Verdict.STOP:
            self._free(number, epoch)
            self._done[number] = epoch
            self._set(number, state=_S.PRUNED)
        else:
            self._push(training.epoch_s, "step", number, epoch + 1)

    def _fail(self, number: int, epoch: int) -> None:
        self._free(number, epoch)
        self._set(number, state=_S.FAILED)

    def _lose(self, number: int, epoch: int) -> None:
        self._outcome.lost += 1
        self._outcome.epochs += epoch - self._done[number]
        self._outcome.lost_epochs += epoch - self._done[number]
        self._down += 1
        self._push(LEASE_S, "reap", number, epoch)

    def _reap(self, number: int, epoch: int) -> None:
        self._down -= 1
        self._occupied -= 1
        self._set(number, state=_S.QUEUED)
        heapq.heappush(self._queue, number)


def idle_while_waiting(tail: Sequence[tuple[float, float, int]], waits: Sequence[tuple[float, float]]) -> float:
    """Return the slot seconds in which slots were idle while trials waited for their promotion.

    Args:
        tail: (from, to, idle slots), one after the other.
        waits: (from, to) of each trial that waited.
    """
    if not tail:
        return 0.0
    start_s = tail[0][0]
    late = [(max(a, start_s), b) for a, b in waits if b > max(a, start_s)]
    start_s = tail[0][0]
    late = [(max(a, start_s), b) for a, b in waits if b > max(a, start_s)]
    changes = sorted([(a, 1) for a, _ in late] + [(b, -1) for _, b in late])
    total_s, waiting, k = 0.0, 0, 0
    for first_s, last_s, idle in tail:
        at_s = first_s
        while k < len(changes) and changes[k][0] <= last_s:
            total_s += min(idle, waiting) * max(0.0, changes[k][0] - at_s)
            at_s, waiting, k = max(at_s, changes[k][0]), waiting + changes[k][1], k + 1
        total_s += min(idle, waiting) * (last_s - at_s)
    return total_s
