"""Bad input: the stated 4xx as a problem, nothing changed, never a 5xx, and nothing of it repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from werkzeug.test import TestResponse

from models import user as users
from settings import from_environment
from tests.actors import API, Actor
from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres

TABLES = ("users", "user_roles", "login_sessions", "cutoffs", "revocations", "everyone")
SECRET = "correct horse battery"


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
    assert SECRET not in response.text
    return body


# ---------------------------------------------------------------------------------------------------------- headers

GOOD = "<a good token>"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "token_missing"),
        ("", "token_missing"),
        ("Basic YWxpY2U6c2VjcmV0", "token_missing"),
        (f"Token {GOOD}", "token_missing"),
        (f"Bearer\t{GOOD}", "token_missing"),
        (GOOD, "token_missing"),
        ("Bearer", "token_malformed"),
        ("Bearer ", "token_malformed"),
        (f"Bearer  {GOOD}", "token_malformed"),
        (f"Bearer {GOOD} {GOOD}", "token_malformed"),
        (f"Bearer {GOOD},Bearer {GOOD}", "token_malformed"),
        (f"Bearer {GOOD}\t", "token_malformed"),
        (f"Bearer {GOOD}=", "token_malformed"),
        (f"Bearer {GOOD}.x", "token_malformed"),
        (f'Bearer "{GOOD}"', "token_malformed"),
        ("Bearer " + "A" * 65_536, "token_malformed"),
        ("Bearer " + "A" * 8_193, "token_malformed"),
        ("Bearer \xe9\xff", "token_malformed"),
        ("Bearer a.b.c", "token_malformed"),
        ("Bearer ..", "token_malformed"),
        ("Bearer eyJhbGciOiJub25lIn0.e30.", "token_malformed"),
    ],
)
@pytest.mark.parametrize("path", ["/auth/me", "/admin/sessions"])
def test_an_authorization_header_that_is_none(world: World, path: str, header: str | None, code: str) -> None:
    headers = {} if header is None else {"Authorization": header.replace(GOOD, world.root.token)}
    body = refused(world.root.client.get(API + path, headers=headers), 401)
    assert body["code"] == code


def test_two_authorization_headers_are_refused(world: World) -> None:
    twice = [("Authorization", f"Bearer {world.root.token}")] * 2
    refused(world.root.client.get(API + "/auth/me", headers=twice), 401)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_the_scheme_is_read_in_any_case(world: World, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {world.alice.token}"}
    assert world.alice.client.get(API + "/auth/me", headers=headers).status_code == 200


def test_a_refresh_token_is_no_access_token_and_the_other_way_round(world: World) -> None:
    client, tokens = world.alice.client, world.alice.tokens
    refused(client.get(API + "/auth/me", headers={"Authorization": f"Bearer {tokens['refresh_token']}"}), 401)
    refused(client.post(API + "/auth/refresh", json={"refresh_token": tokens["access_token"]}), 401)


# ----------------------------------------------------------------------------------------------------------- bodies

WITH_BODY = [
    ("POST", "/auth/login"),
    ("POST", "/auth/refresh"),
    ("POST", "/auth/password"),
    ("POST", "/admin/revocations"),
    ("POST", "/admin/users"),
    ("PATCH", "/admin/users/{id}"),
    ("PUT", "/admin/users/{id}/roles"),
]
WITH_REASON = [
    ("DELETE", "/admin/sessions/{id}"),
    ("DELETE", "/admin/sessions/{id}/{sid}"),
    ("DELETE", "/admin/sessions"),
    ("DELETE", "/admin/users/{id}"),
    ("DELETE", "/me/sessions"),
]
BODIES: dict[str, bytes] = {
    "not JSON": b"username=root",
    "cut short": b'{"username": "root"',
    "two documents": b"{} {}",
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"1",
    "an unknown field": b'{"surprise": 1}',
    "deep nesting": b'{"username": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "a lone surrogate": b'{"username": "\\ud800", "reason": "\\udfff"}',
    "a raw surrogate": b'{"username": "\xed\xa0\x80"}',
    "a NUL": b'{"username": "ro\\u0000ot", "reason": "\\u0000"}',
    "a raw NUL": b'{"username": "ro\x00ot"}',
    "a name twice": b'{"username": "a", "username": "b"}',
    "NaN": b'{"reason": NaN}',
    "infinity": b'{"reason": Infinity}',
    "5,000 digits": b'{"reason": ' + b"1" * 5000 + b"}",
    "1e400": b'{"reason": 1e400}',
    "UTF-16": '{"reason": "x"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}x",
    "no UTF-8": b'{"reason": "\xff"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(("method", "path"), WITH_BODY + WITH_REASON)
def test_a_body_that_is_none(world: World, method: str, path: str, body: bytes) -> None:
    refused(world.root.request(method, world.path(path), data=body, content_type="application/json"), 400)


@pytest.mark.parametrize(("method", "path"), WITH_BODY + WITH_REASON)
def test_a_body_that_is_too_large(world: World, method: str, path: str) -> None:
    body = b'{"reason": "' + b"x" * 2_000_000 + b'"}'
    refused(world.root.request(method, world.path(path), data=body, content_type="application/json"), 413)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
@pytest.mark.parametrize(("method", "path"), WITH_BODY + WITH_REASON)
def test_a_body_of_another_type(world: World, method: str, path: str, content_type: str | None) -> None:
    refused(world.root.request(method, world.path(path), data=b"{}", content_type=content_type), 400, 415)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_that_is_missing(world: World, method: str, path: str) -> None:
    refused(world.root.request(method, world.path(path)), 400)
    refused(world.root.request(method, world.path(path), json={}), 400)


LOGIN, USERS, ROLES, REVOKE = "/auth/login", "/admin/users", "/admin/users/{id}/roles", "/admin/revocations"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", LOGIN, {"username": "root", "password": SECRET, "remember": True}),
        ("POST", LOGIN, {"username": ["root"], "password": SECRET}),
        ("POST", LOGIN, {"username": {"a": 1}, "password": SECRET}),
        ("POST", LOGIN, {"username": None, "password": SECRET}),
        ("POST", LOGIN, {"username": 1, "password": True}),
        ("POST", LOGIN, {"username": "x" * 101, "password": SECRET}),
        ("POST", LOGIN, {"username": "", "password": SECRET}),
        ("POST", LOGIN, {"username": "root", "password": "x" * 1025}),
        ("POST", LOGIN, {"username": "root", "password": SECRET, "client_id": ""}),
        ("POST", LOGIN, {"username": "root", "password": SECRET, "client_id": "x" * 101}),
        ("POST", "/auth/refresh", {"refresh_token": 1}),
        ("POST", "/auth/refresh", {"refresh_token": "x" * 9000}),
        ("POST", "/auth/password", {"current": SECRET}),
        ("POST", "/auth/password", {"current": SECRET, "new": "short"}),
        ("POST", "/auth/password", {"current": SECRET, "new": "x" * 1025}),
        ("POST", USERS, {"username": "new", "password": "short"}),
        ("POST", USERS, {"username": " new", "password": SECRET}),
        ("POST", USERS, {"username": "n\new", "password": SECRET}),
        ("POST", USERS, {"username": "new", "password": SECRET, "roles": "admin"}),
        ("POST", USERS, {"username": "new", "password": SECRET, "roles": [""]}),
        ("POST", USERS, {"username": "new", "password": SECRET, "roles": ["x" * 65]}),
        ("POST", USERS, {"username": "new", "password": SECRET, "roles": ["a b"]}),
        ("POST", USERS, {"username": "new", "password": SECRET, "roles": ["a"] * 33}),
        ("POST", USERS, {"username": "new", "password": SECRET, "role": ["admin"]}),
        ("PATCH", USERS + "/{id}", {"disabled": "true"}),
        ("PATCH", USERS + "/{id}", {"disabled": 1}),
        ("PATCH", USERS + "/{id}", {"username": "other"}),
        ("PATCH", USERS + "/{id}", {"disabled": True, "reason": "x" * 501}),
        ("PUT", ROLES, {"roles": None}),
        ("PUT", ROLES, {"roles": [], "revoke": "no"}),
        ("PUT", ROLES, {"roles": [["admin"]]}),
        ("DELETE", "/admin/sessions/{id}", {"reason": "x" * 501}),
        ("DELETE", "/admin/sessions/{id}", {"reason": ["x"]}),
        ("DELETE", "/admin/sessions/{id}", {"reasons": "x"}),
        ("DELETE", "/admin/sessions", {"user": "alice"}),
        ("DELETE", "/me/sessions/{sid}", {"reason": "x\x07"}),
        ("POST", "/auth/logout", {"everywhere": True}),
    ],
)
def test_a_field_that_does_not_fit(world: World, method: str, path: str, body: dict[str, Any]) -> None:
    response = world.root.request(method, world.path(path), json=body)
    refused(response, 401 if path == "/auth/refresh" and body != {"refresh_token": 1} else 400, 400)


# ---------------------------------------------------------------------------------------------------------- queries

LISTS = ["/admin/sessions", "/admin/sessions/{root}", "/admin/revocations", "/admin/users", "/me/sessions"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=-1", "limit=1e9", "limit=ten", "limit=", "limit=%2B1", "limit=1.0", "limit=1,2",
        "limit=99999999999999999999", "limit=%D9%A1", "limit=1&limit=1", "cursor=", "cursor=x", "cursor=" + "A" * 3000,
        "cursor=WyJhIiwiYiJd.forged", "offset=1", "LIMIT=1", "x=%00", "x=%FF", "limit=1%00",
    ],
)  # fmt: skip
def test_a_page_that_is_none(world: World, path: str, query: str) -> None:
    refused(world.root.get(f"{world.path(path)}?{query}"), 400)


@pytest.mark.parametrize(
    "query",
    [
        "ip=10.0.0.0/129", "ip=10.0.0.0/33", "ip=2001:db8::/129", "ip=10.0.0", "ip=nowhere", "ip=10.0.0.1/8/8",
        "ip=fe80::1%25eth0", "ip=fe80::1%25eth0/64", "ip=1", "ip=", "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
        "since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z", "since=2026-01-01", "since=2026-01-01T00:00:00",
        "since=2026-13-01T00:00:00Z", "since=2026-02-30T00:00:00Z", "since=0001-01-01T00:00:00%2B23:59",
        "until=9999-12-31T23:59:59-23:59", "since=now", "since=1764000000", "state=sleeping", "state=", "state=active,ended",
        "sort=password_hash", "sort=id;drop", "sort=", "user=", "q=%00", "q=%FF", "q=" + "x" * 201, "role=", "client=",
        "usr=alice", "user=alice&user=root", "keep_current=true",
    ],
)  # fmt: skip
def test_a_filter_that_is_none(world: World, query: str) -> None:
    refused(world.root.get(f"/admin/sessions?{query}"), 400)
    if "sort" not in query and "keep_current" not in query:
        refused(world.root.delete(f"/admin/sessions?{query}"), 400)


@pytest.mark.parametrize(
    "query",
    ["keep_current=yes", "keep_current=1", "keep_current=True", "keep_current=", "keepcurrent=true", "state=all",
     "state=ended", "limit=1", "sort=username", "keep_current=true&keep_current=true", "dry_run=true", "reason=x"],
)  # fmt: skip
def test_a_typo_never_widens_what_is_revoked(world: World, query: str) -> None:
    refused(world.root.delete(f"/admin/sessions?{query}"), 400)
    if not query.startswith("state"):
        refused(world.root.delete(f"/me/sessions?{query}"), 400)
    if not query.startswith("keep_current"):
        refused(world.root.delete(f"/admin/sessions/{world.alice.user_id}?{query}"), 400)


def test_a_cursor_of_another_list_or_another_filter_is_refused(world: World) -> None:
    for query, other in (
        ("limit=1", "limit=1&q=a"),
        ("limit=1&sort=username", "limit=1"),
        ("limit=1", "limit=1&state=all"),
    ):
        cursor = world.root.get(f"/admin/sessions?{query}").json["next"]
        assert world.root.get(f"/admin/sessions?{query}&cursor={cursor}").status_code == 200
        for path in (
            f"/admin/sessions?{other}",
            "/admin/users?limit=1",
            "/admin/revocations?limit=1",
            "/me/sessions?limit=1",
        ):
            assert refused(world.root.get(f"{path}&cursor={cursor}"), 400)["code"] == "bad_cursor"
        for forged in (cursor[:-1], cursor[1:], cursor + "A", cursor.swapcase(), cursor.replace(".", "..")):
            assert refused(world.root.get(f"/admin/sessions?{query}&cursor={forged}"), 400)["code"] == "bad_cursor"


@pytest.mark.parametrize("query", ["q=%25", "q=_", "q=%5C", "q=%27%20OR%201=1--", "user=%25", "role=%25", "client=_"])
def test_what_means_something_elsewhere_is_literal_here(world: World, query: str) -> None:
    response = world.root.get(f"/admin/sessions?{query}")
    assert response.status_code == 200 and response.json["items"] == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/.well-known/jwks.json"])
def test_what_is_for_anyone_bears_with_any_header(world: World, path: str) -> None:
    for header in ("Bearer x", "Basic x", "\xff", "A" * 9000):
        assert world.root.client.get(path, headers={"Authorization": header}).status_code == 200


# ----------------------------------------------------------------------------------------------------------- people


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "\u202egnp.exe", "\N{PILE OF POO}" * 25, "x" * 4096, "{{7*7}}", "'; DROP TABLE"],
)
def test_odd_text_is_kept_as_text(shared_world: World, text: str) -> None:
    world, agent = shared_world, text.encode("utf-8").decode("latin-1")
    body = {"username": "alice", "password": PASSWORD, "client_id": text[:100]}
    tokens = world.alice.client.post(API + "/auth/login", json=body, headers={"User-Agent": agent})
    assert tokens.status_code == 200
    someone = Actor(world.alice.client, "alice", PASSWORD, tokens.json)
    shown = someone.get("/me/sessions?limit=1").json["items"][0]
    assert (shown["user_agent"], shown["client_id"]) == (text[:4096], text[:100])
    ended = someone.delete(f"/me/sessions/{someone.session_id}", json={"reason": text[:500]})
    assert ended.status_code == 200 and ended.json["reason"] == text[:500]
    refusal = someone.get("/auth/me")
    assert refusal.status_code == 401 and refusal.json["reason"] == text[:500]
    assert json.loads(refusal.text) == refusal.json and "\n" not in refusal.headers["WWW-Authenticate"]


def test_a_password_is_never_repeated_in_a_refusal(world: World) -> None:
    for body in ({"username": "root", "password": [SECRET]}, {"username": "root", "password": SECRET, SECRET: 1}):
        response = world.root.client.post(API + "/auth/login", json=body)
        if SECRET not in body:
            refused(response, 400)
        assert response.status_code == 400


def test_a_user_cannot_reach_what_is_not_his(world: World) -> None:
    alice, root = world.alice, world.root
    refused(alice.delete(f"/me/sessions/{root.session_id}"), 404)
    refused(alice.delete(f"/admin/sessions/{alice.user_id}"), 403)
    refused(alice.put(f"/admin/users/{alice.user_id}/roles", json={"roles": ["admin"]}), 403)
    refused(root.delete(f"/admin/users/{root.user_id}"), 409)
