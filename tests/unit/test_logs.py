"""Log lines: one an event, each with an action that `docs/logs.md` lists."""

from __future__ import annotations

import ast
import io
import json
import logging
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autotune import logs
from autotune.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "docs" / "logs.md"
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
UNKNOWN = "?"
"""The action of a call whose action is not written down beside it."""


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where lines go; the loggers are left as they were."""
    loggers = [logging.getLogger(name) for name in ("autotune", "workers")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield io.StringIO()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def json_lines(stream: io.StringIO) -> list[dict[str, object]]:
    """Return the lines that were written, each as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_LOG", "json")
    logs.configure(stream)
    before = datetime.now(UTC)
    logging.getLogger("autotune.coordinator").info("propo\nsed %d", 3, extra={"action": "propose", "number": 3})
    logging.getLogger("workers.agent").warning("odd", extra={"action": "x", "score": math.nan, "path": Path("/a"),
                                                             "list": (1, {2}), "text": "é\ud800"})  # fmt: skip
    first, second = json_lines(stream)
    moment = datetime.fromisoformat(str(first.pop("time")))
    assert moment.utcoffset() is not None
    assert abs((moment - before).total_seconds()) < 60
    assert first == {"level": "info", "logger": "autotune.coordinator", "action": "propose", "message": "propo sed 3",
                     "number": 3}  # fmt: skip
    assert (second["score"], second["path"], second["list"]) == ("nan", "/a", [1, [2]])
    assert stream.getvalue().isascii()


def test_json_keeps_a_traceback_on_its_line(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_LOG", "json")
    logs.configure(stream)
    try:
        raise KeyError("a bug")
    except KeyError:
        logging.getLogger("workers").exception("unexpected", extra={"action": "slot-error"})
    [line] = json_lines(stream)
    assert line["action"] == "slot-error"
    assert "KeyError: 'a bug'" in str(line["traceback"])


def test_a_field_never_replaces_the_head(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_LOG", "json")
    logs.configure(stream)
    logging.getLogger("autotune").info("said", extra={"action": "a", "level": "loud", "time": "never"})
    [line] = json_lines(stream)
    assert (line["level"], line["message"]) == ("info", "said")
    assert line["time"] != "never"


@pytest.mark.parametrize("wanted", ["", "text"])
def test_text_is_one_line_an_event(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("AUTOTUNE_LOG", wanted)
    logs.configure(stream)
    logging.getLogger("autotune").info("a\nb", extra={"action": "end", "campaign": "demo", "why": "two words"})
    [line] = stream.getvalue().splitlines()
    assert line.endswith('INFO action=end campaign=demo why="two words" a b')


def test_another_format_is_refused(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_LOG", "xml")
    with pytest.raises(InputError, match="set it to json or text"):
        logs.configure(stream)


def calls() -> Iterator[tuple[str, ast.Call, ast.AST]]:
    """Yield (place, call, function or module around it) of each line that the service logs."""
    for package in ("autotune", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            around = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
            for node in ast.walk(tree):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                logger = node.func.value
                named = isinstance(logger, ast.Name) and logger.id in ("_log", "log", "logger", "_logger", "logging")
                if named and node.func.attr in METHODS:
                    scope = around[node]
                    while not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                        scope = around[scope]
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node, scope


def action_of(call: ast.Call, scope: ast.AST) -> str | None:
    """Return the action in a call's ``extra``, which stands there or is a variable of the function; None: none."""
    given = next((k.value for k in call.keywords if k.arg == "extra"), None)
    if isinstance(given, ast.Name):
        values = [n.value for n in ast.walk(scope) if isinstance(n, ast.Assign)
                  and any(isinstance(t, ast.Name) and t.id == given.id for t in n.targets)]  # fmt: skip
        given = values[-1] if values else None
    if not isinstance(given, ast.Dict):
        return None
    for key, value in zip(given.keys, given.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "action":
            return str(value.value) if isinstance(value, ast.Constant) else UNKNOWN
    return None


def test_every_line_has_an_action() -> None:
    places = [(place, action_of(call, scope)) for place, call, scope in calls()]
    assert len(places) > 20
    assert [place for place, action in places if action in (None, UNKNOWN)] == []


def test_actions_are_words() -> None:
    actions = {action_of(call, scope) for _, call, scope in calls()}
    assert [action for action in actions if not re.fullmatch(r"[a-z]+(-[a-z]+)*", action or "")] == []


def test_the_table_lists_every_action_and_no_other() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", TABLE.read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted({str(action_of(call, scope)) for _, call, scope in calls()})


def test_no_line_is_formatted_before_it_is_logged() -> None:
    """The text of a line is fixed; what differs are its fields. So lines of one kind can be found and counted."""
    wrong = [place for place, call, _ in calls() if call.args and isinstance(call.args[0], ast.JoinedStr)]
    assert wrong == []
