"""A filter that finds very many: they end in several transactions, and the receipt is about all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask import Flask

from blueprints.server import Server
from models import force_logout
from models.audit import Actor as Who
from models.force_logout import Receipt
from models.session_filter import SessionFilter
from tests.actors import Actor
from tests.database.conftest import add_session, add_user, one
from tests.database.test_force_logout import in_force

ROOT = Who("root", reason="leaked")
BULK = SessionFilter(client="bulk")

# The database's own errors, raised within the statement that changes more rows than it likes, or once so many are done.
_IF_TOO_MANY = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM changed) > {at_once}
            OR (SELECT count(*) FROM login_sessions WHERE ended_at IS NOT NULL) > {in_all} THEN
            RAISE EXCEPTION 'enough' USING ERRCODE = '{code}';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER refuse AFTER UPDATE ON login_sessions REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
MANY = 10**6


def refuse(psql: psycopg.Connection, code: str, *, at_once: int = MANY, in_all: int = MANY) -> None:
    psql.execute(_IF_TOO_MANY.format(code=code, at_once=at_once, in_all=in_all))  # type: ignore[arg-type]


@pytest.fixture
def crowd(psql: psycopg.Connection) -> None:
    """Four users with two sessions each that the filter finds, and one with a session that it does not find."""
    for name in ("ann", "bob", "carol", "dave"):
        user_id = add_user(psql, name)
        add_session(psql, user_id, client_id="bulk")
        add_session(psql, user_id, client_id="bulk")
    add_session(psql, add_user(psql, "erin"))


def at_most(monkeypatch: pytest.MonkeyPatch, at_once: int, less_at_once: int = 1) -> None:
    monkeypatch.setattr(force_logout, "AT_ONCE", at_once)
    monkeypatch.setattr(force_logout, "LESS_AT_ONCE", less_at_once)


def history(psql: psycopg.Connection) -> list[Any]:
    query = "SELECT sessions_ended FROM revocations WHERE reason = 'leaked' ORDER BY created_at"
    return [ended for (ended,) in psql.execute(query)]


def left(psql: psycopg.Connection) -> int:
    return int(one(psql, "SELECT count(*) FROM login_sessions WHERE ended_at IS NULL"))


@pytest.mark.usefixtures("context", "crowd")
def test_a_piece_leaves_the_users_that_it_has_not_done_to_be_found(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_session(psql, one(psql, "SELECT user_id FROM login_sessions WHERE username = 'erin'"), client_id="bulk")
    for (user_id,) in psql.execute("SELECT id FROM users").fetchall():
        for _ in range(3):
            add_session(psql, user_id, client_id="other")
    at_most(monkeypatch, 1)
    now = one(psql, "SELECT clock_timestamp()")
    wanted = SessionFilter(client="bulk", whole_users=True, issued_before=now)
    assert force_logout.revoke_matching(wanted, ROOT).sessions_ended == 25
    assert left(psql) == 0


@pytest.mark.usefixtures("context", "crowd")
@pytest.mark.parametrize(
    ("revoke", "at_once", "pieces"),
    [
        (force_logout.revoke_matching, 3, [3, 3, 2]),
        (force_logout.revoke_matching, 4, [4, 4]),
        (force_logout.revoke_matching, 8, [8]),
        (force_logout.revoke_users_matching, 3, [6, 2]),
        (force_logout.revoke_users_matching, 4, [8]),
    ],
)
def test_the_receipt_counts_all_pieces_and_is_in_force_for_all(
    psql: psycopg.Connection,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    revoke: Callable[[SessionFilter, Who], Receipt],
    at_once: int,
    pieces: list[int],
) -> None:
    at_most(monkeypatch, at_once)
    receipt = revoke(BULK, ROOT)
    assert (receipt.sessions_ended, receipt.already_ended) == (8, False)
    assert history(psql) == pieces
    assert one(psql, "SELECT count(DISTINCT xid) FROM cutoffs") == len(pieces)
    assert one(psql, "SELECT id::text FROM revocations ORDER BY created_at DESC") == receipt.revocation_id
    assert in_force(receipt, server)
    assert len(server.lastcall.cutoffs) == one(psql, "SELECT count(*) FROM cutoffs")
    assert left(psql) == 1


@pytest.mark.usefixtures("context", "crowd")
def test_what_takes_too_long_is_tried_again_in_smaller_pieces(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_most(monkeypatch, 6, 3)
    refuse(psql, "query_canceled", at_once=4)
    assert force_logout.revoke_matching(BULK, ROOT).sessions_ended == 8
    assert history(psql) == [3, 3, 2]


@pytest.mark.usefixtures("crowd")
def test_what_takes_too_long_for_any_piece_says_so_and_changes_nothing(
    psql: psycopg.Connection, app: Flask, root: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_most(monkeypatch, 6, 3)
    refuse(psql, "query_canceled", at_once=2)
    before = left(psql)
    answer = root.delete("/admin/sessions?client=bulk")
    assert (answer.status_code, answer.json["code"]) == (503, "database_slow")
    assert "nothing was changed" in answer.json["detail"] and "fewer sessions" in answer.json["detail"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert left(psql) == before
    assert one(psql, "SELECT count(*) FROM cutoffs") + one(psql, "SELECT count(*) FROM revocations") == 0


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize("code", ["query_canceled", "admin_shutdown", "lock_not_available", "disk_full"])
def test_who_is_told_of_a_failure_is_told_what_is_done_and_can_go_on(
    psql: psycopg.Connection, app: Flask, root: Actor, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    at_most(monkeypatch, 3, 3)
    refuse(psql, code, in_all=6)
    answer = root.delete("/admin/sessions?client=bulk", json={"reason": "leaked"})
    assert (answer.status_code, answer.json["code"]) == (503, "partly_done")
    assert answer.json["detail"].startswith("6 sessions have ended, the others have not")
    assert "nothing was changed" not in answer.json["detail"]
    assert history(psql) == [3, 3]
    psql.execute("DROP FUNCTION refuse CASCADE")
    answer = root.delete("/admin/sessions?client=bulk", json={"reason": "leaked"})
    assert (answer.status_code, answer.json["sessions_ended"], answer.json["in_force"]) == (200, 2, True)
    assert history(psql) == [3, 3, 2]


@pytest.mark.usefixtures("context", "crowd")
def test_sessions_of_users_that_are_not_there_do_not_keep_it_going(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_most(monkeypatch, 2)
    psql.execute("UPDATE login_sessions SET user_id = gen_random_uuid() WHERE client_id = 'bulk'")
    force_logout.revoke_users_matching(BULK, ROOT)
    assert one(psql, "SELECT count(*) FROM cutoffs") == 0
