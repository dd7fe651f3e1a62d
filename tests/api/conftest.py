"""What API tests share: an application that stops at once, and what every problem and every answer must look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from blueprints.server import Server
from models import user as users
from settings import from_environment
from tests.actors import Actor
from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres

NOBODY = "11111111-2222-4333-8444-555555555555"
"""An id that nobody has."""


@pytest.fixture
def server(app: Flask) -> Server:
    server: Server = app.extensions["lastcall_server"]
    return server


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be this problem, in the form of RFC 9457."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = response.json
    assert {"type", "title", "status", "detail", "code"} <= body.keys()
    assert (body["status"], body["code"]) == (status, code), body
    assert body["detail"] and body["title"]
    if status == 401:
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert 'error="' in response.headers["WWW-Authenticate"]
    if status == 429:
        assert 1 <= int(response.headers["Retry-After"]) <= 300
    return body


def answer(response: TestResponse, status: int = 200) -> Any:
    """The body of an answer that must be good, and is never stored."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return response.json


def receipt(response: TestResponse, **expected: Any) -> dict[str, Any]:
    """A receipt that says: in force on the one worker that there is."""
    body: dict[str, Any] = answer(response)
    workers = body["workers"]
    assert body["in_force"] is True
    assert (workers["live"], workers["confirmed"], workers["fenced"]) == (1, 1, 0)
    assert workers["elapsed_ms"] >= 0
    assert body["cutoff"].endswith("Z")
    for name, value in expected.items():
        assert body[name] == value, name
    return body


# ------------------------------------------------------------------------------------------- one world for bad input

TABLES = ("users", "user_roles", "login_sessions", "cutoffs", "revocations", "everyone")


class World:
    """One application for all of these tests: none of them may change anything."""

    def __init__(self, root: Actor, alice: Actor, psql: psycopg.Connection) -> None:
        self.root, self.alice, self.psql = root, alice, psql

    def dump(self) -> list[Any]:
        hide = "to_jsonb(t) - 'last_seen_at' - 'last_ip'"
        return [self.psql.execute(f"SELECT {hide} FROM {table} AS t ORDER BY 1").fetchall() for table in TABLES]

    def path(self, path: str) -> str:
        return path.format(id=self.alice.user_id, sid=self.alice.session_id, root=self.root.user_id)


@pytest.fixture(scope="module")
def shared_world(
    postgres: EmbeddedPostgres, signing_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    url = postgres.create_database("bad_input", TEMPLATE)
    environment = {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": url,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path_factory.mktemp("instance")),
    }
    with running_app(from_environment(environment)) as app, psycopg.connect(url, autocommit=True) as psql:
        with app.app_context():
            users.create_user("root", PASSWORD, ["admin"])
            users.create_user("alice", PASSWORD, ["viewer"])
        client = app.test_client()
        yield World(*(Actor.signed_in(client, name, PASSWORD) for name in ("root", "alice")), psql)
    postgres.drop_database("bad_input")


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The world, which must be as it was when the test is over."""
    before = shared_world.dump()
    yield shared_world
    assert shared_world.dump() == before
    assert shared_world.root.is_in() and shared_world.alice.is_in()
    shared_world.psql.execute("DELETE FROM sign_in_attempts")


def refused(response: TestResponse, *statuses: int) -> dict[str, Any]:
    assert response.status_code in statuses, response.text
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = response.json
    assert body["status"] == response.status_code and body["code"] and body["detail"]
    assert PASSWORD not in response.text, "it must not repeat what was sent"
    return body
