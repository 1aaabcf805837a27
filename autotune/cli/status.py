"""``autotune status``: how far a campaign is, who works on it, and why nothing moves if nothing moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import echo_json, echo_table, format_option, store_option
from autotune.cli.output import show as shown
from autotune.trial import CampaignState, Trial, TrialState

if TYPE_CHECKING:
    from autotune.store.base import CampaignRecord, WorkerRecord
    from autotune.store.mongo import MongoStore

MANY_CLAIMS = 4


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What there is to see of a campaign.

    Attributes:
        record: The campaign.
        counts: Number of trials in each state.
        leader: The coordinator that leads, or None.
        live: Workers heard of lately that may serve it, those that refuse it too.
        silent: Workers that may serve it and were not heard of lately.
        busy: Worker -> number of trials it runs, of all campaigns.
        active: Its trials that have not ended.
        overdue: Numbers of its running trials whose lease ran out.
    """

    record: CampaignRecord
    counts: Mapping[TrialState, int]
    leader: str | None
    live: Sequence[WorkerRecord]
    silent: Sequence[WorkerRecord] = ()
    busy: Mapping[str, int]
    active: Sequence[Trial] = ()
    overdue: Sequence[int] = ()


def reasons(seen: Situation) -> list[str]:
    """Return why a campaign does not move, or moves slowly, and what to do; most important first. Pure."""
    record = seen.record
    if record.state is CampaignState.PAUSED:
        return [f"it is paused; go on with: autotune resume {record.name}"]
    if record.state is not CampaignState.RUNNING:
        return []
    found = []
    if seen.leader is None:
        found.append(f"no coordinator leads it; start one: autotune coordinator {record.name} (or autotune resume)")
    serving = [w for w in seen.live if record.name not in w.refusals]
    found += [f"{w.id} refuses it: {w.refusals[record.name]}" for w in seen.live if record.name in w.refusals]
    if not serving:
        found.append(f"no worker serves it; start one: autotune worker --campaign {record.name}")
    found += [f"{w.id} was not heard of since {shown(w.seen_at)}: its host or its connection is gone, or it was killed"
              for w in seen.silent]  # fmt: skip
    return found + _about_trials(seen, serving)


def _about_trials(seen: Situation, serving: Sequence[WorkerRecord]) -> list[str]:
    found = []
    running, queued = seen.counts.get(TrialState.RUNNING, 0), seen.counts.get(TrialState.QUEUED, 0)
    if seen.overdue:
        numbers = ", ".join(map(str, seen.overdue))
        found.append(f"the lease of trial {numbers} ran out; the coordinator gives it back within seconds")
    free = sum(max(0, w.slots - seen.busy.get(w.id, 0)) for w in serving)
    if serving and not free and not running:
        found.append("all slots of its workers are busy with other campaigns; start another worker, or wait")
    elif serving and not running and queued:
        found.append("trials are queued and slots are free: the workers load the objective, or are between trials")
    elif serving and not running and seen.leader is not None and not found:
        found.append("nothing runs at this moment: the coordinator is about to propose")
    alone = [t.number for t in seen.active if t.alone and t.state is TrialState.QUEUED]
    if alone:
        found.append(f"trial {', '.join(map(str, alone))} ran out of memory and waits for a device of its own")
    for trial in seen.active:
        if trial.claims >= MANY_CLAIMS:
            ends = ", ".join(f"{cause} {count}" for cause, count in sorted(trial.ends.items()))
            found.append(f"trial {trial.number} was tried {trial.claims} times ({ends}); "
                         f"see: autotune show {trial.campaign} {trial.number}")  # fmt: skip
    return found


@click.command()
@click.argument("name")
@click.option("--timing", is_flag=True, help="Show where the time of its finished trials went instead.")
@format_option("table", "json")
@store_option
def status(name: str, timing: bool, format_: str, store_uri: str | None) -> None:
    """Show how far campaign NAME is, who works on it, and why nothing moves if nothing moves."""
    from autotune.store.mongo import open_store

    with open_store(store_uri) as store:
        if timing:
            _show_timing(store, name, format_)
            return
        found = _status(store, name)
    if format_ == "json":
        echo_json(found)
        return
    workers, why = found.pop("workers"), found.pop("reasons")
    found.pop("hint")
    for key, value in found.items():
        if key == "schedule" and value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {shown(v)}" for k, v in value.items()) or "-"
        click.echo(f"{key}: {shown(value)}")
    for reason in why:
        click.echo(f"note: {reason}")
    click.echo(f"workers: {len(workers)}")
    if workers:
        columns = ["id", "slots", "running", "devices", "seen_at"]
        echo_table(columns, [[w[c] if c != "devices" else ", ".join(w[c]) for c in columns] for w in workers])


def _show_timing(store: MongoStore, name: str, format_: str) -> None:
    """Print the phases of the finished trials."""
    from autotune.report.timing import PHASES, phases

    store.campaigns.get(name)
    found = phases(store.trials.find(name))
    if format_ == "json":
        echo_json([asdict(phase) for phase in found])
    elif not found:
        click.echo(f"no trial of '{name}' has finished yet")
    else:
        shares = [None if p.share is None else f"{p.share:.1%}" for p in found]
        rows = [
            [p.phase, p.median_s, p.p95_s, p.total_s, share, PHASES[p.phase]]
            for p, share in zip(found, shares, strict=True)
        ]
        echo_table(["phase", "median s", "p95 s", "total s", "share", "what"], rows)


def _status(store: MongoStore, name: str) -> dict[str, Any]:
    seen = look(store, name)
    record = seen.record
    best = store.trials.best(name, record.metric["mode"])
    why = reasons(seen)
    return {
        "name": name,
        "state": str(record.state),
        "message": record.message,
        "objective": record.spec.get("objective"),
        "metric": dict(record.metric),
        "trials": {str(s): n for s, n in sorted(seen.counts.items())},
        "max_trials": record.max_trials,
        "schedule": _waiting(store, seen),
        "hours": _hours(store, record),
        "best": None if best is None else {"number": best.number, "score": best.score},
        "coordinator": seen.leader,
        "hint": why[0] if why else "",
        "reasons": why,
        "created_at": record.created_at,
        "ended_at": record.ended_at,
        "workers": [
            {"id": w.id, "host": w.host, "slots": w.slots, "running": seen.busy.get(w.id, 0),
             "devices": list(w.devices), "versions": dict(w.versions), "refusal": w.refusals.get(name),
             "seen_at": w.seen_at}
            for w in seen.live
        ],
    }  # fmt: skip


def _waiting(store: MongoStore, seen: Situation) -> str | None:
    """Return what the schedule waits for, or None; all trials are read only where one is paused."""
    from autotune.cli.schedule import waiting

    paused = any(t.state is TrialState.PAUSED for t in seen.active)
    return waiting(store, seen.record) if paused and seen.record.state is CampaignState.RUNNING else None


def _hours(store: MongoStore, record: CampaignRecord) -> dict[str, float | None]:
    from autotune.planning import device_use

    hours: dict[str, float | None] = {"running": round(record.used_s / 3600, 4)}
    if record.max_hours is not None:
        hours["max_hours"] = record.max_hours
    if record.max_device_hours is not None and record.read_at is not None:
        used_s, _ = device_use(store.trials.heads(record.name), record.read_at)
        hours |= {"device": round(used_s / 3600, 4), "max_device_hours": record.max_device_hours}
    return hours


def look(store: MongoStore, name: str) -> Situation:
    """Read what there is to see of a campaign.

    Raises:
        NotFoundError: If there is no such campaign.
    """
    record = store.campaigns.get(name)
    live = store.workers.live(name)
    return Situation(
        record=record,
        counts=store.trials.counts(name),
        leader=store.leaders.leader(name),
        live=live,
        silent=store.workers.silent(name),
        busy=store.trials.running_by_owner([w.id for w in live]),
        active=store.trials.heads(name, states=[TrialState.QUEUED, TrialState.RUNNING, TrialState.PAUSED]),
        overdue=store.trials.overdue(name),
    )
