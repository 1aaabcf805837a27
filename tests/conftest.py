"""Fixtures shared by all tests: a real mongod on loopback, and a store of its own for each test."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from autotune.errors import StoreSetupError
from autotune.store import embedded
from autotune.store.base import CampaignRecord
from autotune.store.mongo import MongoStore

settings.register_profile("autotune", parent=settings(), deadline=None)  # machines that run tests are busy
settings.load_profile("autotune")
signal.signal(signal.SIGINT, signal.default_int_handler)
# a run in the background begins with SIGINT ignored, and what it starts would inherit that

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real cells and published tables; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("AUTOTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}")
    return folder


@pytest.fixture(scope="session")
def server_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an embedded server that lives for the whole test run, in a home of its own."""
    home = tmp_path_factory.mktemp("home")
    before = {name: os.environ.pop(name, None) for name in ("AUTOTUNE_HOME", "AUTOTUNE_STORE")}
    os.environ["AUTOTUNE_HOME"] = str(home)
    try:
        uri = embedded.start()
    except StoreSetupError as error:
        if os.environ.get("AUTOTUNE_REQUIRE_MONGO") == "1":
            raise
        pytest.skip(f"no MongoDB server: {error}")
    try:
        yield uri
    finally:
        embedded.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def store_uri(server_uri: str) -> Iterator[str]:
    """URI of an empty database on that server, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    uri = server_uri.replace("/autotune?", f"/{name}?")
    yield uri
    store = MongoStore(uri, prepare=False)
    store.connection.client.drop_database(name)
    store.close()


@pytest.fixture
def store(store_uri: str) -> Iterator[MongoStore]:
    """An open, empty store."""
    with MongoStore(store_uri) as opened:
        yield opened


@pytest.fixture
def make_campaign(store: MongoStore) -> Callable[..., CampaignRecord]:
    """Creates a campaign in the store: ``make_campaign("name", max_trials=4, objective="module:callable", ...)``."""

    def make(name: str = "demo", **changes: object) -> CampaignRecord:
        from autotune.campaign import parse_campaign
        from autotune.local.resolve import resolve

        content: dict[str, object] = {
            "name": name,
            "objective": "math:fsum",
            "metric": {"name": "loss", "mode": "min"},
            "space": {"x": {"float": [-2, 2]}},
            "budget": {"max_trials": changes.pop("max_trials", 4)},
            **changes,
        }
        record = resolve(parse_campaign(content))
        store.campaigns.create(record)
        return store.campaigns.get(name)

    return make


@pytest.fixture
def run_cli(store_uri: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a subprocess against the test's store: ``run_cli("trials", "demo")``."""

    def run(*arguments: str, timeout_s: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autotune.cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=tmp_path,
            env={**os.environ, "AUTOTUNE_STORE": store_uri, **environment},
            check=False,
        )

    return run
