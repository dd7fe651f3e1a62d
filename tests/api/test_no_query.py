"""A guarded request costs no query: neither through SQLAlchemy nor through psycopg, as long as the lease is valid.
What needs the database asks it few times: on a busy machine each answer is waited for behind everybody else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Engine, event

from models.database import db
from tests.actors import API, Actor
from tests.api.conftest import answer, problem, receipt
from tests.database.conftest import statements


@pytest.fixture
def engine(app: Flask) -> Engine:
    with app.app_context():
        return db.engine


@pytest.fixture
def queries(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every statement that anybody but the listener sends, whatever it is sent through; and every new connection."""
    sent: list[str] = []
    execute, connect = psycopg.Cursor.execute, psycopg.Connection.connect

    def note(what: object) -> None:
        if threading.current_thread().name != "lastcall-listener":
            sent.append(f"{threading.current_thread().name}: {what}")

    def noting_execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        note(query)
        return execute(self, query, *args, **kwargs)

    def noting_connect(*args: Any, **kwargs: Any) -> Any:
        note("a new connection")
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg.Cursor, "execute", noting_execute)
    monkeypatch.setattr(psycopg.Connection, "connect", noting_connect)

    def note_statement(_: Any, __: Any, statement: str, *___: Any) -> None:
        note(statement)

    event.listen(engine, "before_cursor_execute", note_statement)
    yield sent
    event.remove(engine, "before_cursor_execute", note_statement)


def test_the_net_catches_a_query(root: Actor, queries: list[str]) -> None:
    answer(root.get("/admin/sessions"))
    assert queries


def test_a_guarded_request_sends_no_query(alice: Actor, root: Actor, queries: list[str]) -> None:
    for actor in (alice, root):
        for _ in range(20):
            answer(actor.get("/auth/me"))
    assert queries == []


def test_it_costs_no_query_either_with_many_revocations(
    alice: Actor, root: Actor, psql: psycopg.Connection, queries: list[str]
) -> None:
    receipt(root.delete("/admin/sessions?keep_current=true"))
    again = alice.again()
    psql.execute("SELECT raise_cutoff('session', n::text, 0, now() + '1 h') FROM generate_series(1, 1000) AS n")
    queries.clear()
    answer(again.get("/auth/me"))
    assert queries == []


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "A" * 9000])
def test_a_bad_token_sends_no_query(alice: Actor, queries: list[str], token: str) -> None:
    response = alice.client.get(API + "/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 401
    assert queries == []


def test_a_role_that_is_missing_sends_no_query(alice: Actor, queries: list[str]) -> None:
    problem(alice.get("/admin/sessions"), 403, "forbidden")
    assert queries == []


def test_a_sign_in_asks_twice(engine: Engine, alice: Actor) -> None:
    with statements(engine) as sent:
        alice.again()
    assert len(sent) == 2, sent  # who is it; nobody else fails now, and the session


def test_a_force_logout_asks_once_and_then_looks(engine: Engine, alice: Actor, root: Actor) -> None:
    with statements(engine) as sent:
        receipt(root.delete(f"/admin/sessions/{alice.user_id}"), sessions_ended=1)
    looks = [statement for statement, _ in sent if "read_workers" in statement]
    assert len(sent) - len(looks) == 1 and looks, sent
