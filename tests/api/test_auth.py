"""Signing in and out, refreshing, the own password: /auth."""

from __future__ import annotations

import base64
import re
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from lastcall.errors import Revoked
from models import passwords, refreshing
from models import user as users
from models.database import db
from models.database_errors import Busy
from settings import from_environment
from tests.actors import API, Actor
from tests.api.conftest import answer, problem, receipt
from tests.conftest import PASSWORD, MakeUser, running_app
from tests.database.conftest import one, statements

TOKENS = {
    "access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "session_id", "user_id"
}  # fmt: skip


def login(client: FlaskClient, username: str, password: str, address: str = "127.0.0.1") -> TestResponse:
    body = {"username": username, "password": password}
    return client.post(API + "/auth/login", json=body, environ_base={"REMOTE_ADDR": address})


def refresh(actor: Actor, token: str | None = None) -> TestResponse:
    body = {"refresh_token": token or actor.tokens["refresh_token"]}
    return actor.client.post(API + "/auth/refresh", json=body)


def with_tokens(actor: Actor, tokens: dict[str, Any]) -> Actor:
    return Actor(actor.client, actor.username, actor.password, tokens)


def grace_is_over(psql: psycopg.Connection) -> None:
    psql.execute("UPDATE login_sessions SET rotated_at = rotated_at - interval '11 s'")


# ---------------------------------------------------------------------------------------------------------- login


def test_a_sign_in_gives_the_promised_tokens(client: FlaskClient, alice: Actor, psql: psycopg.Connection) -> None:
    body = answer(login(client, "alice", PASSWORD))
    assert body.keys() == TOKENS
    assert (body["token_type"], body["expires_in"], body["refresh_expires_in"]) == ("Bearer", 300, 1_209_600)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", body["access_token"])
    assert body["user_id"] == alice.user_id and body["session_id"] != alice.session_id
    stored = one(psql, "SELECT string_agg(s::text, '') FROM login_sessions AS s")
    assert body["refresh_token"] not in stored and body["access_token"] not in stored


def test_a_name_is_the_same_in_any_case(client: FlaskClient, alice: Actor) -> None:
    assert answer(login(client, "ALICE", PASSWORD))["user_id"] == alice.user_id


def test_a_session_carries_the_client_that_was_named(client: FlaskClient, alice: Actor, root: Actor) -> None:
    body = {"username": "alice", "password": PASSWORD, "client_id": "my app"}
    answer(client.post(API + "/auth/login", json=body, headers={"X-Forwarded-For": "203.0.113.1"}))
    newest = root.get("/admin/sessions").json["items"][0]
    assert (newest["client_id"], newest["ip"]) == ("my app", "127.0.0.1"), "no proxy is trusted here"


def test_an_unknown_name_a_wrong_password_and_a_disabled_user_get_the_same_answer(
    client: FlaskClient, make_user: MakeUser, alice: Actor, psql: psycopg.Connection
) -> None:
    make_user("out")
    psql.execute("UPDATE users SET disabled_at = now() WHERE username = 'out'")
    answers = [login(client, *pair) for pair in (("nobody", PASSWORD), ("alice", "wrong"), ("out", PASSWORD))]
    bodies = [problem(response, 401, "wrong_credentials") for response in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert dict(answers[0].headers) == dict(answers[1].headers) == dict(answers[2].headers)


def test_an_unknown_name_and_a_wrong_password_are_the_same_work(
    app: Flask, client: FlaskClient, alice: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same statements and the same hashes, so that the time tells nothing."""

    def noting_verify(*args: Any) -> bool:
        work.append(("argon2", None))
        return bool(verify(*args))

    verify = passwords._hasher.verify
    monkeypatch.setattr(passwords, "_hasher", SimpleNamespace(verify=noting_verify, hash=passwords._hasher.hash))
    with app.app_context():
        engine = db.engine
    found: list[list[str]] = []
    with statements(engine) as work:
        for name in ("nobody", "alice"):
            problem(login(client, name, "wrong"), 401, "wrong_credentials")
            found.append([what for what, _ in work])
            work.clear()
    assert found[0] == found[1]
    assert found[0].count("argon2") == 1 and len(found[0]) > 2


@pytest.mark.parametrize("name", ["alice", "nobody"])
def test_from_the_tenth_failure_of_a_name_on_it_is_throttled_from_everywhere(
    client: FlaskClient, make_user: MakeUser, psql: psycopg.Connection, name: str
) -> None:
    alice, bob = make_user("alice"), make_user("bob")
    for number in range(9):
        problem(login(client, name, "wrong", f"192.0.2.{number}"), 401, "wrong_credentials")
    problem(login(client, name.upper(), "wrong", "192.0.2.99"), 429, "too_many_attempts")
    problem(login(client, name, PASSWORD, "192.0.2.100"), 429, "too_many_attempts")
    answer(login(client, "bob", PASSWORD, "192.0.2.1"))
    assert alice.is_in() and bob.is_in(), "who is in stays in"
    psql.execute("UPDATE sign_in_attempts SET tried_at = tried_at - interval '5 min'")
    assert login(client, name, PASSWORD).status_code == (200 if name == "alice" else 401)


@pytest.mark.parametrize("first, other", [("192.0.2.7", "192.0.2.8"), ("2001:db8::1", "2001:db8:0:1::1")])
def test_from_the_tenth_failure_of_an_address_on_it_is_throttled_for_every_name(
    client: FlaskClient, alice: Actor, first: str, other: str
) -> None:
    for number in range(9):
        problem(login(client, f"user {number}", "wrong", first), 401, "wrong_credentials")
    problem(login(client, "one more", "wrong", first), 429, "too_many_attempts")
    problem(login(client, "alice", PASSWORD, first), 429, "too_many_attempts")
    if ":" in first:
        problem(login(client, "alice", PASSWORD, first + "234"), 429, "too_many_attempts")
    answer(login(client, "alice", PASSWORD, other))


def test_sign_ins_that_succeed_are_never_throttled(client: FlaskClient, alice: Actor) -> None:
    for _ in range(12):
        answer(login(client, "alice", PASSWORD))


# -------------------------------------------------------------------------------------------------------- refresh


def test_a_refresh_rotates_the_token_and_keeps_the_session(alice: Actor) -> None:
    body = answer(refresh(alice))
    assert body.keys() == TOKENS
    assert body["session_id"] == alice.session_id
    assert body["refresh_token"] != alice.tokens["refresh_token"]
    assert with_tokens(alice, body).is_in() and alice.is_in()
    assert answer(refresh(alice, body["refresh_token"]))["session_id"] == alice.session_id


def test_racing_tabs_get_the_same_successor_within_the_grace(alice: Actor) -> None:
    first, second = answer(refresh(alice)), answer(refresh(alice))
    assert first["refresh_token"] == second["refresh_token"]
    assert with_tokens(alice, second).is_in()
    third = answer(refresh(alice, first["refresh_token"]))
    assert third["refresh_token"] != first["refresh_token"]
    assert answer(refresh(alice, first["refresh_token"]))["refresh_token"] == third["refresh_token"]


def test_a_column_that_a_later_version_adds_leaves_what_is_prepared_good(
    alice: Actor, psql: psycopg.Connection
) -> None:
    for _ in range(3):
        alice = with_tokens(alice, refresh(alice).json)
    psql.execute("ALTER TABLE login_sessions ADD COLUMN later integer")
    psql.execute("ALTER TABLE users ADD COLUMN later integer")
    try:
        assert refresh(alice).status_code == login(alice.client, "alice", alice.password).status_code == 200
    finally:
        psql.execute("ALTER TABLE login_sessions DROP COLUMN later")
        psql.execute("ALTER TABLE users DROP COLUMN later")


@pytest.mark.parametrize(
    "how",
    [
        "after the grace",
        "before it, by a clock that stepped back",
        "older than the newest predecessor",
        "of the right family",
    ],
)
def test_a_reused_refresh_token_ends_the_session_at_once(alice: Actor, psql: psycopg.Connection, how: str) -> None:
    assert refreshing.GRACE_S == 10
    other, newest, stolen = alice.again(), answer(refresh(alice)), alice.tokens["refresh_token"]
    if how == "after the grace":
        grace_is_over(psql)
    elif how.startswith("before"):
        psql.execute("UPDATE login_sessions SET rotated_at = rotated_at + interval '1 h'")
    elif how == "of the right family":
        stolen = stolen[:24] + "A" * 40
    else:
        newest = answer(refresh(alice, newest["refresh_token"]))
    problem(refresh(alice, stolen), 401, "refresh_reused")
    problem(alice.get("/auth/me"), 401, "token_revoked")
    body = problem(with_tokens(alice, newest).get("/auth/me"), 401, "token_revoked")
    assert body["reason"] == "A refresh token was used twice"
    problem(refresh(alice, newest["refresh_token"]), 401, "token_revoked")
    assert other.is_in()


@pytest.mark.parametrize("end", ["logout", "force logout", "everyone", "deletion", "expiry"])
def test_a_grace_never_rescues_an_ended_session(alice: Actor, root: Actor, psql: psycopg.Connection, end: str) -> None:
    newest = answer(refresh(alice))
    if end == "logout":
        assert alice.post("/auth/logout").status_code == 204
    elif end == "force logout":
        receipt(root.delete(f"/admin/sessions/{alice.user_id}"))
    elif end == "everyone":
        receipt(root.delete("/admin/sessions"))
    elif end == "deletion":
        assert root.delete(f"/admin/users/{alice.user_id}").status_code == 204
    else:
        psql.execute("UPDATE login_sessions SET expires_at = now()")
    for token in (alice.tokens["refresh_token"], newest["refresh_token"]):
        problem(refresh(alice, token), 401, "refresh_rejected" if end == "expiry" else "token_revoked")


def test_an_unknown_refresh_token_is_refused(alice: Actor) -> None:
    problem(refresh(alice, "A" * 64), 401, "refresh_rejected")
    assert alice.is_in()


def test_a_refresh_brings_the_roles_of_now(alice: Actor, root: Actor) -> None:
    answer(root.put(f"/admin/users/{alice.user_id}/roles", json={"roles": ["viewer", "editor"]}))
    assert alice.get("/auth/me").json["roles"] == ["viewer"]
    assert with_tokens(alice, answer(refresh(alice))).get("/auth/me").json["roles"] == ["editor", "viewer"]


def test_no_refresh_makes_a_session_older_than_its_longest_age(alice: Actor, psql: psycopg.Connection) -> None:
    psql.execute("UPDATE login_sessions SET created_at = created_at - interval '90 days' + interval '60 s'")
    body = answer(refresh(alice))
    assert body["refresh_expires_in"] <= 60 and body["expires_in"] <= 60


def test_a_session_that_was_not_refreshed_in_time_is_over(alice: Actor, psql: psycopg.Connection) -> None:
    psql.execute("UPDATE login_sessions SET expires_at = clock_timestamp() - interval '1 s'")
    problem(refresh(alice), 401, "refresh_rejected")


def test_refresh_tokens_are_long_and_never_the_same(alice: Actor) -> None:
    tokens = [
        alice.tokens["refresh_token"],
        alice.again().tokens["refresh_token"],
        answer(refresh(alice))["refresh_token"],
    ]
    assert len(set(tokens)) == 3
    # 256 secret bits after what names the session.
    assert all(len(base64.urlsafe_b64decode(token + "==")) >= 32 for token in tokens)


@pytest.mark.parametrize(
    ("hops", "said", "read"),
    [
        (0, "198.51.100.7", "127.0.0.1"),
        (1, "198.51.100.7", "198.51.100.7"),
        (1, "198.51.100.7:5678", "198.51.100.7"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "[2001:db8::1]", "2001:db8::1"),
        (1, "[2001:db8::1]:443", "2001:db8::1"),
        (1, "[::ffff:198.51.100.7]:443", "198.51.100.7"),
        (1, "198.51.100.7:", None),
        (1, "[]:443", None),
        (1, "unknown", None),
    ],
)
def test_a_forwarded_address_is_believed_only_from_a_trusted_proxy(
    environment: dict[str, str], psql: psycopg.Connection, hops: int, said: str, read: str | None
) -> None:
    settings = from_environment({**environment, "LASTCALL_TRUSTED_PROXIES": str(hops)})
    with running_app(settings) as app:
        with app.app_context():
            users.create_user("alice", PASSWORD, ["viewer"])
        body = {"username": "alice", "password": PASSWORD}
        headers = {
            "X-Forwarded-For": f"203.0.113.9, {said}",
            "X-Real-IP": "203.0.113.9",
            "Forwarded": "for=203.0.113.9",
        }
        answer(app.test_client().post(API + "/auth/login", json=body, headers=headers))
    assert one(psql, "SELECT host(ip) FROM login_sessions") == read


# --------------------------------------------------------------------------------------------------- logout and me


def test_a_logout_ends_this_session_only_and_at_once(alice: Actor) -> None:
    other = alice.again()
    response = alice.post("/auth/logout")
    assert (response.status_code, response.data, response.headers["Cache-Control"]) == (204, b"", "no-store")
    problem(alice.get("/auth/me"), 401, "token_revoked")
    problem(refresh(alice), 401, "token_revoked")
    problem(alice.post("/auth/logout"), 401, "token_revoked")
    assert other.is_in() and answer(refresh(other))["session_id"] == other.session_id


def test_me_tells_the_user_his_roles_and_his_session(alice: Actor) -> None:
    body = answer(alice.get("/auth/me"))
    assert (body["user_id"], body["username"], body["roles"]) == (alice.user_id, "alice", ["viewer"])
    assert body["session"]["session_id"] == alice.session_id


def test_without_a_token_one_is_asked_for(client: FlaskClient) -> None:
    problem(client.get(API + "/auth/me"), 401, "token_missing")


# ------------------------------------------------------------------------------------------------------- password


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Busy(), 503, "database_busy"), (Revoked("user", "", session_id=""), 401, "token_revoked")],
)
def test_without_new_tokens_there_is_no_new_password_and_a_log_out_has_its_receipt(
    root: Actor, alice: Actor, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def renewed(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(refreshing, "renewed", renewed)
    given = {"current": PASSWORD, "new": "something else"}
    problem(alice.post("/auth/password", json=given), status, code)
    assert alice.is_in() and login(alice.client, "alice", PASSWORD).status_code == 200
    body = receipt(root.delete("/admin/sessions?keep_current=true"), scope="everyone")
    assert body.get("tokens") is None
    assert refresh(root).status_code == 200


def test_a_new_password_ends_every_other_session_and_gives_new_tokens(alice: Actor, client: FlaskClient) -> None:
    other = alice.again()
    body = answer(alice.post("/auth/password", json={"current": PASSWORD, "new": "something else"}))
    assert body.keys() == TOKENS and body["session_id"] == alice.session_id
    assert with_tokens(alice, body).is_in()
    for actor in (alice, other):
        problem(actor.get("/auth/me"), 401, "token_revoked")
        problem(refresh(actor), 401, "refresh_rejected" if actor is alice else "token_revoked")
    problem(login(client, "alice", PASSWORD), 401, "wrong_credentials")
    answer(login(client, "alice", "something else"))
    answer(refresh(alice, body["refresh_token"]))


def test_a_new_password_needs_the_current_one(alice: Actor, client: FlaskClient) -> None:
    for _ in range(9):
        wrong = alice.post("/auth/password", json={"current": "wrong", "new": "something else"})
        problem(wrong, 401, "wrong_credentials")
    problem(alice.post("/auth/password", json={"current": "wrong", "new": "x" * 8}), 429, "too_many_attempts")
    assert alice.is_in()


def test_a_schema_of_before_is_told(alice: Actor, psql: psycopg.Connection, caplog: pytest.LogCaptureFixture) -> None:
    psql.execute("ALTER FUNCTION sign_in_failures RENAME TO of_a_later_version")
    try:
        answer = problem(login(alice.client, "alice", alice.password), 503, "database_outdated")
    finally:
        psql.execute("ALTER FUNCTION of_a_later_version RENAME TO sign_in_failures")
    assert "init-db" in answer["detail"]
    assert "sign_in_failures" in caplog.text and "init-db" in caplog.text
    login(alice.client, "alice", alice.password).json["access_token"]
