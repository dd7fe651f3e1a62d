"""What database tests share: waiting for a signal with a deadline, threads that start at once, invented sessions."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Engine, event

from blueprints.server import Server
from lastcall.errors import Revoked

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Ask again and again, for what another process does and no signal tells of."""
    deadline, never = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        never.wait(0.005)


def all_at_once(*tasks: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, started together. Returns what each returned, or the exception it raised."""
    barrier = threading.Barrier(len(tasks))
    results: list[Any] = [None] * len(tasks)

    def run(place: int, task: Callable[[], Any]) -> None:
        barrier.wait(DEADLINE_S)
        try:
            results[place] = task()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


@pytest.fixture
def server(app: Flask) -> Server:
    server: Server = app.extensions["lastcall_server"]
    return server


@pytest.fixture
def context(app: Flask) -> Iterator[None]:
    """An application context, for calling use cases directly. Send no requests within: they would share its `g`."""
    with app.app_context():
        yield


CatchUp = Callable[[], None]


@pytest.fixture
def catch_up(psql: psycopg.Connection) -> CatchUp:
    """Wait until every worker has applied what was committed until now, by whomever."""

    def wait() -> None:
        position = [one(psql, "SELECT pg_current_xact_id()::text FROM pg_notify('lastcall_cutoffs', '')")]
        seen = "SELECT bool_and(coalesce(pg_visible_in_snapshot(%s::xid8, snapshot), FALSE)) FROM workers"
        wait_until(lambda: one(psql, seen, position), "a worker has read as far as this")

    return wait


@contextmanager
def statements(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """What this thread sends to the database, with its parameters; BEGIN and COMMIT come on top."""
    sent: list[tuple[str, Any]] = []
    caller = threading.current_thread()

    def note(connection: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if threading.current_thread() is caller:  # not the housekeeper's
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def one(psql: psycopg.Connection, query: str, parameters: Any = None) -> Any:
    """The one value that a query gives."""
    row = psql.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def accepts(server: Server, token: str) -> bool:
    """Whether the guard lets a token through now; any answer but yes and «revoked» is an error."""
    try:
        server.lastcall.guard.check(token)
    except Revoked:
        return False
    return True


def add_user(psql: psycopg.Connection, username: str, *roles: str) -> str:
    user_id = str(one(psql, "INSERT INTO users (username, password_hash) VALUES (%s, '!') RETURNING id", (username,)))
    for role in roles:
        psql.execute("INSERT INTO user_roles (user_id, role) VALUES (%s, %s)", (user_id, role))
    return user_id


def add_session(psql: psycopg.Connection, user_id: str, **columns: Any) -> str:
    """An invented session of a user, active unless `columns` say otherwise."""
    row = psql.execute(
        "SELECT u.username, u.gen, e.gen, clock_timestamp(), clock_timestamp() + interval '1 day'"
        " FROM users AS u, everyone AS e WHERE u.id = %s",
        (user_id,),
    ).fetchone()
    assert row is not None
    values = {
        "user_id": user_id,
        "username": row[0],
        "roles": ["viewer"],
        "client_id": "api",
        "ip": "192.0.2.1",
        "last_ip": "192.0.2.1",
        "created_at": row[3],
        "last_seen_at": row[3],
        "token_expires_at": row[4],
        "expires_at": row[4],
        "user_gen": row[1],
        "everyone_gen": row[2],
        "family_hash": uuid.uuid4().bytes,
        "refresh_hash": uuid.uuid4().bytes,
        **columns,
    }
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    return str(one(psql, f"INSERT INTO login_sessions ({names}) VALUES ({places}) RETURNING id", list(values.values())))


InThread = Callable[..., Callable[[], Any]]


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns more often, so that the races differ."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def in_thread(app: Flask) -> InThread:
    """A call as a task for a thread, with an application context of its own."""

    def prepare(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
        def task() -> Any:
            with app.app_context():
                return function(*args, **kwargs)

        return task

    return prepare
