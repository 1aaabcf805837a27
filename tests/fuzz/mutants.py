"""Mutants of valid input, from a seed, and the judgement: one clear error or success, in time, and nothing else."""

from __future__ import annotations

import copy
import math
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from types import FrameType
from typing import Any

from autotune.errors import AutotuneError

DEADLINE_S = 10.0
"""CPU time that one mutant may take, seconds; a wait without end is caught by the test's own limit."""
LONGEST = 4_000
"""No error needs more characters."""


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


PLAIN: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.5,
    -0.0,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    "",
    " ",
    "\n",
    "a" * 10_000,
    "0",
    "1e400",
    "nan",
    "null",
    "true",
    "$x",
    "$$NOW",
    "a.b",
    ".",
    "é",
    "\u202e",
    "\U0001f9ec",
    "../../x",
    "__class__",
    "%s{}",
    "a b",
    "math:fsum",
    ":",
    [],
    {},
    [[]],
    [None],
    [1, 2, 3],
    ["a", "a"],
    {"": 1},
    {"$gt": 1},
    {"a.b": 1},
    {"float": [0, 1]},
    {"float": [1, 0]},
    {"choice": []},
    {"choice": [{}]},
    {"log_float": [0, 1]},
    {"int": [0, 10**30]},
    {"x": {"x": {"x": {}}}},
    _deep(50),
)
"""Values that JSON, YAML and MongoDB can say, in places where nobody expects them."""

TOKENS: tuple[str, ...] = (
    "",
    ":",
    "-",
    "?",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a",
    "*a",
    "<<",
    "!!python/object:os.system",
    "!!binary aaa",
    "!!set",
    "!!timestamp x",
    "|",
    ">",
    "%",
    "@",
    "`",
    "#",
    "'",
    '"',
    "---",
    "...",
    "\t",
    "\x00",
    "\x85",
    "\ufeff",
    "\u2028",
    "\ud7ff",
    "~",
    "null",
    "yes",
    "1e400",
    "-.inf",
    ".nan",
    "0x",
    "0o8",
    "1_000",
    "1:30",
    "2026-13-45",
    "2026-01-01",
    "9" * 400,
    "=",
    "<",
    "!=",
    "==",
    ">=",
    "\\",
    "{{",
    "${x}",
    "a" * 3_000,
    "(" * 200,
    "[" * 300,
    "{" * 300,
    "- " * 300,
    "? " * 200,
)
"""Pieces of text that mean something to a reader."""


def cut_up(text: str, chance: random.Random) -> str:
    """Return a text with one to four changes of single characters or slices."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice([1, 1, 2, 5, 20]))
        match chance.randrange(6):
            case 0:
                text = text[:at] + text[end:]
            case 1:
                text = (
                    text[:at]
                    + chr(chance.choice([0, 9, 10, 34, 39, 58, 123, 125, 0x85, 0x7F, 0xFFFD, 0x1F9EC]))
                    + text[at:]
                )
            case 2:
                text = text[:at] + chr(chance.randrange(32, 127)) + text[end:]
            case 3:
                text = text[:at] + text[at:end] * chance.choice([2, 3, 50]) + text[end:]
            case 4:
                text = text[:at] + chance.choice(TOKENS) + text[at:]
            case _:
                text = text[:at]
    return text


def cut_up_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to three changes."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([1, 1, 4, 30, 200]))
        match chance.randrange(4):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:at] + bytes(chance.randrange(256) for _ in range(end - at)) + data[end:]
            case 2:
                data = data[:at] + data[at:end] * 2 + data[end:]
            case _:
                data = data[:at]
    return data


def swap_tokens(text: str, chance: random.Random) -> str:
    """Return a text in which some words or signs are exchanged, doubled, dropped or replaced."""
    tokens = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(chance.randint(1, 3)):
        at, other = chance.randrange(len(tokens)), chance.randrange(len(tokens))
        match chance.randrange(4):
            case 0:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 1:
                tokens[at] = chance.choice(TOKENS)
            case 2:
                tokens[at] = ""
            case _:
                tokens.insert(at, tokens[other])
    return "".join(tokens)


def reshape(value: Any, chance: random.Random, values: Sequence[Any] = PLAIN) -> Any:
    """Return a copy of nested plain values in which one to three nodes are replaced, dropped, renamed or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return value
        parent, key = chance.choice(places)
        match chance.randrange(6):
            case 0 if isinstance(parent, dict):
                parent[chance.choice(["", "x", "$set", "a.b", "naem", "é", "_id2"])] = parent.pop(key)
            case 1:
                del parent[key]
            case 2:
                parent[key] = [parent[key]]
            case 3:
                parent[key] = {str(chance.choice(["x", "value", "$numberLong"])): parent[key]}
            case _:
                parent[key] = copy.deepcopy(chance.choice(values))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key or index) of every node below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


STORED: tuple[Any, ...] = (
    *[v for v in PLAIN if not (isinstance(v, int) and abs(v) >= 2**63)],
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, tzinfo=UTC),
    b"\x00\xff",
    2**62,
    -1.5,
)
"""Values that a document in MongoDB can hold."""

WRITTEN: tuple[Any, ...] = (*PLAIN, date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), b"bytes", {1: 2}, {None: 1})
"""Values that a YAML file can hold."""


class Jury:
    """Judges mutants. Usable as a context manager: at its end all that failed is shown at once."""

    def __init__(self) -> None:
        self.judged = 0
        self.refused = 0
        self.failures: list[str] = []

    def __enter__(self) -> Jury:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            shown = "\n".join(self.failures[:40])
            assert not self.failures, f"{len(self.failures)} of {self.judged} mutants:\n{shown}"

    def judge(self, run: Callable[[], object], mutant: object) -> bool:
        """Run something on a mutant; return whether it succeeded. Any end but that and one clear line is a failure."""
        self.judged += 1
        try:
            with _deadline():
                run()
        except AutotuneError as error:
            self.refused += 1
            said = str(error)
            if not said.strip() or "\n" in said or len(said) > LONGEST or "Traceback" in said:
                self._fail(mutant, f"an unclear error of {len(said)} characters: {said[:200]!r}")
            return False
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self._fail(mutant, f"{type(error).__name__}: {str(error)[:200]} at {_place(error)}")
            return False
        return True

    def _fail(self, mutant: object, why: str) -> None:
        text = repr(mutant)
        self.failures.append(f"- {why}\n    {text if len(text) < 600 else text[:600] + '...'}")


class _TooLongError(Exception):
    """A mutant used up its time."""


@contextmanager
def _deadline() -> Iterator[None]:
    def end(_: int, __: FrameType | None) -> None:
        raise _TooLongError(f"more than {DEADLINE_S:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _place(error: BaseException) -> str:
    """Return the innermost line of ours that an error came through."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/autotune/" in file or "/workers/" in file:
            place = f"{file.rsplit('/', 2)[-2]}/{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
