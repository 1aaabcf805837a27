"""``autotune benchmark``: open the test part of a finished campaign, and score default and tuned configurations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import exit_codes
from autotune.cli.output import console, echo_frame, echo_json, format_option, store_option
from autotune.errors import InputError
from autotune.trial import CampaignState, TrialState

if TYPE_CHECKING:
    from autotune.local.crew import Crew
    from autotune.report.benchmark import Benchmark
    from autotune.store.mongo import MongoStore

_FLAGS = {"imputation": "imputation", "rate": "imputation_rate", "imputation_protocol": "imputation_protocol"}


@click.command()
@click.argument("name")
@click.option("--seeds", type=int, metavar="N", help="Number of seeds; default: 5.")
@click.option("--finalists", type=int, metavar="K", help="Number of best configurations; default: 1.")
@click.option("--imputation", type=click.Choice(["uniform", "binomial", "none"]), help="How values are corrupted.")
@click.option("--rate", type=float, metavar="R", help="Share of corrupted values; default: 0.1.")
@click.option("--imputation-protocol", type=click.Choice(["honest", "published"]), help="Default: honest.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Another setting of the evaluation; repeatable."
)
@click.option("--workers", default=1, show_default=True, metavar="N", help="Local workers; 0: others do the work.")
@click.option("--devices", default="auto", show_default=True, help="auto, cpu, or GPU numbers: 0,1.")
@click.option("--slots-per-device", default=1, show_default=True, metavar="K", help="Trials at a time per device.")
@click.option("--allow-objective", "allowed", multiple=True, metavar="MODULE", help="As for `autotune resume`.")
@click.option("--allow-mismatch", is_flag=True, help="Let workers differ in package versions or source; recorded.")
@click.option("--detach", is_flag=True, help="Leave coordinator and workers in the background and return.")
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Also write the tables here.")
@format_option("table", "json", "csv", "markdown", "latex")
@store_option
def benchmark(
    name: str, store_uri: str | None, workers: int, devices: str, slots_per_device: int, allow_mismatch: bool,
    detach: bool, out: str | None, format_: str, **given: Any,
) -> int:  # fmt: skip
    """Score the default and the tuned configuration of campaign NAME on its test part, over several seeds.

    NAME must be finished, and never runs again: its test part is opened, once. Running this again goes on with what is
    missing, or prints the table. Ctrl-C gives running trials back.
    """
    from autotune.local.benchmark import begin, load
    from autotune.local.companion import companion_name
    from autotune.local.crew import Crew
    from autotune.store.mongo import open_store

    if detach and out is not None:
        raise InputError("--out does not go with --detach; run the command again later: it prints the table")
    wanted = _wanted(**given)
    with open_store(store_uri) as store:
        crew = Crew(
            store_uri=store.uri, campaign=companion_name(name), workers=workers, devices=devices,
            slots_per_device=slots_per_device, allow_mismatch=allow_mismatch, allowed=tuple(given["allowed"]),
            trusted=store.is_local, detached=detach,
        )  # fmt: skip
        record = begin(store, name, wanted)
        click.echo(f"campaign '{record.name}' in the store at {store.address}: {record.state}", err=True)
        if detach:
            from autotune.cli.launch import detached

            return detached(store, crew, f"; its table: autotune benchmark {name}")
        if not _follow(store, crew):
            click.echo(f"interrupted; go on with: autotune benchmark {name}", err=True)
            return exit_codes.INTERRUPTED
        made = load(store, name)
    _print(made, format_)
    if out is not None:
        for path in made.write(Path(out)):
            click.echo(f"wrote {path}", err=True)
    return _exit_code(made)


def _wanted(
    *, seeds: int | None, finalists: int | None, overrides: tuple[str, ...], allowed: tuple[str, ...], **flags: Any
) -> Any:
    from autotune.campaign import apply_override
    from autotune.local.benchmark import Wanted

    settings: dict[str, Any] = {}
    for override in overrides:
        apply_override(settings, override)
    settings |= {_FLAGS[flag]: value for flag, value in flags.items() if value is not None}
    if settings.get("imputation") == "none":
        settings["imputation"] = None
    return Wanted(seeds=seeds, finalists=finalists, settings=settings, allowed=allowed)


def _follow(store: MongoStore, crew: Crew) -> bool:
    """Follow the benchmark to its end; return False when it was interrupted."""
    from autotune.cli.progress import ProgressDisplay
    from autotune.local.follow import follow

    try:
        with ProgressDisplay(crew.campaign) as display:
            follow(store, crew, display.update)
    except KeyboardInterrupt:
        return False
    return True


def _print(made: Benchmark, format_: str) -> None:
    match format_:
        case "json":
            echo_json(_record(made))
        case "csv":
            echo_frame(made.table, format_)
        case "markdown":
            click.echo(made.to_markdown(), nl=False)
        case "latex":
            click.echo(made.to_latex(), nl=False)
        case _:
            made.show(console())


def _record(made: Benchmark) -> dict[str, Any]:
    return {
        "campaign": made.parent.name,
        "benchmark": made.companion.name,
        "state": str(made.companion.state),
        "unsealed_at": made.parent.unsealed_at,
        "metric": dict(made.companion.metric),
        "runs": made.table.to_dict("records"),
        "comparisons": made.comparisons.to_dict("records"),
        "configurations": dict((made.companion.evaluation or {}).get("runs", {})),
        "caption": made.caption,
    }


def _exit_code(made: Benchmark) -> int:
    sys.stdout.flush()
    record = made.companion
    if record.state is CampaignState.PAUSED:
        click.echo(f"paused; go on with: autotune benchmark {made.parent.name}", err=True)
        return exit_codes.PAUSED
    failed = sum(t.state in (TrialState.FAILED, TrialState.CANCELLED) for t in made.trials_of_companion)
    if failed:
        text = f"{failed} trials failed or were cancelled; to try them again: autotune retry {record.name} --all"
        click.echo(text, err=True)
    finished = any(t.state is TrialState.FINISHED for t in made.trials_of_companion)
    return exit_codes.OK if record.state is CampaignState.FINISHED and finished else exit_codes.CAMPAIGN_FAILED
