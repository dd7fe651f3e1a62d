"""What every test may use: a real PostgreSQL, an application on a database of its own, actors, real gunicorn workers.

One cluster a run; each test gets a clone of a template database, made in some 20 ms.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from lastcall.listener import CHANNEL
from models import user as users
from models.database import apply_schema, db
from settings import Settings, from_environment
from tests.actors import Actor
from tests.gunicorn import Gunicorn
from tools.postgres import APP, EmbeddedPostgres

PASSWORD = "correct horse battery"
TEMPLATE = "lastcall_template"
_names = (f"test_{number}" for number in itertools.count())

# Tests sign in hundreds of times: argon2id with its least cost. test_passwords.py holds the real parameters.
FAST_ENVIRONMENT = {
    "SECRET_KEY": "the tests' own secret, of no value",
    "LASTCALL_ARGON2_TIME_COST": "1",
    "LASTCALL_ARGON2_MEMORY_KIB": "8",
    "LASTCALL_ADMIN_PASSWORD": PASSWORD,
}


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with (
        tempfile.TemporaryDirectory(prefix="lastcall-tests-", dir=_memory()) as folder,
        EmbeddedPostgres(Path(folder), fast=True) as server,
    ):
        apply_schema(server.create_database(TEMPLATE))
        server.let_in(APP)
        yield server


def _memory() -> Path | None:
    """A file system in memory with room for a cluster: a database is cloned in some 20 ms there, on a disk it may take
    15 times as long. None where there is no such thing (a container may have 64 MB of it)."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4 << 30
    return folder if roomy else None


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database with the schema."""
    name = next(_names)
    yield postgres.create_database(name, TEMPLATE)
    postgres.drop_database(name)


@pytest.fixture
def psql(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection of somebody who is not the application, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def signing_key() -> str:
    """Of EdDSA: to read an RSA key takes 45 ms, as each application does once, and a thousand tests start one."""
    from json import dumps

    from lastcall.tokens import generate_signing_key

    return dumps(generate_signing_key("EdDSA"))


@pytest.fixture
def environment(database_url: str, signing_key: str, tmp_path: Path) -> dict[str, str]:
    """The variables of a server on this test's database; change them before you use what needs them."""
    return {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": database_url,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path / "instance"),
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return from_environment(environment)


@contextmanager
def running_app(settings: Settings) -> Iterator[Flask]:
    """The application in this process, with its listener (not its housekeeper: `tick` it yourself)."""
    app = create_app(settings)
    app.testing = True
    server = app.extensions["lastcall_server"]
    server.lastcall.listener.ensure_running()
    assert server.lastcall.listener.wait_until_live()
    try:
        yield app
    finally:
        # It waits a quarter of a second for a hint, and a thousand tests would wait for that.
        server.lastcall.listener._stopping.set()
        with suppress(psycopg.Error), psycopg.connect(settings.database_url, autocommit=True) as psql:
            psql.execute(f"NOTIFY {CHANNEL}")
        server.stop()
        with app.app_context():
            db.engine.dispose()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    with running_app(settings) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


MakeUser = Callable[..., Actor]


@pytest.fixture
def make_user(app: Flask) -> MakeUser:
    """Create a user and sign him in: `make_user("bob", "editor")`."""

    def make(username: str, *roles: str, password: str = PASSWORD) -> Actor:
        with app.app_context():
            users.create_user(username, password, roles)
        return Actor.signed_in(app.test_client(), username, password)

    return make


@pytest.fixture
def root(make_user: MakeUser) -> Actor:
    """An admin, signed in."""
    return make_user("root", "admin")


@pytest.fixture
def alice(make_user: MakeUser) -> Actor:
    """A user with the role viewer, signed in."""
    return make_user("alice", "viewer")


StartGunicorn = Callable[..., Gunicorn]


@pytest.fixture
def start_gunicorn(environment: dict[str, str], tmp_path: Path) -> Iterator[StartGunicorn]:
    """Start real gunicorn workers on this test's database, ready to serve: `start_gunicorn(4, "--preload")`."""
    with ExitStack() as stack:

        def start(workers: int = 4, *options: str, **more: str) -> Gunicorn:
            log = tmp_path / f"gunicorn-{len(os.listdir(tmp_path))}.log"
            return stack.enter_context(Gunicorn(workers, options, {**environment, **more}, log))

        yield start


def pytest_collection_finish() -> None:
    """As the workers do (gunicorn.conf.py): to search all that is imported for garbage holds the application in this
    process up for half a second, in which it takes its database for silent."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Quick tests first, so that a mistake shows early: unit, database, workers, faults, browser."""
    order = ("unit", "database", "api", "workers", "faults", "browser")

    def place(item: Any) -> int:
        folder = Path(item.fspath).parent.name
        return order.index(folder) if folder in order else len(order)

    items.sort(key=place)
