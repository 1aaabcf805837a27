"""The nastiest mutants through the command line: a documented exit code, at most one line on standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from autotune.cli import exit_codes
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore
from autotune.testing.helpers import claim, propose, result
from tests.fuzz.test_campaign_files import HOSTILE, SHORT

CODES = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
NOWHERE = "mongodb://127.0.0.1:9/autotune"
"""Nothing listens there: what is refused before the store is looked for never sees it."""


def run(folder: Path, store_uri: str, commands: Sequence[Sequence[str]]) -> list[str]:
    """Run commands, some at a time; return what is wrong with how they ended."""

    def one(arguments: Sequence[str]) -> str | None:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "autotune.cli.main", *arguments],
                capture_output=True,
                timeout=60,
                cwd=folder,
                env={**os.environ, "AUTOTUNE_STORE": store_uri},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{arguments}: no end within 60 s"
        said = done.stderr.decode(errors="replace")
        lines = [line for line in said.splitlines() if line.strip()]
        unclear = "Traceback" in said or "AUTOTUNE_DEBUG" in said or "s3cr" in said
        if done.returncode not in CODES or len(lines) > 1 or unclear:
            return f"{str(arguments)[:300]}: code {done.returncode}, {len(lines)} lines: {said[:500]}"
        if done.returncode not in (exit_codes.OK, exit_codes.STORE) and not lines:
            return f"{str(arguments)[:300]}: code {done.returncode} without a word"
        return None

    with ThreadPoolExecutor(3) as pool:
        return [text for text in pool.map(one, commands) if text is not None]


def test_hostile_campaign_files(tmp_path: Path) -> None:
    names = [
        "aliases in fixed",
        "an alias of itself",
        "deep JSON",
        "a huge number",
        "python objects",
    ]
    commands = []
    for number, name in enumerate(names):
        (tmp_path / f"{number}.yaml").write_text(HOSTILE[name])
        commands.append(["launch", f"{number}.yaml", "--workers", "0"])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    commands += [["launch", "bytes.yaml"], ["launch", "/dev/null"], ["launch", "a\nb"]]
    assert run(tmp_path, NOWHERE, commands) == []


def test_hostile_overrides(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(SHORT)
    overrides = [
        "=",
        "budget",
        "budget.max_trials=[",
        "name=!!binary a",
        "space.x=" + "[" * 500,
        "é=\u2028",
    ]
    commands = [["launch", "campaign.yaml", "--workers", "0", "--set", text] for text in overrides]
    assert run(tmp_path, NOWHERE, commands) == []


def test_hostile_uris(tmp_path: Path) -> None:
    uris = [
        "",
        "mongodb://",
        "mongodb://u:s3cr/t@127.0.0.1:9",
        "mongodb://127.0.0.1:99999",
        "mongodb://127.0.0.1:9/?compressors=zl",
        "mongodb://u:s3cr%@127.0.0.1",
        "mongodb://127.0.0.1:9/?tls=true&tlsCAFile=/nowhere",
    ]
    assert run(tmp_path, NOWHERE, [["campaigns", "--store", uri or "mongodb:"] for uri in uris]) == []


@pytest.fixture
def filled(store: MongoStore, make_campaign: Callable[..., CampaignRecord]) -> MongoStore:
    """A store with a campaign that has a finished and a queued trial."""
    make_campaign()
    propose(store, 0, "demo")
    propose(store, 1, "demo")
    store.trials.finish(claim(store, "demo"), result(1.0))
    return store


def test_hostile_conditions(filled: MongoStore, tmp_path: Path) -> None:
    wheres = [
        "=",
        "x",
        "a" * 9_000 + "=1",
        "x=" + "[" * 20_000,
        "state=\u2028",
        "number=" + "9" * 5_000,
    ]
    commands: list[list[str]] = [["trials", "demo", "--where", text] for text in wheres]
    commands += [
        ["trials", "demo", "--sort", "\u202e"],
        ["trials", "demo", "--columns", ",,"],
        ["trials", "demo\n", "--limit", "1"],
    ]
    assert run(tmp_path, filled.uri, commands) == []


DAMAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "a campaign without a definition": ("campaigns", {"$unset": {"spec": 1, "metric": 1}}),
    "a trial in an unknown state": ("trials", {"$set": {"state": "lost", "number": "one"}}),
    "attempts that are none": ("trials", {"$set": {"attempts": [1, None], "metrics": [], "started_at": "noon"}}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_documents(filled: MongoStore, tmp_path: Path, damage: str) -> None:
    collection, update = DAMAGE[damage]
    filled.connection.database[collection].update_one({}, update, bypass_document_validation=True)
    commands = [["campaigns"], ["status", "demo"], ["trials", "demo"], ["report", "demo"], ["store", "check"]]
    assert run(tmp_path, filled.uri, commands) == []


def test_hostile_backups(filled: MongoStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + b"\x00" * 100 + b"PK\x05\x06" + b"\x00" * 18)
    commands = [["store", "restore", name] for name in ("empty", "text", "zip", ".", "nowhere", "/dev/null")]
    commands += [
        ["store", "backup", "no folder/b"],
        ["store", "backup", "/"],
        ["store", "backup", "b", "--campaign", "\n"],
    ]
    assert run(tmp_path, filled.uri, commands) == []
