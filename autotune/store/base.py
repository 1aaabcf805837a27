"""The contract of a trial store, in prose. `autotune.store.mongo` carries it out on MongoDB.

**Acknowledged means kept.** A method that returns has written with majority write concern, journaled; but for
`Workers.seen`, which is repeated anyway, and the step that `Reports.add` notes beside the reports. A method that raises
`StoreUnreachableError` may or may not have written; calling it again with the same arguments is safe.

**One owner.** Every write to a running trial (`renew`, `report`, `finish`, `fail`, `release`) carries the lease's
token in the filter of the same atomic operation. A writer whose token is no longer the trial's gets
`LeaseLostError`; a result that came that way is kept beside the attempt as its late result, never over the trial's.
One exception saves work without breaking the fence: a result of an attempt whose lease ran out is accepted while the
trial is queued and that attempt is still its last one (`lifecycle.Event.DELIVER`). Nobody else has begun by then; the
moment another attempt begins, the filter of the write does not match any more.

A claim may be repeated with its token when its reply was lost. It returns what the token holds; a trial that has
lost the lease of that token meanwhile is not taken under it again, so that a token stands for one attempt of a trial.

**The store's clock alone judges leases.** No method takes a time from the caller. A lease runs out `duration_s`
after it was given or last renewed, on the clock of the database. Running out changes nothing by itself: the holder
keeps its trial until `reap` gives it back. So a holder that was slow, while nobody else took the trial, still wins.

**Moves are those of `autotune.lifecycle`.** Each write names the states that it expects and says whether it won.
Finished trials never change. Failed and cancelled ones change only when a person retries them.

**Steering leaves traces.** What a person does to a campaign from outside its coordinator (`extend`, `retry`, a trial
proposed by hand) raises the campaign's ``revision``, by which a coordinator knows that trials which had ended may have
changed, and is written down in ``events``.

**Nobody undoes what he has not seen.** A coordinator that tidies up behind a campaign that ended, or ends one, cancels
in the transaction that finds the campaign in the state, and at the revision, that it judged by: what a person queued
meanwhile stays.

**Attempts are bounded.** A trial keeps its last 64 attempts; ``claims`` counts all, ``ends`` counts their causes since
the trial was last retried by a person.

**Numbers and configurations are unique** within a campaign; `propose` raises `DuplicateError` for either, and has
then written nothing. With numbers limited to ``0 .. max_trials - 1`` that makes the budget exact whatever number of
coordinators runs.

**Reports are idempotent** on (trial, step); a report of an earlier attempt never replaces one of a later attempt.

**The seal.** A campaign whose test part was opened (``unsealed_at``, set by `unseal` while it is finished) never runs
again: whatever would let it go on (`extend`, a move to running or paused) has the open seal in the filter of the same
atomic operation and is refused. So no trial is ever chosen by somebody who could have seen a score of the test part.

**No code.** Only plain JSON values go in, and nothing that comes out is evaluated.

Collections (each document has a ``schema_version``; validators and indexes are in `autotune.store.schema`):

``campaigns``  ``_id`` = name; ``state``, ``message``, ``spec`` (the campaign file), ``spec_hash``, ``space``
               (resolved), ``metric``, ``facts`` (of data and split), ``paths``, ``environment`` (versions and hash of
               the objective's source at launch), ``max_trials``, ``max_hours``, ``max_device_hours``, ``revision``,
               ``ran_s`` and ``running_since`` (time spent in state running), ``created_at``, ``ended_at``,
               ``unsealed_at``
``trials``     ``campaign``, ``number``, ``fold``, ``replicate``, ``params``, ``config_hash``, ``state``, ``seed``,
               ``lease`` (``owner``, ``token``, ``duration_s``, ``expires_at``) while it runs, ``attempts`` (each with
               ``token``, ``owner``, ``host``, ``device``, ``share``, ``threads``, ``versions``, ``mismatch``, times,
               ``cause`` ...),
               ``claims``, ``ends``, ``alone``, ``origin``, ``bracket``, ``rung``, ``target``, ``rung_scores``,
               ``checkpoint``, ``score``, ``metrics``, ``facts``, ``proposed_at``,
               ``started_at``, ``ended_at``
``reports``    ``campaign``, ``number``, ``step``, ``attempt``, ``metrics``, ``at``
``workers``    ``_id`` = worker id; ``host``, ``pid``, ``slots``, ``devices``, ``campaigns`` (null: all),
               ``versions``, ``refusals`` (campaign -> why it does not serve it), ``state``, ``seen_at``
``leaders``    ``_id`` = campaign; ``owner``, ``expires_at``: the coordinator that proposes
``events``     audit: ``campaign``, ``at``, ``action``, ``who``, ``detail``
``datasets.files``, ``datasets.chunks``  GridFS: data files by content, unique on ``metadata.sha256``
``artifacts.files``, ``artifacts.chunks``, ``artifacts.pushes``  checkpoints by content
``datasets.pushes``  pushes that have not ended: ``_id`` = hash, ``files_id``, ``touched_at``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from autotune.trial import CampaignState


@dataclass(frozen=True, kw_only=True)
class CampaignRecord:
    """A campaign as the store has it.

    Attributes:
        name: Unique name.
        state: Where it is in its life.
        message: Why it is there, one line, or empty.
        spec: The campaign file as plain values, with defaults filled in.
        spec_hash: Hash of the definition: two launches with the same hash are the same campaign.
        space: The resolved search space as plain values.
        metric: ``{"name": ..., "mode": "min" | "max"}``.
        facts: What was found in the data and the split at launch.
        paths: Folders on the launching machine where the objective's module lies; not part of the definition.
        environment: ``{"versions": {...}, "objective_hash": ...}`` of the launching machine.
        max_trials: The budget in trials.
        max_hours: The budget in hours in which the campaign runs (pauses do not count), or None.
        max_device_hours: The budget in hours of devices, or None.
        revision: Raised by each change of trials that did not come from the campaign's own coordinator.
        used_s: Seconds that it has been in state running, as of the reading.
        read_at: When it was read, on the database's clock.
        created_at: On the database's clock.
        ended_at: On the database's clock, or None.
        unsealed_at: Since when its test part is open, on the database's clock; None: it is sealed.
    """

    name: str
    state: CampaignState = CampaignState.RUNNING
    message: str = ""
    spec: Mapping[str, Any]
    spec_hash: str
    space: Mapping[str, Any]
    metric: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    max_trials: int
    max_hours: float | None = None
    max_device_hours: float | None = None
    revision: int = 0
    used_s: float = field(default=0.0, compare=False)
    read_at: datetime | None = field(default=None, compare=False)
    created_at: datetime | None = None
    ended_at: datetime | None = None
    unsealed_at: datetime | None = None

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """What a benchmark campaign scores (``of``, ``settings``, ``runs``, ...); None for any other campaign."""
        found: Mapping[str, Any] | None = self.spec.get("evaluation")
        return found


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """A worker as the store has it.

    Attributes:
        id: Unique id, host and process in it.
        host: Name of the host.
        pid: Process id of the agent.
        slots: Number of trials it runs at a time.
        devices: What its slots run on.
        campaigns: Names that it serves, or None for all.
        versions: Versions of the packages that matter.
        refusals: Campaign -> why this worker does not serve it.
        state: ``active`` or ``stopped``.
        started_at: On the database's clock.
        seen_at: When it was last heard of.
    """

    id: str
    host: str
    pid: int
    slots: int
    devices: tuple[str, ...] = ()
    campaigns: tuple[str, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    state: str = "active"
    started_at: datetime | None = None
    seen_at: datetime | None = None


class Watch(Protocol):
    """Waits for changes in the store; usable as a context manager."""

    def wait(self, timeout_s: float) -> bool:
        """Return True when something changed since the last call, False after `timeout_s` seconds of quiet."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...
