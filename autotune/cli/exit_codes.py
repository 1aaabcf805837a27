"""Exit codes of every command."""

from __future__ import annotations

from autotune.errors import AutotuneError, InputError, NotFoundError, StoreError, StoreUnreachableError, WorkerError

OK = 0
"""Done."""
FAILURE = 1
"""Something failed that the message explains; with AUTOTUNE_DEBUG=1 there is a traceback."""
USAGE = 2
"""What was given is wrong: arguments, campaign file, data, space, a name that is taken."""
NOT_FOUND = 3
"""There is no campaign or trial of that name or number."""
UNREACHABLE = 4
"""The store does not answer."""
STORE = 5
"""The store answers but is not usable as it is; `autotune store check` says more."""
CAMPAIGN_FAILED = 6
"""The campaign ended as failed or cancelled, or none of its trials finished."""
PAUSED = 7
"""Somebody paused the campaign that was followed; `autotune resume NAME` goes on."""
INTERRUPTED = 130
"""Ctrl-C; running trials went back to the store."""


def exit_code(error: AutotuneError) -> int:
    """Return the exit code for an error."""
    match error:
        case NotFoundError():
            return NOT_FOUND
        case InputError():
            return USAGE
        case StoreUnreachableError():
            return UNREACHABLE
        case StoreError():
            return STORE
        case WorkerError():
            return FAILURE
        case _:
            return FAILURE
