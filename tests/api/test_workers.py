"""Workers and settings: /admin/workers, /admin/settings."""

from __future__ import annotations

import os
import socket

import jwt
import psycopg
import pytest
from flask import Flask

from blueprints.server import Server
from tests.actors import Actor
from tests.api.conftest import answer, problem
from tests.database.conftest import one, wait_until


def test_each_worker_tells_what_it_is_and_how_far_it_has_read(root: Actor, server: Server) -> None:
    body = answer(root.get("/admin/workers"))
    (worker,) = body["items"]
    assert worker["id"] == server.lastcall.listener.worker_id and worker["this_one"] is True
    assert (worker["host"], worker["pid"], worker["service"]) == (socket.gethostname(), os.getpid(), "lastcall")
    assert (worker["state"], worker["behind"]) == ("live", 0)
    assert worker["lease_age_ms"] >= 0 and worker["started_at"].endswith("Z")
    assert body["next"] is None


def test_a_worker_that_is_silent_is_shown_as_fenced_with_what_it_has_missed(
    root: Actor, alice: Actor, psql: psycopg.Connection
) -> None:
    silent = one(
        psql,
        "INSERT INTO workers (id, service, host, pid, lease_s, snapshot)"
        " VALUES (gen_random_uuid(), 'silent', 'far', 1, 0.2, pg_current_snapshot()) RETURNING id::text",
    )
    assert root.delete(f"/admin/sessions/{alice.user_id}").json["workers"]["fenced"] == 1

    def shown() -> dict[str, object]:
        return next(item for item in answer(root.get("/admin/workers"))["items"] if item["id"] == silent)

    wait_until(lambda: shown()["state"] == "fenced", "it is fenced")
    assert (shown()["behind"], shown()["this_one"], shown()["host"]) == (1, False, "far")


def test_a_worker_that_has_read_nothing_yet_is_starting(root: Actor, psql: psycopg.Connection) -> None:
    psql.execute("INSERT INTO workers (id, service, host, pid, lease_s) VALUES (gen_random_uuid(), 'new', 'x', 1, 60)")
    states = {item["service"]: item["state"] for item in answer(root.get("/admin/workers"))["items"]}
    assert states == {"lastcall": "live", "new": "starting"}


def test_the_row_of_a_worker_that_is_long_gone_is_dropped(
    app: Flask, server: Server, psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.worker.FORGET_AFTER_S", 0.3)
    psql.execute("INSERT INTO workers (id, service, host, pid, lease_s) VALUES (gen_random_uuid(), 'old', 'x', 1, 0)")

    def gone() -> bool:
        with app.app_context():
            server.housekeeper.tick()
        return bool(one(psql, "SELECT count(*) FROM workers") == 1)

    wait_until(gone, "its row is dropped")
    assert one(psql, "SELECT service FROM workers") == "lastcall"


def test_the_settings_in_force_and_what_they_mean(root: Actor) -> None:
    body = answer(root.get("/admin/settings"))
    lifetimes = {name: body[name] for name in ("access_ttl", "refresh_ttl", "session_max_age", "longest_lifetime")}
    assert lifetimes == {
        "access_ttl": 300,
        "refresh_ttl": 1_209_600,
        "session_max_age": 7_776_000,
        "longest_lifetime": 900,
    }
    assert (body["lease"], body["stale"], body["revoke_on_role_removal"]) == (2.0, "ask", True)
    assert body["algorithm"] == jwt.get_unverified_header(root.token)["alg"]
    assert "300" in body["window"]
    assert not any(word in str(body).lower() for word in ("secret", "postgresql://", "private"))


def test_the_workers_come_in_pages(root: Actor, psql: psycopg.Connection) -> None:
    psql.execute(
        "INSERT INTO workers (id, service, host, pid, lease_s)"
        " SELECT gen_random_uuid(), 'many', 'far', 90 + n, 60 FROM generate_series(1, 60) AS n"
    )
    assert len(answer(root.get("/admin/workers"))["items"]) == 50
    seen: list[str] = []
    path = "/admin/workers?limit=25"
    while path:
        body = answer(root.get(path))
        seen += [item["id"] for item in body["items"]]
        path = f"/admin/workers?limit=25&cursor={body['next']}" if body["next"] else ""
    assert len(seen) == len(set(seen)) == 61
    problem(root.get("/admin/workers?cursor=nonsense"), 400, "bad_cursor")
    problem(root.get("/admin/workers?limit=0"), 400, "invalid_request")
