"""Receipts of each scope, what a preview counts, and a confirmation that never claims what it has not seen."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from blueprints.server import Server
from lastcall.tokens import issue
from models import force_logout, refreshing, sign_in
from models.audit import Actor as Who
from models.confirmation import confirm
from models.errors import NotFound
from models.force_logout import Receipt
from models.minting import ClientInfo, Tokens
from models.session_filter import SessionFilter
from models.session_list import list_sessions
from models.user import create_user, delete_user, was_ever
from models.worker import WorkerWatch, list_workers, observe_workers
from settings import Settings
from tests.conftest import PASSWORD
from tests.database.conftest import accepts, add_session, add_user, one, wait_until

ROOT = Who("root", str(uuid.uuid4()), str(uuid.uuid4()), "192.0.2.9", "because")

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def ann(settings: Settings) -> Tokens:
    create_user("ann", PASSWORD, ["admin"])
    return enter("ann", settings)


@pytest.fixture
def bob(settings: Settings) -> Tokens:
    create_user("bob", PASSWORD, [])
    return enter("bob", settings)


def enter(name: str, settings: Settings, client_id: str = "web") -> Tokens:
    return sign_in.sign_in(name, PASSWORD, ClientInfo(client_id, "192.0.2.1", ""), settings)


def in_force(receipt: Receipt, server: Server) -> bool:
    workers = confirm(receipt.position, server.watch)
    return workers.in_force and (workers.live, workers.confirmed, workers.fenced) == (1, 1, 0)


def test_the_receipt_of_a_user(server: Server, settings: Settings, ann: Tokens, bob: Tokens) -> None:
    second = enter("ann", settings)
    receipt = force_logout.revoke_user(UUID(ann.user_id), ROOT)
    assert in_force(receipt, server)
    assert (receipt.scope, receipt.subject, receipt.subject_name) == ("user", ann.user_id, "ann")
    assert (receipt.sessions_ended, receipt.already_ended, receipt.reason) == (2, False, "because")
    assert not accepts(server, ann.access_token) and not accepts(server, second.access_token)
    assert accepts(server, bob.access_token)


def test_the_receipt_of_a_session(server: Server, settings: Settings, ann: Tokens) -> None:
    second = enter("ann", settings)
    receipt = force_logout.revoke_session(UUID(ann.session_id), ROOT, user_id=UUID(ann.user_id))
    assert in_force(receipt, server)
    assert (receipt.scope, receipt.subject, receipt.subject_name) == ("session", ann.session_id, "ann")
    assert (receipt.sessions_ended, receipt.already_ended) == (1, False)
    assert not accepts(server, ann.access_token) and accepts(server, second.access_token)


@pytest.mark.parametrize(
    "revoke",
    [
        lambda user_id: force_logout.revoke_user(user_id, ROOT),
        lambda _: force_logout.revoke_matching(SessionFilter(client="nobody"), ROOT),
        lambda _: force_logout.revoke_users_matching(SessionFilter(client="nobody"), ROOT),
        lambda user_id: force_logout.revoke_matching(
            SessionFilter(user_id=str(user_id)), ROOT, scope="user", subject=str(user_id)
        ),
    ],
)
def test_the_workers_are_told_to_look_also_where_nothing_was_left_to_end(
    psql: psycopg.Connection, ann: Tokens, bob: Tokens, revoke: Callable[[UUID], Receipt]
) -> None:
    delete_user(UUID(bob.user_id), ROOT)
    psql.execute("LISTEN lastcall_cutoffs")
    assert revoke(UUID(bob.user_id)).already_ended
    psql.execute("NOTIFY lastcall_cutoffs, 'the end'")
    assert [note.payload for note in psql.notifies(timeout=5, stop_after=2)] == ["", "the end"]


def test_the_receipt_of_everyone(server: Server, ann: Tokens, bob: Tokens) -> None:
    receipt = force_logout.revoke_everyone(ROOT)
    assert in_force(receipt, server)
    assert (receipt.scope, receipt.subject, receipt.sessions_ended) == ("everyone", "", 2)
    assert not accepts(server, ann.access_token) and not accepts(server, bob.access_token)


def test_the_receipt_of_a_filter(server: Server, settings: Settings, ann: Tokens, bob: Tokens) -> None:
    other = enter("ann", settings, "cli")
    receipt = force_logout.revoke_matching(SessionFilter(client="web"), ROOT)
    assert in_force(receipt, server)
    assert (receipt.scope, receipt.subject, receipt.sessions_ended) == ("filter", "", 2)
    assert not accepts(server, ann.access_token) and not accepts(server, bob.access_token)
    assert accepts(server, other.access_token)


def test_the_receipt_of_the_users_of_a_filter(server: Server, settings: Settings, ann: Tokens, bob: Tokens) -> None:
    other = enter("ann", settings, "cli")
    receipt = force_logout.revoke_users_matching(SessionFilter(client="cli"), ROOT)
    assert in_force(receipt, server)
    assert (receipt.scope, receipt.sessions_ended) == ("filter", 2)
    assert not accepts(server, ann.access_token) and not accepts(server, other.access_token)
    assert accepts(server, bob.access_token)


@pytest.mark.parametrize("scope", ["user", "session", "everyone", "filter"])
def test_a_second_revocation_says_that_it_was_ended_already(server: Server, ann: Tokens, scope: str) -> None:
    def revoke() -> Receipt:
        if scope == "user":
            return force_logout.revoke_user(UUID(ann.user_id), ROOT)
        if scope == "session":
            return force_logout.revoke_session(UUID(ann.session_id), ROOT)
        if scope == "everyone":
            return force_logout.revoke_everyone(ROOT)
        return force_logout.revoke_matching(SessionFilter(user="ann"), ROOT)

    assert not revoke().already_ended
    again = revoke()
    assert (again.already_ended, again.sessions_ended) == (True, 0)
    assert in_force(again, server) and not accepts(server, ann.access_token)


def test_who_is_kept_goes_on_under_new_tokens_only(
    psql: psycopg.Connection, server: Server, settings: Settings, ann: Tokens, bob: Tokens
) -> None:
    receipt = force_logout.revoke_everyone(ROOT, keep_session=ann.session_id)
    new = refreshing.renew(ann.session_id, ClientInfo("web", None, ""), settings)
    assert in_force(receipt, server) and receipt.sessions_ended == 1
    assert new.session_id == ann.session_id and accepts(server, new.access_token)
    assert not accepts(server, ann.access_token) and not accepts(server, bob.access_token)
    assert [item.session_id for item in list_sessions(SessionFilter()).items] == [ann.session_id]


@pytest.mark.parametrize("what", ["user", "session"])
def test_nobody_who_never_was_can_be_revoked(psql: psycopg.Connection, what: str) -> None:
    revoke = force_logout.revoke_user if what == "user" else force_logout.revoke_session
    with pytest.raises(NotFound):
        revoke(uuid.uuid4(), ROOT)
    assert one(psql, "SELECT count(*) FROM revocations") == 0


def test_a_deleted_user_can_still_be_revoked(psql: psycopg.Connection, bob: Tokens) -> None:
    user_id = UUID(bob.user_id)
    delete_user(user_id, ROOT)
    receipt = force_logout.revoke_user(user_id, ROOT)
    assert (receipt.subject_name, receipt.already_ended) == ("bob", True)
    psql.execute("DELETE FROM login_sessions")
    assert force_logout.revoke_user(user_id, ROOT).subject_name == "bob"
    assert was_ever(user_id) and not was_ever(uuid.uuid4())


def test_a_deleted_users_newer_token_from_elsewhere_is_dead_once_he_is_revoked(
    psql: psycopg.Connection, server: Server, bob: Tokens
) -> None:
    delete_user(UUID(bob.user_id), ROOT)
    deleted_at = one(psql, "SELECT cutoff_at FROM cutoffs")
    wait_until(lambda: int(time.time()) > deleted_at.timestamp(), "a later second")
    now_s = int(time.time())
    payload = {"iss": "lastcall", "aud": "lastcall", "sub": bob.user_id, "iat": now_s, "exp": now_s + 60}
    token = issue(payload, server.settings.keys)
    assert accepts(server, token)
    for gen in (2, 3):
        receipt = force_logout.revoke_user(UUID(bob.user_id), ROOT)
        assert in_force(receipt, server) and receipt.already_ended
        assert not accepts(server, token)
        assert psql.execute("SELECT min_gen, cutoff_at FROM cutoffs").fetchall() == [(gen, receipt.cutoff)]
    assert one(psql, "SELECT count(*) FROM revocations") == 3


def test_a_session_that_is_not_this_users_is_not_found(ann: Tokens, bob: Tokens, server: Server) -> None:
    with pytest.raises(NotFound):
        force_logout.revoke_session(UUID(ann.session_id), ROOT, user_id=UUID(bob.user_id))
    assert accepts(server, ann.access_token)


def test_a_log_out_of_everyone_touches_one_row_however_many_sessions_there_are(psql: psycopg.Connection) -> None:
    user_id = add_user(psql, "many")
    for _ in range(300):
        add_session(psql, user_id)
    before = psql.execute("SELECT id, xmin::text FROM login_sessions ORDER BY id").fetchall()
    receipt = force_logout.revoke_everyone(ROOT)
    assert psql.execute("SELECT id, xmin::text FROM login_sessions ORDER BY id").fetchall() == before
    assert receipt.sessions_ended == 300
    assert list_sessions(SessionFilter()).total == 0
    assert psql.execute("SELECT scope::text, min_gen FROM cutoffs").fetchall() == [("everyone", 1)]


def test_ten_thousand_users_are_revoked_in_one_transaction(psql: psycopg.Connection, server: Server) -> None:
    psql.execute("INSERT INTO users (username, password_hash) SELECT 'u' || n, '!' FROM generate_series(1, 10000) AS n")
    add_session(psql, add_user(psql, "pattern"), client_id="bulk")
    psql.execute(
        "INSERT INTO login_sessions (user_id, username, roles, client_id, token_expires_at, expires_at, user_gen,"
        " everyone_gen, family_hash, refresh_hash) SELECT u.id, u.username, '{}', 'bulk', now() + '5 min',"
        " now() + '1 day', 0, 0, sha256(u.id::text::bytea), '' FROM users AS u WHERE u.username LIKE 'u%'"
    )
    receipt = force_logout.revoke_users_matching(SessionFilter(client="bulk"), ROOT)
    assert receipt.sessions_ended == 10_001
    assert one(psql, "SELECT count(DISTINCT xid) FROM cutoffs") == 1
    assert in_force(receipt, server) and len(server.lastcall.cutoffs) == 10_001


def test_the_history_says_who_when_why_and_what(psql: psycopg.Connection, ann: Tokens) -> None:
    receipt = force_logout.revoke_user(UUID(ann.user_id), ROOT)
    row = psql.execute(
        "SELECT id::text, scope, subject, reason, actor_id, actor_name, actor_session, host(actor_ip), cause, min_gen,"
        " sessions_ended, cutoff_at, expires_at > now() FROM revocations"
    ).fetchall()
    facts = (receipt.revocation_id, "user", ann.user_id, "because", ROOT.user_id, "root", ROOT.session_id, "192.0.2.9")
    assert row == [(*facts, "force_logout", 1, 1, receipt.cutoff, True)]


def test_a_preview_counts_and_changes_nothing(psql: psycopg.Connection, settings: Settings, ann: Tokens) -> None:
    enter("ann", settings, "cli")
    create_user("bob", PASSWORD, [])
    bob = enter("bob", settings)
    before = psql.execute("SELECT s::text FROM login_sessions AS s").fetchall()

    def counts(wanted: SessionFilter, caller: str | None) -> tuple[int, int, int, bool]:
        found = force_logout.preview(wanted, caller)
        return found.sessions, found.users, found.admins, found.includes_you

    assert counts(SessionFilter(), ann.session_id) == (3, 2, 1, True)
    assert counts(SessionFilter(), None) == (3, 2, 1, False)
    assert counts(SessionFilter(client="cli"), ann.session_id) == (1, 1, 1, False)
    assert counts(SessionFilter(client="cli", whole_users=True), ann.session_id) == (2, 1, 1, True)
    assert counts(SessionFilter(user_id=bob.user_id), ann.session_id) == (1, 1, 0, False)
    assert counts(SessionFilter(client="nobody"), ann.session_id) == (0, 0, 0, False)
    assert psql.execute("SELECT s::text FROM login_sessions AS s").fetchall() == before
    assert one(psql, "SELECT count(*) FROM cutoffs") + one(psql, "SELECT count(*) FROM revocations") == 0


def add_worker(psql: psycopg.Connection, lease_s: float | None) -> str:
    query = "INSERT INTO workers (id, service, host, pid, lease_s) VALUES (gen_random_uuid(), 'old', 'far', 1, %s)"
    return str(one(psql, query + " RETURNING id", (lease_s,)))


def test_a_worker_without_a_lease_that_never_confirms_is_named(
    psql: psycopg.Connection, server: Server, ann: Tokens
) -> None:
    deaf = add_worker(psql, None)
    workers = confirm(force_logout.revoke_user(UUID(ann.user_id), ROOT).position, server.watch, patience_s=0.5)
    assert not workers.in_force and workers.unconfirmed == (deaf,)
    assert (workers.live, workers.confirmed, workers.fenced) == (2, 1, 0)
    assert workers.elapsed_ms >= 500


def test_a_worker_whose_lease_has_run_out_is_counted_as_fenced(
    psql: psycopg.Connection, server: Server, ann: Tokens
) -> None:
    silent = add_worker(psql, 0.2)
    workers = confirm(force_logout.revoke_user(UUID(ann.user_id), ROOT).position, server.watch)
    assert workers.in_force and (workers.live, workers.confirmed, workers.fenced) == (1, 1, 1)
    assert workers.elapsed_ms >= 200, "not before its lease has surely run out"
    assert {worker.id: worker.state for worker in list_workers(observe_workers(server.watch))}[silent] == "fenced"


def test_a_worker_that_renews_its_lease_is_never_fenced(psql: psycopg.Connection, server: Server, ann: Tokens) -> None:
    busy = add_worker(psql, 0.2)
    position, watch = force_logout.revoke_user(UUID(ann.user_id), ROOT).position, WorkerWatch()
    for _ in range(4):
        psql.execute("UPDATE workers SET renewals = renewals + 1 WHERE id = %s", (busy,))
        assert confirm(position, watch, patience_s=0.1).unconfirmed == (busy,)
    psql.execute(
        "UPDATE workers SET snapshot = pg_current_snapshot(), incarnation = (SELECT id FROM incarnation) WHERE id = %s",
        (busy,),
    )
    workers = confirm(position, watch)
    assert workers.in_force and workers.confirmed == 2


def test_an_earlier_position_confirms_nothing_later(psql: psycopg.Connection, server: Server, ann: Tokens) -> None:
    deaf = add_worker(psql, None)
    psql.execute(
        "UPDATE workers SET snapshot = pg_current_snapshot(), incarnation = (SELECT id FROM incarnation) WHERE id = %s",
        (deaf,),
    )
    position = force_logout.revoke_user(UUID(ann.user_id), ROOT).position
    assert confirm(position, server.watch, patience_s=0.1).unconfirmed == (deaf,)


def test_a_worker_that_stops_in_order_is_not_waited_for(psql: psycopg.Connection, server: Server, ann: Tokens) -> None:
    leaving = add_worker(psql, None)
    position = force_logout.revoke_user(UUID(ann.user_id), ROOT).position
    assert not confirm(position, server.watch, patience_s=0.0).in_force
    psql.execute("DELETE FROM workers WHERE id = %s", (leaving,))
    assert confirm(position, server.watch).in_force


@pytest.mark.parametrize("seen", [True, False], ids=["all have it", "nobody has it"])
def test_the_database_waits_for_every_worker_but_not_for_ever(
    server: Server, psql: psycopg.Connection, seen: bool
) -> None:
    assert server.lastcall.listener.wait_until_live()
    psql.execute(  # a row that was left behind: nobody waits for it here
        "INSERT INTO workers (id, service, host, pid, lease_s, renewed_at)"
        " VALUES (gen_random_uuid(), '', '', 1, 2, now() - interval '1 minute')"
    )
    patience_ms = 20_000 if seen else 300
    with psql.transaction():
        position = "3" if seen else one(psql, "SELECT pg_current_xact_id()::text")
        before = one(psql, "SELECT clock_timestamp()")
        psql.execute("SELECT FROM read_workers(%s::xid8, %s)", (position, patience_ms))
        waited_s = (one(psql, "SELECT clock_timestamp()") - before).total_seconds()
    assert (waited_s * 1000 < patience_ms) is seen
