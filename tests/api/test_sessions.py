"""Who is in, and out with them: /admin/sessions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from blueprints import problems
from tests.actors import API, Actor
from tests.api.conftest import NOBODY, answer, problem, receipt
from tests.conftest import MakeUser
from tests.database.conftest import add_session, one


def listed(actor: Actor, query: str = "") -> list[str]:
    return [item["session_id"] for item in answer(actor.get(f"/admin/sessions{query}"))["items"]]


# --------------------------------------------------------------------------------------------------------- the list


def test_the_list_shows_the_active_sessions_newest_first(root: Actor, alice: Actor) -> None:
    body = answer(root.get("/admin/sessions"))
    assert [item["username"] for item in body["items"]] == ["alice", "root"]
    assert [item["current"] for item in body["items"]] == [False, True]
    assert {item["state"] for item in body["items"]} == {"active"}
    assert (body["next"], body["total"], body["total_is_exact"]) == (None, 2, True)
    secrets = [actor.tokens[name] for actor in (root, alice) for name in ("access_token", "refresh_token")]
    assert not any(secret in str(body) for secret in secrets)


@pytest.mark.parametrize("path", ["/admin/sessions", "/me/sessions"])
def test_a_list_that_has_not_changed_is_a_304_and_only_if_none_match_counts(root: Actor, path: str) -> None:
    first = root.get(path)
    assert root.get(path, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert answer(root.get(path, headers={"If-None-Match": '"another"'})) == first.json
    for asked in ('"another"', first.headers["ETag"], "*"):
        assert answer(root.get(path, headers={"If-Match": asked})) == first.json


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?user=alice", ["alice"]),
        ("?q=LIC", ["alice"]),
        ("?q=127.0.0", ["alice", "root"]),
        ("?q=%25", []),
        ("?q=_", []),
        ("?q=%5C", []),
        ("?role=admin", ["root"]),
        ("?client=api", ["alice", "root"]),
        ("?client=web", []),
        ("?ip=127.0.0.1", ["alice", "root"]),
        ("?ip=127.0.0.0/8&role=viewer", ["alice"]),
        ("?ip=::ffff:127.0.0.1", ["alice", "root"]),
        ("?ip=10.0.0.0/8", []),
        ("?since=2026-01-01T00:00:00Z", ["alice", "root"]),
        ("?until=2020-01-01T00:00:00%2B02:00", []),
        ("?since=2999-01-01T00:00:00Z", []),
        ("?state=ended", []),
        ("?state=expired", []),
        ("?state=all", ["alice", "root"]),
        ("?sort=created_at", ["root", "alice"]),
        ("?sort=username", ["alice", "root"]),
        ("?sort=-username", ["root", "alice"]),
    ],
)
def test_a_filter_and_a_sort_of_the_list(root: Actor, alice: Actor, query: str, expected: list[str]) -> None:
    body = answer(root.get(f"/admin/sessions{query}"))
    assert [item["username"] for item in body["items"]] == expected
    assert body["total"] == len(expected)


def test_the_pages_are_linked_and_visit_each_session_once(root: Actor, psql: psycopg.Connection) -> None:
    for _ in range(120):
        add_session(psql, root.user_id, client_id="x&y=z")
    path, visited = f"{API}/admin/sessions?client=x%26y%3Dz", []
    while True:
        response = root.client.get(path, headers={"Authorization": f"Bearer {root.token}"})
        visited += [item["session_id"] for item in answer(response)["items"]]
        assert response.json["total"] == 120
        if response.json["next"] is None:
            break
        assert response.headers["Link"].endswith('>; rel="next"')
        path = response.headers["Link"][1:].partition(">")[0]
    assert len(visited) == len(set(visited)) == 120
    assert len(listed(root)) == 50, "the default"
    assert len(listed(root, "?limit=200")) == 121


def test_an_ended_session_says_when_by_whom_and_why(root: Actor, alice: Actor) -> None:
    receipt(root.delete(f"/admin/sessions/{alice.user_id}", json={"reason": "stolen phone"}))
    ended = answer(root.get("/admin/sessions?state=ended"))["items"][0]
    assert (ended["username"], ended["state"]) == ("alice", "ended")
    assert (ended["ended_by"], ended["end_reason"]) == ("root", "stolen phone")
    assert ended["created_at"] < ended["ended_at"]


def test_the_sessions_of_one_user(root: Actor, alice: Actor) -> None:
    alice.again()
    body = answer(root.get(f"/admin/sessions/{alice.user_id}"))
    assert [item["user_id"] for item in body["items"]] == [alice.user_id] * 2
    assert answer(root.get(f"/admin/sessions/{alice.user_id}?user=root"))["items"] == []
    problem(root.get(f"/admin/sessions/{NOBODY}"), 404, "not_found")


def test_the_sessions_of_a_deleted_user_can_still_be_looked_at(root: Actor, alice: Actor) -> None:
    assert root.delete(f"/admin/users/{alice.user_id}").status_code == 204
    assert answer(root.get(f"/admin/sessions/{alice.user_id}"))["items"] == []
    assert len(answer(root.get(f"/admin/sessions/{alice.user_id}?state=ended"))["items"]) == 1


# -------------------------------------------------------------------------------------------------- ending sessions


def test_a_force_logout_is_gone_everywhere_and_says_why(root: Actor, alice: Actor) -> None:
    other, path = alice.again(), f"/admin/sessions/{alice.user_id}"
    expected: dict[str, Any] = {"scope": "user", "subject": alice.user_id, "reason": "You left", "sessions_ended": 2}
    receipt(root.delete(path, json={"reason": "You left"}), **expected, already_ended=False)
    for actor in (alice, other):
        assert problem(actor.get("/auth/me"), 401, "token_revoked")["reason"] == "You left"
    again = receipt(root.delete(path), already_ended=True, sessions_ended=0, reason=None)
    assert again["revocation_id"]
    assert root.is_in() and alice.again().is_in()
    problem(root.delete(f"/admin/sessions/{NOBODY}"), 404, "not_found")


def test_one_session_of_a_user_is_ended(root: Actor, alice: Actor) -> None:
    other, path = alice.again(), f"/admin/sessions/{alice.user_id}/{alice.session_id}"
    receipt(root.delete(path, json={"reason": "this one"}), scope="session", subject=alice.session_id, sessions_ended=1)
    assert problem(alice.get("/auth/me"), 401, "token_revoked")["reason"] == "this one"
    receipt(root.delete(path), already_ended=True)
    assert other.is_in()
    problem(root.delete(f"/admin/sessions/{root.user_id}/{other.session_id}"), 404, "not_found")
    problem(root.delete(f"/admin/sessions/{alice.user_id}/{NOBODY}"), 404, "not_found")
    assert other.is_in()


def test_everyone_is_logged_out_the_caller_too(root: Actor, alice: Actor) -> None:
    body = receipt(root.delete("/admin/sessions", json={"reason": "incident"}), scope="everyone", subject="")
    assert body["sessions_ended"] == 2 and "tokens" not in body
    for actor in (root, alice):
        assert problem(actor.get("/auth/me"), 401, "token_revoked")["reason"] == "incident"
        assert actor.again().is_in()
    assert len(listed(root.again())) == 3, "who signed in afterwards"


def test_whoever_keeps_himself_gets_new_tokens_in_the_receipt(root: Actor, alice: Actor) -> None:
    other = root.again()
    body = receipt(root.delete("/admin/sessions?keep_current=true"), scope="everyone", sessions_ended=2)
    new = Actor(root.client, "root", root.password, body["tokens"])
    assert new.session_id == root.session_id and new.is_in()
    assert not root.is_in() and not other.is_in() and not alice.is_in()
    assert listed(new) == [root.session_id]
    refreshed = new.client.post(API + "/auth/refresh", json={"refresh_token": new.tokens["refresh_token"]})
    assert answer(refreshed)["session_id"] == root.session_id
    stale = root.client.post(API + "/auth/refresh", json={"refresh_token": root.tokens["refresh_token"]})
    assert stale.status_code == 401


def test_a_filter_ends_just_what_the_list_shows(root: Actor, alice: Actor, make_user: MakeUser) -> None:
    bob = make_user("bob", "viewer")
    assert len(listed(root, "?role=viewer&q=ali")) == 1
    body = receipt(root.delete("/admin/sessions?role=viewer&q=ali"), scope="filter", sessions_ended=1)
    assert "tokens" not in body
    assert not alice.is_in() and bob.is_in() and root.is_in()
    receipt(root.delete("/admin/sessions?role=viewer&q=ali"), already_ended=True, sessions_ended=0)


def test_a_filter_that_matches_the_caller_may_keep_him(root: Actor, alice: Actor) -> None:
    receipt(root.delete("/admin/sessions?client=api&keep_current=true"), sessions_ended=1)
    assert root.is_in() and not alice.is_in()
    receipt(root.delete("/admin/sessions?client=api"), sessions_ended=1)
    assert not root.is_in()


def test_who_was_revoked_by_a_filter_is_told_the_reason_as_well(root: Actor, alice: Actor) -> None:
    receipt(root.delete("/admin/sessions?role=viewer", json={"reason": "new terms"}))
    assert problem(alice.get("/auth/me"), 401, "token_revoked").get("reason") == "new terms"


def test_who_prefers_not_to_wait_may_say_so_in_a_list_and_with_parameters(root: Actor, alice: Actor) -> None:
    def answered(*preferences: str) -> int:
        headers = [("Authorization", f"Bearer {root.token}"), *(("Prefer", preference) for preference in preferences)]
        return root.client.delete(f"{API}/admin/sessions/{alice.user_id}", headers=headers).status_code

    for preference in ("respond-async", "Respond-Async; q=1", 'wait="a, b";c="d;e" , respond-async;wait=1'):
        assert answered(preference) == 202
    assert answered("wait=10", "respond-async") == 202, "in the second of two headers"
    for preference in ("wait=10", "no-respond-async", "wait; respond-async", 'wait="1, respond-async, 2"'):
        assert answered(preference) == 200


def test_without_waiting_the_answer_is_a_202_that_promises_nothing(root: Actor, alice: Actor) -> None:
    response = root.delete(f"/admin/sessions/{alice.user_id}", headers={"Prefer": "respond-async"})
    body = answer(response, 202)
    assert body["in_force"] is False and body["sessions_ended"] == 1
    assert response.headers["Preference-Applied"] == "respond-async"
    receipt(root.delete(f"/admin/sessions/{alice.user_id}"), already_ended=True)
    assert not alice.is_in()


@pytest.mark.parametrize("scope", ["user", "session", "everyone", "filter"])
def test_the_cutoff_in_the_receipt_is_the_moment_of_the_revocation(
    root: Actor, alice: Actor, psql: psycopg.Connection, scope: str
) -> None:
    before: datetime = one(psql, "SELECT clock_timestamp()")
    path = {
        "user": f"/{alice.user_id}",
        "session": f"/{alice.user_id}/{alice.session_id}",
        "everyone": "?keep_current=true",
        "filter": "?user=alice",
    }[scope]
    cutoff = datetime.fromisoformat(receipt(root.delete(f"/admin/sessions{path}"), scope=scope)["cutoff"])
    assert before <= cutoff <= before + timedelta(seconds=60)


# ------------------------------------------------------------------------------------------------------ admins only


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/sessions"),
        ("GET", "/admin/sessions/{id}"),
        ("DELETE", "/admin/sessions"),
        ("DELETE", "/admin/sessions/{id}"),
        ("DELETE", "/admin/sessions/{id}/{sid}"),
        ("GET", "/admin/revocations"),
        ("POST", "/admin/revocations"),
        ("GET", "/admin/users"),
        ("POST", "/admin/users"),
        ("GET", "/admin/users/{id}"),
        ("PATCH", "/admin/users/{id}"),
        ("DELETE", "/admin/users/{id}"),
        ("PUT", "/admin/users/{id}/roles"),
        ("GET", "/admin/workers"),
        ("GET", "/admin/settings"),
        ("GET", "/admin/events"),
    ],
)
def test_nobody_but_an_admin_gets_in(root: Actor, alice: Actor, method: str, path: str) -> None:
    path = path.format(id=root.user_id, sid=root.session_id)
    problem(alice.request(method, path), 403, "forbidden")
    problem(alice.client.open(API + path, method=method), 401, "token_missing")
    assert root.is_in() and alice.is_in()


def test_a_dead_token_that_is_tried_again_and_again_costs_no_query_each_time(
    root: Actor, alice: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt(root.delete(f"/admin/sessions/{alice.user_id}", json={"reason": "new terms"}))
    assert problem(alice.get("/auth/me"), 401, "token_revoked")["reason"] == "new terms"
    monkeypatch.setattr(problems, "public_reason", lambda *_: pytest.fail("asked again"))
    assert problem(alice.get("/auth/me"), 401, "token_revoked")["reason"] == "new terms"
