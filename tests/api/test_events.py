"""Server-sent events: /admin/events. A stream tells of changes, and ends with the session that opened it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from blueprints.server import Server
from tests.actors import Actor
from tests.api.conftest import answer, problem, receipt

Open = Callable[[Actor], Iterator[str]]


@pytest.fixture
def open_stream() -> Iterator[Open]:
    """Open a stream of an actor, past its greeting; closed at the end."""
    responses: list[TestResponse] = []

    def begin(actor: Actor) -> Iterator[str]:
        response = actor.get("/admin/events")
        responses.append(response)
        assert response.status_code == 200
        assert response.content_type == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
        parts = (part.decode() for part in response.iter_encoded())
        assert next(parts) == "retry: 2000\n\n"
        return parts

    yield begin
    for response in responses:
        response.close()


def wait_for(stream: Iterator[str], *topics: str) -> None:
    """Read on until every topic was told of; a stream beats every five seconds, so this ends."""
    missing = {f"event: {topic}\n" for topic in topics}
    for _ in range(4):
        part = next(stream)
        missing = {line for line in missing if line not in part}
        if not missing:
            return
    raise AssertionError(f"nothing was heard of {missing}")


def test_a_program_is_sent_no_events_but_the_topics(
    root: Actor, open_stream: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blueprints.events.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("blueprints.events.BEAT_EVERY_S", 0.0)
    assert next(open_stream(root)) == ": still here\n\n"


def test_a_revocation_is_told_at_once(root: Actor, alice: Actor, open_stream: Open) -> None:
    stream = open_stream(root)
    receipt(root.delete(f"/admin/sessions/{alice.user_id}"))
    wait_for(stream, "revocation")


def test_a_sign_in_and_a_worker_are_told_by_the_housekeeper(
    app: Flask, server: Server, root: Actor, open_stream: Open
) -> None:
    stream = open_stream(root)
    with app.app_context():
        server.housekeeper.tick()
    wait_for(stream, "sessions", "workers")
    root.again()
    with app.app_context():
        server.housekeeper.tick()
    wait_for(stream, "sessions")


@pytest.mark.parametrize("how", ["logout", "force logout", "everyone", "deletion", "role lost"])
def test_a_stream_ends_when_its_own_session_is_revoked(root: Actor, alice: Actor, open_stream: Open, how: str) -> None:
    stream, other = open_stream(root), root.again()
    if how == "logout":
        assert root.post("/auth/logout").status_code == 204
    elif how == "force logout":
        receipt(other.delete(f"/admin/sessions/{root.user_id}/{root.session_id}"))
    elif how == "everyone":
        receipt(other.delete("/admin/sessions"))
    else:
        answer(other.put(f"/admin/users/{alice.user_id}/roles", json={"roles": ["admin"]}))
        admin = alice.again()
        if how == "deletion":
            assert admin.delete(f"/admin/users/{root.user_id}").status_code == 204
        else:
            answer(admin.put(f"/admin/users/{root.user_id}/roles", json={"roles": []}))
    assert [part for part in stream if "data" in part] == [], "not even the news of its own end"


def test_a_stream_of_another_session_goes_on(root: Actor, alice: Actor, open_stream: Open) -> None:
    other = root.again()
    stream = open_stream(other)
    receipt(root.delete(f"/admin/sessions/{root.user_id}/{root.session_id}"))
    wait_for(stream, "revocation")
    receipt(other.delete(f"/admin/sessions/{alice.user_id}"))
    wait_for(stream, "revocation")


def test_a_stream_ends_when_the_process_drains(server: Server, root: Actor, open_stream: Open) -> None:
    stream = open_stream(root)
    server.drain()
    assert [part for part in stream if "event" in part] == []
    problem(root.get("/admin/events"), 503, "too_many_streams")


def test_streams_are_counted_and_a_closed_one_makes_room(
    environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    environment["LASTCALL_STREAMS_PER_WORKER"] = "2"
    root: Actor = request.getfixturevalue("root")
    server: Server = request.getfixturevalue("server")
    first, second = root.get("/admin/events"), root.get("/admin/events")
    refused = root.get("/admin/events")
    problem(refused, 503, "too_many_streams")
    assert int(refused.headers["Retry-After"]) >= 1
    first.close()
    third = root.get("/admin/events")
    assert third.status_code == 200 and server.changes.streams == 2
    for response in (second, third):
        response.close()
    assert server.changes.streams == 0
