"""Bad headers and bodies: the stated 4xx as a problem, nothing changed, never a 5xx, and nothing of it repeated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.actors import API
from tests.api.conftest import World, refused
from tests.conftest import PASSWORD

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
    "a byte order mark": b'\xef\xbb\xbf{"reason": "x"}',
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
        ("POST", LOGIN, {"username": "root", "password": PASSWORD, "remember": True}),
        ("POST", LOGIN, {"username": ["root"], "password": PASSWORD}),
        ("POST", LOGIN, {"username": {"a": 1}, "password": PASSWORD}),
        ("POST", LOGIN, {"username": None, "password": PASSWORD}),
        ("POST", LOGIN, {"username": 1, "password": True}),
        ("POST", LOGIN, {"username": "x" * 101, "password": PASSWORD}),
        ("POST", LOGIN, {"username": "", "password": PASSWORD}),
        ("POST", LOGIN, {"username": "root", "password": "x" * 1025}),
        ("POST", LOGIN, {"username": "root", "password": PASSWORD, "client_id": ""}),
        ("POST", LOGIN, {"username": "root", "password": PASSWORD, "client_id": "x" * 101}),
        ("POST", "/auth/refresh", {"refresh_token": 1}),
        ("POST", "/auth/refresh", {"refresh_token": "x" * 9000}),
        ("POST", "/auth/password", {"current": PASSWORD}),
        ("POST", "/auth/password", {"current": PASSWORD, "new": "short"}),
        ("POST", "/auth/password", {"current": PASSWORD, "new": "x" * 1025}),
        ("POST", USERS, {"username": "new", "password": "short"}),
        ("POST", USERS, {"username": " new", "password": PASSWORD}),
        ("POST", USERS, {"username": "n\new", "password": PASSWORD}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "roles": "admin"}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "roles": [""]}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "roles": ["x" * 65]}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "roles": ["a b"]}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "roles": ["a"] * 33}),
        ("POST", USERS, {"username": "new", "password": PASSWORD, "role": ["admin"]}),
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
