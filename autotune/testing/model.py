"""The trial store as a dict in memory: property tests compare the real one with it. Leases expire by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autotune.errors import DuplicateError, LeaseLostError
from autotune.lifecycle import KILLED, Event, RetryPolicy, after_attempt, move, sources
from autotune.trial import ACTIVE_STATES, Cause, TrialState


@dataclass(kw_only=True)
class ModelTrial:
    """A trial of the model.

    Attributes:
        state: Where it is in its life.
        holder: Token of its lease, or None.
        expired: Whether that lease ran out.
        score: Its result, or None.
        causes: Per attempt, why it ended without a result, or None.
        tokens: Per attempt, its token.
        ends: Cause -> number of attempts that ended for it since the last retry; ``killed`` counts kills.
        alone: Whether the next attempt has its device for itself.
        ended: Token -> (cause, state that the trial went to) of attempts that their holder ended without a result.
        late: Token -> score that came too late.
        reports: Step -> (attempt, value).
    """

    state: TrialState = TrialState.QUEUED
    holder: str | None = None
    expired: bool = False
    score: float | None = None
    causes: list[str | None] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    alone: bool = False
    ended: dict[str, tuple[Cause, TrialState]] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)
    reports: dict[int, tuple[int, float]] = field(default_factory=dict)

    def ran_out(self, token: str) -> bool:
        """Return whether this token is of the last attempt, whose lease ran out, and nobody has begun since."""
        return self.state is TrialState.QUEUED and self.tokens[-1:] == [token] and token not in self.ended

    def end(self, event: Event, cause: Cause | None = None) -> None:
        """Move by `event`, ending the attempt that runs, if one does."""
        self.state = move(self.state, event)
        if self.holder is not None:
            self.causes[self.tokens.index(self.holder)] = cause
        self.holder, self.expired = None, False


class ModelStore:
    """Trials of one campaign, by number.

    Args:
        policy: How often a trial is tried again.
    """

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.policy = policy or RetryPolicy()
        self.trials: dict[int, ModelTrial] = {}
        self._configurations: set[str] = set()

    def propose(self, number: int, config_hash: str) -> None:
        """Add a trial.

        Raises:
            DuplicateError: If the number or the configuration is there.
        """
        if number in self.trials or config_hash in self._configurations:
            raise DuplicateError("there already")
        self._configurations.add(config_hash)
        self.trials[number] = ModelTrial()

    def claim(self, token: str) -> int | None:
        """Take the queued trial with the lowest number; return it, or None."""
        number = min((n for n, t in self.trials.items() if t.state is TrialState.QUEUED), default=None)
        if number is not None:
            trial = self.trials[number]
            trial.state, trial.holder, trial.expired = move(trial.state, Event.CLAIM), token, False
            trial.tokens.append(token)
            trial.causes.append(None)
        return number

    def renew(self, number: int, token: str) -> bool:
        """Renew a lease; return whether it is held."""
        trial = self.trials[number]
        if trial.holder != token:
            return False
        trial.expired = False
        return True

    def report(self, number: int, token: str, step: int, value: float, *, ran_out: bool = False) -> None:
        """Write a report; with `ran_out` a lease that ran out is enough, while nobody else has begun.

        Raises:
            LeaseLostError: If the lease is another's.
        """
        trial = self.trials[number]
        if not (ran_out and trial.ran_out(token)):
            trial = self._held(number, token)
        trial.reports[step] = (len(trial.tokens) - 1, value)

    def finish(self, number: int, token: str, score: float) -> None:
        """Write a result; repeating it does nothing.

        Raises:
            LeaseLostError: If the lease is another's; the score is then kept as late.
        """
        trial = self.trials[number]
        if trial.state is TrialState.FINISHED and trial.tokens[-1] == token:
            return
        if trial.ran_out(token):
            trial.end(Event.DELIVER)
            trial.causes[-1] = None
        else:
            if trial.holder != token:
                trial.late[token] = score
            self._held(number, token).end(Event.FINISH)
        trial.score = score

    def end_attempt(self, number: int, token: str, cause: Cause, *, killed: bool = False) -> TrialState:
        """End an attempt without a result; return the state that the trial went to. Repeating it does nothing.

        Raises:
            LeaseLostError: If the lease is another's.
        """
        before = self.trials[number].ended.get(token)
        if before is not None and before[0] is cause:
            return before[1]
        trial = self._held(number, token)
        trial.end(after_attempt(cause, ends=trial.ends, process_killed=killed, policy=self.policy), cause)
        trial.ended[token] = (cause, trial.state)
        trial.alone = trial.alone or cause is Cause.OUT_OF_MEMORY
        for key in [str(cause), *([KILLED] if killed else [])]:
            trial.ends[key] = trial.ends.get(key, 0) + 1
        return trial.state

    def pause(self, number: int, token: str) -> None:
        """End an attempt whose trial waits to be promoted; repeating it does nothing.

        Raises:
            LeaseLostError: If the lease is another's.
        """
        paused = (Cause.SCHEDULE, TrialState.PAUSED)
        if self.trials[number].ended.get(token) == paused:
            return
        self._held(number, token).end(Event.PAUSE, Cause.SCHEDULE)
        self.trials[number].ended[token] = paused

    def promote(self, number: int) -> bool:
        """Queue a paused trial; return whether it was paused."""
        return self._from_outside(number, Event.PROMOTE)

    def prune(self, number: int) -> bool:
        """End a paused trial; return whether it was paused."""
        return self.trials[number].state is TrialState.PAUSED and self._from_outside(number, Event.PRUNE)

    def retry(self, numbers: Sequence[int]) -> list[int]:
        """Queue failed and cancelled trials again with a clean record; return their numbers."""
        done = [n for n in numbers if self._from_outside(n, Event.RETRY)]
        for number in done:
            self.trials[number].ends, self.trials[number].alone = {}, False
        return done

    def _from_outside(self, number: int, event: Event) -> bool:
        trial = self.trials[number]
        if str(trial.state) not in sources(event):
            return False
        trial.end(event)
        return True

    def expire(self, number: int) -> None:
        """Let the lease of a running trial run out."""
        self.trials[number].expired = True

    def reap(self) -> list[int]:
        """Give back the trials whose lease ran out; return their numbers."""
        lost = sorted(n for n, t in self.trials.items() if t.holder is not None and t.expired)
        for number in lost:
            trial = self.trials[number]
            trial.end(Event.RELEASE, Cause.LOST)
            trial.ends[Cause.LOST] = trial.ends.get(Cause.LOST, 0) + 1
        return lost

    def cancel(self) -> int:
        """Cancel all that has not ended; return how many."""
        active = [t for t in self.trials.values() if t.state in ACTIVE_STATES]
        for trial in active:
            trial.end(Event.CANCEL, Cause.STOPPED)
        return len(active)

    def _held(self, number: int, token: str) -> ModelTrial:
        trial = self.trials[number]
        if trial.holder != token:
            raise LeaseLostError("another's")
        return trial
