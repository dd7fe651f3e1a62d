"""Users and their roles: /admin/users. What takes something away ends the sessions; the last admin stays."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.actors import API, Actor
from tests.api.conftest import NOBODY, answer, problem
from tests.conftest import PASSWORD, MakeUser

FIELDS = ["user_id", "username", "roles", "created_at", "disabled_at", "active_sessions"]


def enters(client: FlaskClient, username: str, password: str = PASSWORD) -> int:
    return client.post(API + "/auth/login", json={"username": username, "password": password}).status_code


def history(root: Actor) -> list[tuple[str, str, int, str | None]]:
    rows = answer(root.get("/admin/revocations"))["items"]
    return [(row["trigger"], row["subject_name"], row["sessions_ended"], row["reason"]) for row in rows]


def test_a_user_is_made_and_signs_in(root: Actor, client: FlaskClient) -> None:
    response = root.post("/admin/users", json={"username": "bob", "password": PASSWORD, "roles": ["b", "a", "b"]})
    body = answer(response, 201)
    assert list(body) == FIELDS
    assert (body["username"], body["roles"], body["disabled_at"], body["active_sessions"]) == (
        "bob",
        ["a", "b"],
        None,
        0,
    )
    assert response.headers["Location"] == f"/api/v1/admin/users/{body['user_id']}"
    assert enters(client, "bob") == 200
    assert answer(root.get(f"/admin/users/{body['user_id']}")) == {**body, "active_sessions": 1}
    assert PASSWORD not in response.text


def test_a_name_is_taken_in_any_case(root: Actor, alice: Actor) -> None:
    problem(root.post("/admin/users", json={"username": "ALICE", "password": PASSWORD}), 409, "username_taken")
    assert len(answer(root.get("/admin/users"))["items"]) == 2


def test_users_are_listed_by_name_filtered_and_in_pages(root: Actor, make_user: MakeUser) -> None:
    for name in ("Zoe", "ann", "Bob", "100%"):
        make_user(name, "viewer")

    def names(query: str) -> list[str]:
        return [item["username"] for item in answer(root.get(f"/admin/users{query}"))["items"]]

    assert names("") == ["100%", "ann", "Bob", "root", "Zoe"]
    assert names("?q=o") == ["Bob", "root", "Zoe"]
    assert names("?q=%25") == ["100%"]
    assert names("?q=_") == []
    assert names("?role=admin") == ["root"]
    first = root.get("/admin/users?limit=2&role=viewer")
    assert 'rel="next"' in first.headers["Link"]
    assert names(f"?limit=2&role=viewer&cursor={answer(first)['next']}") == ["Bob", "Zoe"]
    assert [item["active_sessions"] for item in first.json["items"]] == [1, 1]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (("PATCH", "", {"disabled": True, "reason": "why"}), "user_disabled"),
        (("PATCH", "", {"password": "another password", "reason": "why"}), "password_changed"),
        (("DELETE", "", {"reason": "why"}), "user_deleted"),
        (("PUT", "/roles", {"roles": [], "reason": "why"}), "role_lost"),
        (("PUT", "/roles", {"roles": ["editor"], "reason": "why"}), "role_lost"),
        (("PUT", "/roles", {"roles": [], "revoke": True, "reason": "why"}), "role_lost"),
    ],
)
def test_what_is_taken_away_ends_the_sessions_at_once(
    root: Actor, alice: Actor, change: tuple[str, str, dict[str, Any]], cause: str
) -> None:
    method, path, body = change
    other = alice.again()
    response = root.request(method, f"/admin/users/{alice.user_id}{path}", json=body)
    assert response.status_code in (200, 204)
    for actor in (alice, other):
        assert problem(actor.get("/auth/me"), 401, "token_revoked")["reason"] == "why"
        refreshed = actor.client.post(API + "/auth/refresh", json={"refresh_token": actor.tokens["refresh_token"]})
        problem(refreshed, 401, "token_revoked")
    if response.status_code == 200:
        assert answer(response)["active_sessions"] == 0
    assert history(root) == [(cause, "alice", 2, "why")]
    assert root.is_in()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/roles", {"roles": ["viewer", "editor"]}),
        ("PUT", "/roles", {"roles": ["viewer"]}),
        ("PUT", "/roles", {"roles": [], "revoke": False}),
        ("PATCH", "", {"disabled": False}),
    ],
)
def test_what_takes_nothing_away_ends_nothing(
    root: Actor, alice: Actor, method: str, path: str, body: dict[str, Any]
) -> None:
    changed = answer(root.request(method, f"/admin/users/{alice.user_id}{path}", json=body))
    assert changed["roles"] == sorted(body.get("roles", ["viewer"]))
    assert changed["active_sessions"] == 1
    assert alice.is_in() and history(root) == []


def test_the_default_for_a_lost_role_is_a_setting(environment: dict[str, str], request: pytest.FixtureRequest) -> None:
    environment["LASTCALL_REVOKE_ON_ROLE_REMOVAL"] = "false"
    root, alice = request.getfixturevalue("root"), request.getfixturevalue("alice")
    answer(root.put(f"/admin/users/{alice.user_id}/roles", json={"roles": []}))
    assert alice.is_in()
    answer(root.put(f"/admin/users/{alice.user_id}/roles", json={"roles": ["a"]}))
    answer(root.put(f"/admin/users/{alice.user_id}/roles", json={"roles": [], "revoke": True}))
    assert not alice.is_in()


def test_a_disabled_user_cannot_sign_in_until_he_is_enabled(root: Actor, alice: Actor, client: FlaskClient) -> None:
    disabled = answer(root.patch(f"/admin/users/{alice.user_id}", json={"disabled": True}))
    assert disabled["disabled_at"].endswith("Z")
    assert enters(client, "alice") == 401
    assert answer(root.patch(f"/admin/users/{alice.user_id}", json={"disabled": True})) == disabled
    enabled = answer(root.patch(f"/admin/users/{alice.user_id}", json={"disabled": False}))
    assert enabled["disabled_at"] is None
    assert enters(client, "alice") == 200
    assert not alice.is_in(), "what was revoked stays revoked"


def test_a_new_password_is_the_one_that_opens(root: Actor, alice: Actor, client: FlaskClient) -> None:
    answer(root.patch(f"/admin/users/{alice.user_id}", json={"password": "another password"}))
    assert (enters(client, "alice"), enters(client, "alice", "another password")) == (401, 200)


def test_a_deleted_user_is_refused_at_once(root: Actor, alice: Actor, client: FlaskClient) -> None:
    path = f"/admin/users/{alice.user_id}"
    response = root.delete(path)
    assert (response.status_code, response.data, response.headers["Cache-Control"]) == (204, b"", "no-store")
    problem(alice.get("/auth/me"), 401, "token_revoked")
    assert enters(client, "alice") == 401
    for gone in (root.get(path), root.delete(path), root.patch(path, json={"disabled": True})):
        problem(gone, 404, "not_found")
    namesake = root.post("/admin/users", json={"username": "alice", "password": PASSWORD})
    assert answer(namesake, 201)["user_id"] != alice.user_id
    assert not alice.is_in()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"disabled": True}),
        ("DELETE", "", None),
        ("PUT", "/roles", {"roles": []}),
    ],
)
def test_nobody_is_not_found(root: Actor, method: str, path: str, body: Any) -> None:
    problem(root.request(method, f"/admin/users/{NOBODY}{path}", json=body), 404, "not_found")
    problem(root.request(method, f"/admin/users/nobody{path}", json=body), 404, "not_found")


TAKEN_FROM_AN_ADMIN = [
    ("DELETE", "", None),
    ("PATCH", "", {"disabled": True}),
    ("PUT", "/roles", {"roles": ["viewer"]}),
    ("PUT", "/roles", {"roles": [], "revoke": False}),
]


@pytest.mark.parametrize(("method", "path", "body"), TAKEN_FROM_AN_ADMIN)
def test_the_last_admin_stays(root: Actor, make_user: MakeUser, method: str, path: str, body: Any) -> None:
    disabled = make_user("disabled", "admin")
    answer(root.patch(f"/admin/users/{disabled.user_id}", json={"disabled": True}))
    problem(root.request(method, f"/admin/users/{root.user_id}{path}", json=body), 409, "last_admin")
    assert root.is_in()
    assert answer(root.get(f"/admin/users/{root.user_id}"))["roles"] == ["admin"]


@pytest.mark.parametrize(("method", "path", "body"), TAKEN_FROM_AN_ADMIN)
def test_an_admin_may_go_when_another_stays(
    root: Actor, make_user: MakeUser, method: str, path: str, body: Any
) -> None:
    other = make_user("other", "admin")
    response = root.request(method, f"/admin/users/{other.user_id}{path}", json=body)
    assert response.status_code in (200, 204), response.text
    problem(root.delete(f"/admin/users/{root.user_id}"), 409, "last_admin")
    if body is None or body.get("revoke", True):
        problem(other.get("/admin/users"), 401, "token_revoked")


def test_the_last_admin_may_change_his_own_password(root: Actor) -> None:
    answer(root.patch(f"/admin/users/{root.user_id}", json={"password": "another password"}))
    assert not root.is_in()


@pytest.mark.parametrize("body", [{}, {"reason": "why"}, {"disabled": None, "password": None}])
def test_a_change_of_nothing_is_refused(root: Actor, alice: Actor, body: dict[str, Any]) -> None:
    problem(root.patch(f"/admin/users/{alice.user_id}", json=body), 400, "bad_request")
    assert alice.is_in()
