"""All errors of the service: one tree, split by what the caller does next.

Every message is one line that says what is wrong and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1_500
"""Characters of a message; of longer ones, which repeat what somebody wrote, the middle is left out."""


class AutotuneError(Exception):
    """Root of all errors raised on purpose. Caught once, at the edge of a program."""

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 2 // 3]} [...] {text[-LONGEST // 3 :]}"
        super().__init__(text)


class InputError(AutotuneError):
    """What the user wrote is wrong: correct it and run the command again."""


class CampaignError(InputError):
    """The campaign file is wrong."""


class SpaceError(InputError):
    """The search space, or a configuration in it, is wrong."""


class DataError(InputError):
    """The data file, or what the campaign asks of it, is wrong."""


class ObjectiveError(InputError):
    """The objective is unknown, cannot be imported, or returned something unusable."""


class QueryError(InputError):
    """A filter, sort key or column of a query is wrong."""


class NotFoundError(InputError):
    """The named campaign, trial or worker is not in this store: check the name."""


class CampaignExistsError(InputError):
    """A campaign of that name with another definition is already in the store: choose another name."""


class StateError(InputError):
    """The campaign or trial is in a state that does not allow this."""


class DuplicateError(AutotuneError):
    """This trial number or configuration is already in the campaign: propose another one."""


class LeaseLostError(AutotuneError):
    """The lease of this attempt is gone: stop writing; what was sent is kept as a late result."""


class StoreError(AutotuneError):
    """The store refused or failed an operation: read the message, then `autotune store check`."""


class StoreUnreachableError(StoreError):
    """The store does not answer: check the address and the server, then try again."""


class StoreSetupError(StoreError):
    """The store, or the embedded server, is not usable as it is: do what the message says."""


class WorkerError(AutotuneError):
    """A worker or coordinator process could not be started or ended unexpectedly."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint ``; did you mean 'x'?`` for the nearest known name, or the list of known names.

    Args:
        name: What the user wrote.
        known: The names that would have been right.
    """
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
