"""Revocations: the general form, its preview, and the history: /admin/revocations."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from blueprints import receipts
from models.confirmation import Confirmation, confirm
from tests.actors import Actor
from tests.api.conftest import NOBODY, answer, problem, receipt
from tests.conftest import MakeUser
from tests.database.conftest import add_session, one

PATH = "/admin/revocations"
INVERTED = {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}


def body_of(scope: str, alice: Actor, **more: Any) -> dict[str, Any]:
    """The body that revokes alice, or everyone, at a scope."""
    about: dict[str, Any] = {
        "user": {"subject": alice.user_id},
        "session": {"subject": alice.session_id},
        "everyone": {},
        "filter": {"filter": {"user": "alice"}},
    }[scope]
    return {"scope": scope, **about, **more}


SCOPES = ["user", "session", "everyone", "filter"]


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_revokes_what_it_says(root: Actor, alice: Actor, scope: str) -> None:
    other = alice.again()
    body = body_of(scope, alice, reason="for a reason")
    ended = {"user": 2, "session": 1, "everyone": 3, "filter": 2}[scope]
    expected = {"scope": scope, "subject": body.get("subject", ""), "reason": "for a reason"}
    receipt(root.post(PATH, json=body), sessions_ended=ended, **expected)
    assert not alice.is_in()
    assert other.is_in() == (scope == "session")
    assert root.is_in() == (scope != "everyone")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_dry_run_counts_and_changes_nothing(root: Actor, alice: Actor, psql: psycopg.Connection, scope: str) -> None:
    alice.again()
    tables = ("users", "everyone", "login_sessions", "cutoffs", "revocations")
    before = [psql.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1").fetchall() for table in tables]
    body = answer(root.post(PATH, json=body_of(scope, alice, dry_run=True)))
    everyone = scope == "everyone"
    assert body == {
        "dry_run": True,
        "sessions": {"user": 2, "session": 1, "everyone": 3, "filter": 2}[scope],
        "users": 2 if everyone else 1,
        "admins": 1 if everyone else 0,
        "includes_you": everyone,
    }
    assert [psql.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1").fetchall() for table in tables] == before
    assert root.is_in() and alice.is_in()


@pytest.mark.parametrize("scope", SCOPES)
def test_a_dry_run_counts_what_the_revocation_then_ends(root: Actor, alice: Actor, scope: str) -> None:
    counted = answer(root.post(PATH, json=body_of(scope, alice, dry_run=True)))["sessions"]
    receipt(root.post(PATH, json=body_of(scope, alice)), sessions_ended=counted)


def test_users_of_a_filter_are_signed_out_everywhere(root: Actor, alice: Actor, psql: psycopg.Connection) -> None:
    add_session(psql, alice.user_id, client_id="cli")
    body = {"scope": "user", "filter": {"client": "cli"}}
    assert answer(root.post(PATH, json={**body, "dry_run": True}))["sessions"] == 2
    receipt(root.post(PATH, json={**body, "reason": "bad client"}), scope="filter", sessions_ended=2)
    assert problem(alice.get("/auth/me"), 401, "token_revoked").get("reason") == "bad client"
    assert root.is_in()


@pytest.mark.parametrize("scope", ["user", "everyone", "filter"])
def test_issued_before_spares_who_signed_in_later(
    root: Actor, alice: Actor, psql: psycopg.Connection, scope: str
) -> None:
    moment = one(psql, "SELECT to_json(clock_timestamp() AT TIME ZONE 'UTC') #>> '{}'") + "Z"
    later = alice.again()
    body = body_of(scope, alice, issued_before=moment)
    counted = answer(root.post(PATH, json={**body, "dry_run": True}))["sessions"]
    receipt(root.post(PATH, json=body), sessions_ended=counted)
    assert not alice.is_in() and later.is_in()


def test_issued_before_spares_who_signed_in_later_also_of_the_users_that_a_filter_finds(
    root: Actor, alice: Actor, psql: psycopg.Connection
) -> None:
    moment = one(psql, "SELECT to_json(clock_timestamp() AT TIME ZONE 'UTC') #>> '{}'") + "Z"
    later = alice.again()
    add_session(psql, alice.user_id, client_id="stolen")  # what finds her may be of later, too
    body = {"scope": "user", "filter": {"client": "stolen"}, "issued_before": moment}
    assert answer(root.post(PATH, json={**body, "dry_run": True}))["sessions"] == 1
    receipt(root.post(PATH, json=body), scope="filter", sessions_ended=1)
    assert not alice.is_in() and later.is_in()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"scope": "nobody"}, "invalid_request"),
        ({"scope": ["everyone"]}, "invalid_request"),
        ({"scope": "user"}, "bad_request"),
        ({"scope": "user", "subject": "alice"}, "bad_request"),
        ({"scope": "user", "subject": NOBODY, "filter": {"user": "alice"}}, "bad_request"),
        ({"scope": "user", "filter": {}}, "bad_request"),
        ({"scope": "session"}, "bad_request"),
        ({"scope": "session", "subject": "42"}, "bad_request"),
        ({"scope": "everyone", "subject": NOBODY}, "bad_request"),
        ({"scope": "everyone", "filter": {"user": "alice"}}, "bad_request"),
        ({"scope": "filter"}, "bad_request"),
        ({"scope": "filter", "filter": {}}, "bad_request"),
        ({"scope": "filter", "filter": {"usr": "alice"}}, "invalid_request"),
        ({"scope": "filter", "filter": {"user": "alice"}, "subject": NOBODY}, "bad_request"),
        ({"scope": "filter", "filter": {"ip": "10.0.0.0/129"}}, "invalid_request"),
        (
            {"scope": "filter", "filter": {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}},
            "bad_request",
        ),
        ({"scope": "everyone", "issued_before": "2999-01-01T00:00:00Z"}, "bad_request"),
        ({"scope": "everyone", "issued_before": "yesterday"}, "invalid_request"),
        ({"scope": "everyone", "dry_run": "yes"}, "invalid_request"),
        ({"scope": "everyone", "dry_run": 1}, "invalid_request"),
        ({"scope": "everyone", "dryrun": True}, "invalid_request"),
        ({"scope": "everyone", "reason": "x" * 501}, "invalid_request"),
    ],
)
def test_what_is_not_meant_clearly_revokes_nobody(
    root: Actor, alice: Actor, psql: psycopg.Connection, body: dict[str, Any], code: str
) -> None:
    problem(root.post(PATH, json=body), 400, code)
    assert root.is_in() and alice.is_in()
    assert one(psql, "SELECT count(*) FROM revocations") == 0


@pytest.mark.parametrize("scope", ["user", "session"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_subject_that_never_was_is_not_found(root: Actor, scope: str, dry_run: bool) -> None:
    problem(root.post(PATH, json={"scope": scope, "subject": NOBODY, "dry_run": dry_run}), 404, "not_found")


def test_the_history_tells_who_when_why_and_what_newest_first(
    root: Actor, alice: Actor, make_user: MakeUser, psql: psycopg.Connection
) -> None:
    bob = make_user("bob")
    receipt(root.delete(f"/admin/sessions/{alice.user_id}", json={"reason": "first"}))
    filters = "?user=bob&client=api&since=2026-01-01T01:00:00%2B01:00"
    done = receipt(root.delete(f"/admin/sessions{filters}", json={"reason": "second"}))
    psql.execute("DELETE FROM users WHERE id = %s", (bob.user_id,))
    deleted, filtered, forced = answer(root.get(PATH))["items"]
    assert (deleted["trigger"], deleted["actor_name"]) == ("user_deleted", "database role lastcall")
    assert filtered["revocation_id"] == done["revocation_id"]
    assert (filtered["scope"], filtered["filter"]["user"], filtered["reason"]) == ("filter", "bob", "second")
    assert filtered["filter"]["since"] == "2026-01-01T00:00:00.000000Z"
    assert (forced["scope"], forced["subject"], forced["subject_name"]) == ("user", alice.user_id, "alice")
    assert (forced["reason"], forced["trigger"], forced["sessions_ended"]) == ("first", "force_logout", 1)
    assert (forced["actor_id"], forced["actor_name"]) == (root.user_id, "root")
    assert (forced["actor_session"], forced["actor_ip"]) == (root.session_id, "127.0.0.1")
    assert forced["created_at"] < filtered["created_at"] < deleted["created_at"]
    assert all(row[name].endswith("Z") for row in (forced, filtered) for name in ("created_at", "cutoff", "expires_at"))


def test_the_history_comes_in_pages(root: Actor, alice: Actor) -> None:
    ids = [receipt(root.delete(f"/admin/sessions/{alice.user_id}"))["revocation_id"] for _ in range(5)]
    visited, query = [], "?limit=2"
    while query:
        response = root.get(PATH + query)
        visited += [row["revocation_id"] for row in answer(response)["items"]]
        cursor = response.json["next"]
        assert ("Link" in response.headers) == (cursor is not None)
        query = f"?limit=2&cursor={cursor}" if cursor else ""
    assert visited == ids[::-1]


def test_a_worker_of_an_earlier_version_is_named_and_no_200_is_claimed(
    root: Actor, alice: Actor, psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirm_impatiently(*args: Any, **kwargs: Any) -> Confirmation:
        return confirm(*args, **{**kwargs, "patience_s": 0.3})

    monkeypatch.setattr(receipts, "confirm", confirm_impatiently)
    old = "INSERT INTO workers (id, service, host, pid) VALUES (gen_random_uuid(), 'old', 'x', 1) RETURNING id::text"
    deaf = one(psql, old)
    body = answer(root.delete(f"/admin/sessions/{alice.user_id}"), 202)
    assert body["in_force"] is False and body["workers"]["unconfirmed"] == [deaf]
    assert (body["workers"]["live"], body["workers"]["confirmed"]) == (2, 1)
    for response in (
        root.patch(f"/admin/users/{alice.user_id}", json={"disabled": True}),
        root.delete(f"/admin/users/{alice.user_id}"),
        root.post("/auth/logout"),
    ):
        assert int(response.headers["Retry-After"]) >= 1
        problem(response, 503, "not_confirmed")
