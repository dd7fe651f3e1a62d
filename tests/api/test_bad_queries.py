"""Bad queries, and people who want what is not theirs: the stated 4xx as a problem, nothing changed, never a 5xx."""

from __future__ import annotations

import json

import pytest

from tests.actors import API, Actor
from tests.api.conftest import World, refused
from tests.conftest import PASSWORD

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
        "ip=fe80::1%25eth0", "ip=fe80::1%25eth0/64", "ip=1", "ip=",
        "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
        "since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z",
        "since=2026-01-01", "since=2026-01-01T00:00:00", "since=2026-13-01T00:00:00Z", "since=2026-02-30T00:00:00Z",
        "since=0001-01-01T00:00:00%2B23:59", "until=9999-12-31T23:59:59-23:59", "since=now", "since=1764000000",
        "state=sleeping", "state=", "state=active,ended", "sort=password_hash", "sort=id;drop", "sort=", "user=",
        "q=%00", "q=%07", "q=" + "x" * 201, "role=", "client=", "usr=alice", "user=alice&user=root", "keep_current=1",
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


ODD_TEXTS = [
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    "\N{PILE OF POO}" * 25,
    "x" * 4096,
    "{{7*7}}",
    "'; DROP TABLE",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
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
    for body in ({"username": "root", "password": [PASSWORD]}, {"username": "root", "password": PASSWORD, PASSWORD: 1}):
        response = world.root.client.post(API + "/auth/login", json=body)
        if PASSWORD not in body:
            refused(response, 400)
        assert response.status_code == 400


def test_a_user_cannot_reach_what_is_not_his(world: World) -> None:
    alice, root = world.alice, world.root
    refused(alice.delete(f"/me/sessions/{root.session_id}"), 404)
    refused(alice.delete(f"/admin/sessions/{alice.user_id}"), 403)
    refused(alice.put(f"/admin/users/{alice.user_id}/roles", json={"roles": ["admin"]}), 403)
    refused(root.delete(f"/admin/users/{root.user_id}"), 409)


def test_a_replacement_character_is_text_like_any_other(world: World) -> None:
    assert world.root.get("/admin/users?q=%EF%BF%BD").status_code == 200
    refused(world.root.get("/admin/users?q=%EF%BF"), 400)
