"""The entry point of the command line: finds commands when they are used, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from autotune.cli import exit_codes
from autotune.errors import AutotuneError

_COMMANDS = {
    "launch": ("autotune.cli.launch:launch", "Run a campaign file: start workers, follow it, print the tables."),
    "resume": ("autotune.cli.launch:resume", "Go on with a paused campaign, to exactly its budget."),
    "worker": ("workers.cli:worker", "Pull trials from the store and train them; joins running campaigns."),
    "coordinator": ("autotune.cli.control:coordinator", "Propose trials for a campaign until it ends."),
    "pause": ("autotune.cli.steering:pause", "Start no more trials of a campaign; running ones go on."),
    "cancel": ("autotune.cli.steering:cancel", "End a campaign and its trials for good."),
    "extend": ("autotune.cli.steering:extend", "Give a campaign a larger budget; a finished one goes on."),
    "enqueue": ("autotune.cli.steering:enqueue", "Queue a trial with parameters of your choice."),
    "retry": ("autotune.cli.steering:retry", "Queue failed and cancelled trials again."),
    "campaigns": ("autotune.cli.query:campaigns", "List campaigns."),
    "plan": ("autotune.cli.schedule:plan", "Show the trials and epochs that a campaign file will spend."),
    "rungs": ("autotune.cli.schedule:rungs", "Show the brackets and rungs of a campaign: who waits for whom."),
    "status": ("autotune.cli.status:status", "Show how far a campaign is and who works on it."),
    "trials": ("autotune.cli.query:trials", "List, filter and sort the trials of a campaign."),
    "show": ("autotune.cli.query:show", "Show one trial whole, with its curve and its failures."),
    "events": ("autotune.cli.steering:events", "List what was done to a campaign, by whom and when."),
    "replay": ("workers.replay_cli:replay", "Run a finished trial again and compare the scores."),
    "benchmark": ("autotune.cli.benchmark:benchmark", "Score default and tuned configuration on the sealed test part."),
    "best": ("workers.best_cli:best", "Print the best configuration, or save its model."),
    "report": ("autotune.cli.report:report", "Print the tables of a campaign; write them with figures and a page."),
    "store": ("autotune.cli.store:store", "The store: up, down, status, check, upgrade, users, backup, restore."),
    "data": ("workers.data_cli:data", "Data files in the store: push, list, remove; simulated data."),
}
"""Command -> (where it is, one line of help). ``worker`` and ``data`` live in the package of the workers."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; an unknown one is an error that names the nearest."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from autotune.errors import nearest

            raise click.UsageError(f"there is no command '{args[0]}'{nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="autotune", prog_name="autotune")
def cli() -> None:
    """Distributed hyperparameter search for deep models in biology and medicine.

    A campaign is one search: an objective, data, a space, a search algorithm and a budget, in one YAML file.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; never a traceback unless ``AUTOTUNE_DEBUG=1``."""
    try:
        code = cli.main(arguments, prog_name="autotune", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", exit_codes.INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted", exit_codes.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AutotuneError as error:
        _debug()
        _fail(str(error), exit_codes.exit_code(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.OK)
    except Exception as error:  # noqa: BLE001 - the last edge: nobody is shown a traceback who did not ask
        _debug()
        _fail(f"{type(error).__name__}: {error} (AUTOTUNE_DEBUG=1 shows where)", exit_codes.FAILURE)
    sys.exit(code if isinstance(code, int) else exit_codes.OK)


def run_command(name: str) -> NoReturn:
    """Run one command with the arguments of this process."""
    main([name, *sys.argv[1:]])


def _debug() -> None:
    if os.environ.get("AUTOTUNE_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"autotune: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
