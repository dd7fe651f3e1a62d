"""What API tests share: an application that stops at once, and what every problem and every answer must look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from blueprints.server import Server
from settings import Settings
from tests.conftest import running_app
from tests.database.conftest import stop_at_once

NOBODY = "11111111-2222-4333-8444-555555555555"
"""An id that nobody has."""


@pytest.fixture
def app(settings: Settings, psql: psycopg.Connection) -> Iterator[Flask]:
    with running_app(settings) as app:
        yield app
        stop_at_once(app, psql)


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
