"""One's own sessions: /me/sessions. Nobody sees or ends what is not his."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from blueprints.server import Server
from lastcall.tokens import issue
from tests.actors import Actor
from tests.api.conftest import NOBODY, answer, problem, receipt

FIELDS = [
    "session_id", "user_id", "username", "roles", "client_id", "ip", "last_ip", "user_agent", "device", "created_at",
    "last_seen_at", "token_expires_at", "expires_at", "state", "ended_at", "ended_by", "end_reason", "current",
]  # fmt: skip


def test_one_sees_ones_own_active_sessions_newest_first(alice: Actor, root: Actor) -> None:
    second, third = alice.again(), alice.again()
    receipt(second.delete(f"/me/sessions/{third.session_id}"))
    body = answer(second.get("/me/sessions"))
    assert [item["session_id"] for item in body["items"]] == [second.session_id, alice.session_id]
    assert [item["current"] for item in body["items"]] == [True, False]
    assert body["next"] is None and body["total"] == 2
    assert list(body["items"][0]) == FIELDS
    assert all(
        item[name].endswith("Z") for item in body["items"] for name in FIELDS if name.endswith("_at") and item[name]
    )


def test_ones_own_sessions_come_in_pages(alice: Actor) -> None:
    alice.again()
    first = alice.get("/me/sessions?limit=1")
    cursor = answer(first)["next"]
    assert first.headers["Link"] == f'</api/v1/me/sessions?limit=1&cursor={cursor}>; rel="next"'
    last = alice.get(f"/me/sessions?limit=1&cursor={cursor}")
    assert [item["session_id"] for item in answer(last)["items"]] == [alice.session_id]
    assert last.json["next"] is None and "Link" not in last.headers


def test_one_ends_another_session_of_ones_own(alice: Actor) -> None:
    other = alice.again()
    path = f"/me/sessions/{other.session_id}"
    receipt(alice.delete(path), scope="session", subject=other.session_id, sessions_ended=1, already_ended=False)
    problem(other.get("/auth/me"), 401, "token_revoked")
    receipt(alice.delete(path), already_ended=True, sessions_ended=0)
    assert alice.is_in()


def test_one_ends_the_session_one_is_in(alice: Actor) -> None:
    receipt(alice.delete(f"/me/sessions/{alice.session_id}", json={"reason": "left"}), reason="left")
    assert problem(alice.get("/auth/me"), 401, "token_revoked")["reason"] == "left"


def test_somebody_elses_session_is_not_found_and_stays(alice: Actor, root: Actor) -> None:
    for one, other in ((alice, root), (root, alice)):
        problem(one.delete(f"/me/sessions/{other.session_id}"), 404, "not_found")
        assert other.is_in()
    unknown = problem(alice.delete(f"/me/sessions/{NOBODY}"), 404, "not_found")
    assert unknown == problem(alice.delete(f"/me/sessions/{root.session_id}"), 404, "not_found"), "the same answer"


def test_one_ends_all_of_ones_own_but_this(alice: Actor, root: Actor) -> None:
    others = [alice.again(), alice.again()]
    receipt(alice.delete("/me/sessions?keep_current=true"), sessions_ended=2)
    assert alice.is_in() and root.is_in()
    assert not any(other.is_in() for other in others)
    receipt(alice.delete("/me/sessions?keep_current=true"), already_ended=True)
    answer(alice.client.post("/api/v1/auth/refresh", json={"refresh_token": alice.tokens["refresh_token"]}))


@pytest.mark.parametrize("query", ["", "?keep_current=false"])
def test_one_ends_all_of_ones_own(alice: Actor, root: Actor, query: str) -> None:
    other = alice.again()
    body = receipt(alice.delete(f"/me/sessions{query}"), scope="user", subject=alice.user_id, sessions_ended=2)
    assert "tokens" not in body
    assert not alice.is_in() and not other.is_in() and root.is_in()
    assert alice.again().is_in()


def test_another_spelling_of_ones_id_is_another_subject(server: Server, alice: Actor) -> None:
    """Of a token that was minted elsewhere, with a key of the ring: cutoffs are compared as text as well."""

    def minted_elsewhere(sub: str) -> Actor:
        now_s = int(time.time())
        payload = {"iss": "lastcall", "aud": "lastcall", "sub": sub, "iat": now_s, "exp": now_s + 60}
        return replace(alice, tokens={"access_token": issue(payload, server.settings.keys)})

    assert answer(minted_elsewhere(alice.user_id).get("/me/sessions"))["total"] == 1
    id = alice.user_id
    for sub in (id.upper(), id.replace("-", ""), f"{{{id}}}", f"urn:uuid:{id}"):
        other = minted_elsewhere(sub)
        problem(other.get("/me/sessions"), 404, "not_found")
        problem(other.delete("/me/sessions"), 404, "not_found")
        problem(other.delete(f"/me/sessions/{alice.session_id}"), 404, "not_found")
    assert alice.is_in()
