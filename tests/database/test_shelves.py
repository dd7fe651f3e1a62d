"""What has ended or expired is so at once, for everyone who looks; its rows are marked twenty at once, then in
batches, and nothing that is seen changes by that."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from blueprints.server import Server
from lastcall.errors import Revoked
from models import force_logout, housekeeping, own_password, refreshing, sign_in
from models import user as users
from models.audit import Actor as Who
from models.changes import Changes
from models.database import transaction
from models.housekeeping import Housekeeper
from models.login_session import get_session
from models.minting import ClientInfo
from models.purge import BATCH, purge
from models.revocation import list_revocations, public_reason
from models.seen import Seen
from models.session_filter import SessionFilter
from models.session_list import count_active, list_sessions
from models.user import create_user, get_user
from models.worker import WorkerWatch
from settings import Settings
from tests.conftest import PASSWORD
from tests.database.conftest import add_session, add_user, one

ROOT = Who("root", reason="because")
HERE = ClientInfo("web", "192.0.2.1", "")
MANY = 250

pytestmark = pytest.mark.usefixtures("context")


def add_many(psql: psycopg.Connection, user_id: str, count: int = MANY) -> None:
    first = add_session(psql, user_id)
    columns = "user_id, username, roles, client_id, ip, last_ip, token_expires_at, expires_at, user_gen, everyone_gen"
    psql.execute(
        f"INSERT INTO login_sessions ({columns}, family_hash, refresh_hash)"
        f" SELECT {columns}, sha256(n::text::bytea || id::text::bytea), ''"
        " FROM login_sessions, generate_series(2, %s) AS n WHERE id = %s",
        (count, first),
    )


def seen(user_id: str) -> tuple[Any, ...]:
    """All that anyone is shown of a user's sessions."""
    totals = tuple(
        list_sessions(SessionFilter(user_id=user_id, state=state)).total for state in ("active", "ended", "all")
    )
    ends = Counter((item.state, item.ended_by, item.end_reason) for item in _all_of(user_id))
    with transaction():
        active = count_active(UUID(user_id))
    would = force_logout.preview(SessionFilter(user_id=user_id), None).sessions
    return totals, ends, (active, would), get_user(UUID(user_id)).active_sessions


def _all_of(user_id: str) -> list[Any]:
    found, cursor = [], None
    while not found or cursor:
        page = list_sessions(SessionFilter(user_id=user_id, state="all"), limit=200, cursor=cursor)
        found, cursor = [*found, *page.items], page.next
    return found


def marked(psql: psycopg.Connection) -> int:
    return int(one(psql, "SELECT count(*) FROM login_sessions WHERE ended_at IS NOT NULL"))


def tick_until_marked(server: Server, psql: psycopg.Connection, count: int) -> None:
    for _ in range(count // BATCH + 2):
        server.housekeeper.tick()
    assert marked(psql) == count


@pytest.mark.parametrize("by", ["the server", "psql"])
def test_a_user_with_many_sessions_is_out_at_once_and_his_rows_follow(
    psql: psycopg.Connection, server: Server, by: str
) -> None:
    user_id = add_user(psql, "ann")
    add_many(psql, user_id)
    if by == "psql":
        psql.execute(
            "SELECT set_config('lastcall.actor_name', 'root', FALSE), set_config('lastcall.reason', 'because', FALSE)"
        )
        psql.execute("UPDATE users SET gen = gen + 1 WHERE id = %s", (user_id,))
    else:
        receipt = force_logout.revoke_user(UUID(user_id), ROOT)
        assert (receipt.sessions_ended, receipt.already_ended) == (MANY, False)
    history, _ = list_revocations()
    assert [row.sessions_ended for row in history] == [MANY]
    assert marked(psql) == 20
    before = seen(user_id)
    assert before == ((0, MANY, MANY), {("ended", "root", "because"): MANY}, (0, 0), 0)
    tick_until_marked(server, psql, MANY)
    assert seen(user_id) == before
    ends = psql.execute("SELECT DISTINCT ended_scope::text, ended_by, end_reason, shelf FROM login_sessions").fetchall()
    assert ends == [("user", "root", "because", -1)]
    assert one(psql, "SELECT count(DISTINCT ended_at) FROM login_sessions") == 1


@pytest.mark.parametrize("by", ["the server", "psql"])
def test_a_second_force_logout_ends_nobody_before_the_rows_are_marked(psql: psycopg.Connection, by: str) -> None:
    user_id = add_user(psql, "ann")
    add_many(psql, user_id)
    for expected in (MANY, 0):
        if by == "psql":
            psql.execute("UPDATE users SET gen = gen + 1 WHERE id = %s", (user_id,))
            assert list_revocations(limit=1)[0][0].sessions_ended == expected
        else:
            assert force_logout.revoke_user(UUID(user_id), ROOT).sessions_ended == expected


def test_rows_are_marked_with_the_first_end_that_hit_them(psql: psycopg.Connection, server: Server) -> None:
    user_id = add_user(psql, "ann")
    add_many(psql, user_id)
    force_logout.revoke_user(UUID(user_id), Who("first", reason="one"))
    add_session(psql, user_id)
    force_logout.revoke_user(UUID(user_id), Who("second", reason="two"))
    before = seen(user_id)
    assert before[1] == {("ended", "first", "one"): MANY, ("ended", "second", "two"): 1}
    tick_until_marked(server, psql, MANY + 1)
    assert seen(user_id) == before


def test_who_signs_in_after_it_is_active_while_the_old_rows_wait(
    psql: psycopg.Connection, server: Server, settings: Settings
) -> None:
    user_id = create_user("ann", PASSWORD, []).user_id
    add_many(psql, user_id)
    force_logout.revoke_user(UUID(user_id), ROOT)
    new = sign_in.sign_in("ann", PASSWORD, HERE, settings)
    assert [item.session_id for item in list_sessions(SessionFilter()).items] == [new.session_id]
    with transaction():
        assert count_active(UUID(user_id)) == 1
    assert force_logout.preview(SessionFilter(user_id=user_id), None).sessions == 1
    tick_until_marked(server, psql, MANY)
    assert [item.session_id for item in list_sessions(SessionFilter()).items] == [new.session_id]


def test_an_unmarked_session_can_do_nothing_and_is_told_why(
    psql: psycopg.Connection, settings: Settings, server: Server
) -> None:
    create_user("ann", PASSWORD, [])
    tokens = [sign_in.sign_in("ann", PASSWORD, HERE, settings) for _ in range(21)]
    force_logout.revoke_users_matching(SessionFilter(client="web"), Who("root", reason="new terms"))
    (left,) = [str(row[0]) for row in psql.execute("SELECT id FROM login_sessions WHERE ended_at IS NULL")]
    (mine,) = [token for token in tokens if token.session_id == left]
    with pytest.raises(Revoked):
        refreshing.refresh(mine.refresh_token, HERE, settings)
    facts = get_session(UUID(left))
    assert facts is not None and (facts.state, facts.ended_by, facts.end_reason) == ("ended", "root", "new terms")
    assert public_reason("user", mine.user_id, left) == "new terms"
    receipt = force_logout.revoke_session(UUID(left), ROOT)
    assert (receipt.sessions_ended, receipt.already_ended) == (0, True)


def test_the_session_that_outlives_its_own_password_change_is_not_marked(
    psql: psycopg.Connection, settings: Settings, server: Server
) -> None:
    user_id = create_user("ann", PASSWORD, []).user_id
    mine = sign_in.sign_in("ann", PASSWORD, HERE, settings)
    add_many(psql, user_id)
    claims = server.lastcall.guard.check(mine.access_token)
    own_password.change_password(claims, PASSWORD, "another password", HERE, settings)
    for _ in range(3):
        assert [item.session_id for item in list_sessions(SessionFilter()).items] == [mine.session_id]
        server.housekeeper.tick()
    assert marked(psql) == MANY


def test_the_row_of_a_sign_in_that_was_in_flight_is_marked_as_well(psql: psycopg.Connection, server: Server) -> None:
    user_id = add_user(psql, "ann")
    force_logout.revoke_user(UUID(user_id), ROOT)
    server.housekeeper.tick()
    add_session(psql, user_id, user_gen=0)  # read before, committed after
    assert seen(user_id)[0] == (0, 1, 1)
    tick_until_marked(server, psql, 1)


def test_a_row_that_somebody_holds_is_not_waited_for(
    psql: psycopg.Connection, server: Server, database_url: str
) -> None:
    user_id = add_user(psql, "ann")
    held, other = add_session(psql, user_id), add_session(psql, user_id)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT FROM login_sessions WHERE id = %s FOR UPDATE", (held,))
        assert force_logout.revoke_user(UUID(user_id), ROOT).sessions_ended == 2
        server.housekeeper.tick()
        assert one(psql, "SELECT array_agg(id::text) FROM login_sessions WHERE ended_at IS NOT NULL") == [other]
        assert seen(user_id)[0] == (0, 2, 2)
    tick_until_marked(server, psql, 2)


def test_what_was_noted_is_forgotten_a_minute_later_and_not_before_all_is_marked(
    psql: psycopg.Connection, server: Server, database_url: str
) -> None:
    user_id = add_user(psql, "ann")
    add_many(psql, user_id)
    force_logout.revoke_user(UUID(user_id), ROOT)
    server.housekeeper.tick()
    assert one(psql, "SELECT count(*) FROM unmarked_ends") == 1
    psql.execute("UPDATE unmarked_ends SET ended_at = ended_at - interval '2 minutes'")
    late = add_session(psql, user_id, user_gen=0)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT FROM login_sessions WHERE id = %s FOR UPDATE", (late,))
        server.housekeeper.tick()
        assert one(psql, "SELECT count(*) FROM unmarked_ends") == 1
    server.housekeeper.tick()
    server.housekeeper.tick()
    assert (one(psql, "SELECT count(*) FROM unmarked_ends"), marked(psql)) == (0, MANY + 1)
    assert seen(user_id)[0] == (0, MANY + 1, MANY + 1)


def test_several_users_are_out_before_any_row_of_theirs_is_marked(psql: psycopg.Connection) -> None:
    out, again, never = (add_user(psql, name) for name in ("out", "again", "never"))
    for user_id in (out, again, never):
        add_many(psql, user_id, 30)
    for user_id in (out, again):
        force_logout.revoke_user(UUID(user_id), ROOT)
    add_session(psql, again, user_gen=1)
    force_logout.revoke_user(UUID(again), ROOT)
    add_session(psql, again, user_gen=2)
    assert marked(psql) < 61
    expected = {"active": {"again": 1, "never": 30}, "ended": {"out": 30, "again": 31}}
    for state, of_each in expected.items():
        page = list_sessions(SessionFilter(state=state), limit=200)
        assert Counter(item.username for item in page.items) == of_each
        assert page.total == sum(of_each.values())
        for user_id, name in ((out, "out"), (again, "again"), (never, "never")):
            for wanted in (SessionFilter(user_id=user_id), SessionFilter(user=name), SessionFilter(user=user_id)):
                assert list_sessions(replace(wanted, state=state)).total == of_each.get(name, 0), wanted
    assert {item.state for item in list_sessions(SessionFilter(state="active"), limit=200).items} == {"active"}


def states(psql: psycopg.Connection) -> dict[str, str]:
    found = {item.session_id: item.state for item in list_sessions(SessionFilter(state="all")).items}
    for state in set(found.values()):
        listed = {item.session_id for item in list_sessions(SessionFilter(state=state)).items}
        assert listed == {session_id for session_id, its in found.items() if its == state}
    return found


def test_an_expired_session_is_so_at_once_and_its_row_follows(psql: psycopg.Connection, server: Server) -> None:
    user_id = add_user(psql, "ann")
    now = one(psql, "SELECT now()")
    live, over = add_session(psql, user_id), add_session(psql, user_id, expires_at=now)
    for shelf in (0, -2):
        assert states(psql) == {live: "active", over: "expired"}
        assert one(psql, "SELECT shelf FROM login_sessions WHERE id = %s", (over,)) == shelf
        server.housekeeper.tick()
    assert [item.ended_at for item in list_sessions(SessionFilter(state="expired")).items] == [None]


def test_whoever_cleans_goes_on_until_nothing_is_left(psql: psycopg.Connection, server: Server) -> None:
    add_many(psql, add_user(psql, "ann"), BATCH + 1)
    psql.execute("UPDATE login_sessions SET expires_at = now()")

    def waiting() -> int:
        return int(one(psql, "SELECT count(*) FROM login_sessions WHERE shelf = 0"))

    assert (server.housekeeper.tick(cleans=False), waiting()) == (False, BATCH + 1)
    assert (server.housekeeper.tick(), waiting()) == (True, 1)
    assert (server.housekeeper.tick(), waiting()) == (False, 0)


def test_one_of_all_the_servers_processes_a_second_cleans(server: Server, psql: psycopg.Connection) -> None:
    def duties(of: int) -> int:
        return sum(server.housekeeper.is_on_duty() for _ in range(of))

    for service in ("a service", "lastcall"):
        assert duties(50) == 50
        psql.execute(
            "INSERT INTO workers (id, service, host, pid, lease_s)"
            " SELECT gen_random_uuid(), %s, 'x', 1, 60 FROM generate_series(2, 4)",
            (service,),
        )
    assert 50 < duties(400) < 150


def test_a_process_cleans_when_it_is_on_duty_and_goes_on_while_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    there_is_more, done = [True, True, False, False], []
    enough = threading.Event()

    def tick(*, cleans: bool) -> bool:
        done.append(cleans)
        if not there_is_more:
            enough.set()
            return False
        return there_is_more.pop(0)

    housekeeper = Housekeeper(nullcontext, WorkerWatch(), Seen(), Changes())
    monkeypatch.setattr(housekeeping, "TICK_S", 0.001)
    monkeypatch.setattr(housekeeper, "tick", tick)
    monkeypatch.setattr(housekeeper, "is_on_duty", lambda: len(done) == 4)
    housekeeper.ensure_running()
    assert enough.wait(10)
    housekeeper.stop()
    assert done[:5] == [True, True, True, False, True]


@pytest.mark.parametrize("act", ["user", "everyone"])
@pytest.mark.parametrize("noted", [True, False])
def test_a_session_that_has_expired_counts_as_ended_once_its_user_is_out(
    psql: psycopg.Connection, server: Server, act: str, noted: bool
) -> None:
    user_id = add_user(psql, "ann")
    over = add_session(psql, user_id, expires_at=one(psql, "SELECT now()"))
    if noted:
        server.housekeeper.tick()
    if act == "user":
        assert force_logout.revoke_user(UUID(user_id), ROOT).sessions_ended == 0
    else:
        assert force_logout.revoke_everyone(ROOT).sessions_ended == 0
    assert states(psql) == {over: "ended"}
    tick_until_marked(server, psql, 1)
    assert states(psql) == {over: "ended"}


def test_a_session_is_back_when_the_clock_has_stepped_back(psql: psycopg.Connection, server: Server) -> None:
    user_id = add_user(psql, "ann")
    session_id = add_session(psql, user_id, expires_at=one(psql, "SELECT now()"))
    server.housekeeper.tick()
    psql.execute("UPDATE login_sessions SET expires_at = now() + interval '1 hour'")  # as if it were earlier
    assert states(psql) == {session_id: "expired"}
    psql.execute("SELECT bring_back_cutoffs()")
    assert states(psql) == {session_id: "active"}


def test_sessions_of_two_log_outs_of_everyone_are_all_listed_in_order(psql: psycopg.Connection) -> None:
    user_id = add_user(psql, "ann")
    made = []
    for _ in range(3):
        made += [add_session(psql, user_id), add_session(psql, user_id)]
        force_logout.revoke_everyone(ROOT)
    made.append(add_session(psql, user_id))
    pages, cursor = [], None
    while not pages or cursor:
        page = list_sessions(SessionFilter(state="all"), sort="created_at", limit=2, cursor=cursor)
        pages, cursor = [*pages, *page.items], page.next
    assert [item.session_id for item in pages] == made
    assert [item.session_id for item in list_sessions(SessionFilter(state="ended"), sort="created_at").items] == made[
        :-1
    ]


def test_sessions_are_found_by_a_name_of_before_until_they_are_purged(psql: psycopg.Connection, server: Server) -> None:
    gone, renamed = add_user(psql, "gone-ann"), add_user(psql, "bob")
    old = [add_session(psql, gone), add_session(psql, renamed)]
    psql.execute("UPDATE users SET username = 'rob' WHERE id = %s", (renamed,))
    users.delete_user(UUID(gone), ROOT)
    new = add_session(psql, renamed)

    def found(**wanted: str) -> list[str]:
        return [
            item.session_id for item in list_sessions(SessionFilter(state="all", **wanted), sort="created_at").items
        ]

    assert found(q="e-an") == found(user="Gone-Ann") == [old[0]]
    assert found(q="bo") == found(user="bob") == [old[1]]
    assert found(q="ROB") == found(user="rob") == [old[1], new], "his sessions, whatever he was called"
    add_user(psql, "bob")
    assert found(user="bob") == [old[1]]
    psql.execute("UPDATE login_sessions SET expires_at = now() - interval '31 days' WHERE user_id = %s", (gone,))
    assert purge()["login_sessions"] == 1
    assert one(psql, "SELECT array_agg(username) FROM former_names") == ["bob"]
    psql.execute("DELETE FROM users WHERE username = 'nobody'")
    add_user(psql, "never in")
    psql.execute("DELETE FROM users WHERE username = 'never in'")
    assert one(psql, "SELECT array_agg(username) FROM former_names") == ["bob"]
