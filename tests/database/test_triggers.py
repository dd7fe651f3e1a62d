"""No bypass: whatever takes something away from a user, from any client, revokes in the same transaction."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from flask import Flask

from lastcall.claims import Claims
from lastcall.clock import boottime_ns
from lastcall.statements import GIVE_BACK
from models.canary import Canary
from models.database import transaction
from models.purge import purge
from models.worker import WorkerWatch, observe_workers
from tests.actors import Actor
from tests.conftest import PASSWORD, MakeUser
from tests.database.conftest import CatchUp, one

BY_PSQL = "database role lastcall"

USER_ACTS = {
    "DELETE FROM users WHERE id = %(id)s": "user_deleted",
    "UPDATE users SET disabled_at = now() WHERE id = %(id)s": "user_disabled",
    "UPDATE users SET password_hash = 'another' WHERE id = %(id)s": "password_changed",
    "UPDATE users SET gen = gen + 1 WHERE id = %(id)s": "generation_raised",
    "DELETE FROM user_roles WHERE user_id = %(id)s AND role = 'viewer'": "role_lost",
    "UPDATE user_roles SET role = 'guest' WHERE user_id = %(id)s AND role = 'viewer'": "role_lost",
    "INSERT INTO cutoffs (scope, subject, min_gen, expires_at)"
    " VALUES ('user', %(id)s, 1, now() + '1 h')": "generation_raised",
    "INSERT INTO cutoffs AS c (scope, subject, min_gen, expires_at) VALUES ('user', %(id)s, 1, now() + '1 h')"
    " ON CONFLICT (scope, subject) DO UPDATE SET min_gen = c.min_gen + 1": "generation_raised",
}


@pytest.fixture
def bob(make_user: MakeUser) -> Actor:
    """Somebody else, who must stay in; with two roles."""
    return make_user("bob", "editor", "viewer")


def newest_history(psql: psycopg.Connection) -> dict[str, Any]:
    cursor = psql.execute(
        "SELECT scope, subject, subject_name, actor_name, cause, sessions_ended FROM revocations"
        " ORDER BY created_at DESC LIMIT 1"
    )
    row = cursor.fetchone()
    assert row is not None and cursor.description is not None
    return dict(zip([column.name for column in cursor.description], row, strict=True))


RAISES = {
    "user": "INSERT INTO cutoffs AS c (scope, subject, min_gen, expires_at) VALUES ('user', %(id)s, 1, now() + '1 s')",
    "session": "INSERT INTO cutoffs AS c (scope, subject, expires_at) VALUES ('session', %(sid)s, now() + '1 s')",
    "everyone": "INSERT INTO cutoffs AS c (scope, min_gen, expires_at) VALUES ('everyone', 1, now() + '1 s')",
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("scope", RAISES)
def test_a_cutoff_that_psql_raises_lives_as_long_as_the_tokens_it_is_about(
    psql: psycopg.Connection, alice: Actor, scope: str, again: bool
) -> None:
    ids = {"id": alice.user_id, "sid": alice.session_id}
    if again:  # an older one, soon over
        psql.execute(RAISES[scope], ids)
        psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER USER")
        psql.execute("UPDATE cutoffs SET expires_at = now() + interval '1 s'")
        psql.execute("ALTER TABLE cutoffs ENABLE TRIGGER USER")
        ids["sid"] = alice.again().session_id
    raised = " ON CONFLICT (scope, subject) DO UPDATE SET min_gen = c.min_gen + 1"
    psql.execute(RAISES[scope] + raised, ids)
    kept = (
        "SELECT max(c.expires_at) >= max(s.token_expires_at) + cutoff_leeway() FROM cutoffs AS c, login_sessions AS s"
    )
    assert one(psql, f"{kept} WHERE c.scope = %s", (scope,))


@pytest.mark.parametrize("scope", ["user", "everyone"])
def test_a_cutoff_that_is_only_kept_for_longer_does_not_hit_newer_tokens_from_elsewhere(
    psql: psycopg.Connection, alice: Actor, scope: str
) -> None:
    psql.execute(RAISES[scope], {"id": alice.user_id, "sid": alice.session_id})
    moment = one(psql, "SELECT cutoff_at FROM cutoffs WHERE scope = %s", (scope,))
    subject = alice.user_id if scope == "user" else ""
    psql.execute("SELECT raise_cutoff(%s, %s, 1, now() + '1 day')", (scope, subject))
    row = psql.execute(
        "SELECT cutoff_at, expires_at > now() + '1 h' FROM cutoffs WHERE scope = %s", (scope,)
    ).fetchone()
    assert row == (moment, True)


UNKNOWN = "11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    "values",
    [f"'user', '{UNKNOWN}', 1", "'user', 'somebody', 1", f"'session', '{UNKNOWN}', 0", "'everyone', '', 0"],
)
def test_a_cutoff_of_what_no_row_stands_for_is_remembered_when_it_is_purged(
    psql: psycopg.Connection, app: Flask, values: str
) -> None:
    scope, subject = values.replace("'", "").split(", ")[:2]
    psql.execute(
        f"INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ({values}, now() - interval '1 min')"
    )
    with app.app_context():
        assert purge()["cutoffs"] == 1
    iat = int(one(psql, "SELECT extract(epoch FROM cutoff_at) FROM revocations"))
    token = Claims(subject or "x", subject, None, None, iat, iat + 900)
    assert app.extensions["lastcall"].asker.refuses(token) == scope
    assert newest_history(psql)["actor_name"] == BY_PSQL


def test_what_the_server_raises_by_itself_is_not_in_the_history(
    psql: psycopg.Connection, app: Flask, alice: Actor
) -> None:
    psql.execute("DELETE FROM users")
    before = one(psql, "SELECT count(*) FROM revocations")
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER USER")
    psql.execute("DELETE FROM cutoffs")
    psql.execute("ALTER TABLE cutoffs ENABLE TRIGGER USER")
    with app.app_context(), transaction():
        Canary().send(set())
    psql.execute("SELECT bring_back_cutoffs()")
    with psql.transaction():
        psql.execute("SELECT set_config('lastcall.cause', 'database_went_back', TRUE)")
        psql.execute(GIVE_BACK, (["user", "session"], [UNKNOWN, UNKNOWN], [7, 0]))
    assert one(psql, "SELECT count(*) FROM cutoffs") == 4
    psql.execute("UPDATE cutoffs SET expires_at = expires_at + interval '1 h'")
    assert one(psql, "SELECT count(*) FROM revocations") == before


def test_no_generation_is_so_high_that_the_next_revocation_would_fail(
    psql: psycopg.Connection, alice: Actor, catch_up: CatchUp
) -> None:
    for act in ("INSERT INTO cutoffs VALUES ('user', %s, %s, now(), '3', now())", "UPDATE users SET gen = %s"):
        values = (alice.user_id, 2**52 + 1)[-act.count("%s") :]
        with pytest.raises(psycopg.errors.CheckViolation):
            psql.execute(act, values)
    psql.execute("UPDATE users SET gen = %s", (2**52 - 1,))
    psql.execute("UPDATE users SET gen = gen + 1 WHERE id = %s", (alice.user_id,))
    catch_up()
    assert not alice.is_in()


@pytest.mark.parametrize("act", USER_ACTS)
def test_an_act_by_psql_signs_the_user_out(
    psql: psycopg.Connection, alice: Actor, bob: Actor, catch_up: CatchUp, act: str
) -> None:
    second = alice.again()
    psql.execute(act, {"id": alice.user_id})
    catch_up()
    assert not alice.is_in() and not second.is_in()
    assert bob.is_in()
    ends = psql.execute(
        "SELECT DISTINCT ended_at IS NOT NULL, ended_scope::text, ended_by, end_reason FROM login_sessions"
        " WHERE user_id = %s",
        (alice.user_id,),
    ).fetchall()
    assert ends == [(True, "user", BY_PSQL, USER_ACTS[act])]
    assert one(psql, "SELECT count(*) FROM revocations") == 1
    assert newest_history(psql) == {
        "scope": "user",
        "subject": alice.user_id,
        "subject_name": "alice",
        "actor_name": BY_PSQL,
        "cause": USER_ACTS[act],
        "sessions_ended": 2,
    }


@pytest.mark.parametrize("act", USER_ACTS)
def test_a_rolled_back_act_revokes_nothing(psql: psycopg.Connection, alice: Actor, catch_up: CatchUp, act: str) -> None:
    with psql.transaction(force_rollback=True):
        psql.execute(act, {"id": alice.user_id})
    catch_up()
    assert alice.is_in()
    assert one(psql, "SELECT count(*) FROM cutoffs") == 0
    assert one(psql, "SELECT count(*) FROM revocations") == 0


@pytest.mark.parametrize("act", [act for act in USER_ACTS if USER_ACTS[act] in ("generation_raised", "role_lost")])
def test_who_signs_in_after_it_is_accepted(psql: psycopg.Connection, alice: Actor, catch_up: CatchUp, act: str) -> None:
    psql.execute(act, {"id": alice.user_id})
    assert alice.again().is_in()
    catch_up()
    assert alice.again().is_in()


EVERYONE_ACTS = [
    "UPDATE everyone SET gen = gen + 1",
    "INSERT INTO cutoffs (scope, min_gen, expires_at) VALUES ('everyone', 1, now() + '1 h')",
    "TRUNCATE users CASCADE",
]


@pytest.mark.parametrize("act", EVERYONE_ACTS)
def test_an_act_by_psql_signs_everyone_out(
    psql: psycopg.Connection, app: Flask, alice: Actor, bob: Actor, catch_up: CatchUp, act: str
) -> None:
    psql.execute(act)
    catch_up()
    assert not alice.is_in() and not bob.is_in()
    with app.app_context():
        app.extensions["lastcall_server"].housekeeper.tick()
    ends = psql.execute("SELECT DISTINCT ended_at IS NOT NULL, ended_scope::text, ended_by FROM login_sessions")
    assert ends.fetchall() == [(True, "everyone", BY_PSQL)]
    found = newest_history(psql)
    assert (found["scope"], found["actor_name"]) == ("everyone", BY_PSQL)
    if not act.startswith("TRUNCATE"):
        assert alice.again().is_in()


@pytest.mark.parametrize("tables", ["login_sessions", "cutoffs", "login_sessions, cutoffs", "users, cutoffs CASCADE"])
def test_truncated_tables_sign_everyone_out(
    psql: psycopg.Connection, alice: Actor, bob: Actor, catch_up: CatchUp, tables: str
) -> None:
    psql.execute("UPDATE users SET gen = gen + 1 WHERE username = 'alice'")
    longest = one(psql, "SELECT max(token_expires_at) + cutoff_leeway() FROM login_sessions")
    psql.execute(f"TRUNCATE {tables}")
    catch_up()
    assert not alice.is_in() and not bob.is_in()
    assert one(psql, "SELECT max(expires_at) FROM cutoffs WHERE scope = 'everyone'") >= longest


def test_a_truncated_session_table_does_not_shorten_a_cutoff(psql: psycopg.Connection, alice: Actor) -> None:
    psql.execute("UPDATE login_sessions SET token_expires_at = now() + interval '1 day'")  # a longer setting of before
    longest = one(psql, "SELECT max(token_expires_at) + cutoff_leeway() FROM login_sessions")
    psql.execute("TRUNCATE login_sessions")
    assert one(psql, "SELECT expires_at FROM cutoffs") >= longest


def test_no_cutoff_is_deleted_while_a_token_may_live(psql: psycopg.Connection, alice: Actor) -> None:
    psql.execute("UPDATE users SET gen = gen + 1 WHERE username = 'alice'")
    told: list[str | None] = []
    psql.add_notice_handler(lambda diagnostic: told.append(diagnostic.message_primary))
    assert psql.execute("DELETE FROM cutoffs").rowcount == 0
    assert one(psql, "SELECT count(*) FROM cutoffs") == 1
    assert told[0] is not None and alice.user_id in told[0] and "until its last token has expired" in told[0]


def test_who_writes_infinity_for_never_is_read_by_all(psql: psycopg.Connection, root: Actor, alice: Actor) -> None:
    for scope, subject in (("user", alice.user_id), ("session", "of elsewhere")):
        psql.execute(
            "INSERT INTO cutoffs (scope, subject, min_gen, cutoff_at, expires_at)"
            " VALUES (%s, %s, 5, '-infinity', 'infinity')",
            (scope, subject),
        )
    psql.execute("UPDATE users SET disabled_at = 'infinity' WHERE id = %s", (alice.user_id,))
    psql.execute("INSERT INTO users (username, password_hash, disabled_at) VALUES ('carol', '!', '-infinity')")
    for path in ("/admin/revocations", "/admin/users", f"/admin/users/{alice.user_id}"):
        assert root.get(path).status_code == 200
    expires = root.get("/admin/revocations").json["items"][-1]["expires_at"]
    assert expires == "9999-01-01T00:00:00.000000Z"


def test_when_the_table_of_workers_is_truncated_a_confirmation_waits_one_lease(
    psql: psycopg.Connection, app: Flask
) -> None:
    watch = WorkerWatch()
    with app.app_context():
        observe_workers(watch)
        assert watch.has_settled(boottime_ns())
        psql.execute("TRUNCATE workers")
        observe_workers(watch)
        assert not watch.has_settled(boottime_ns())


SESSION_ACTS = [
    "UPDATE login_sessions SET ended_at = now() WHERE id = %(sid)s",
    "DELETE FROM login_sessions WHERE id = %(sid)s",
    "INSERT INTO cutoffs (scope, subject, expires_at) VALUES ('session', %(sid)s, now() + '1 h')",
]


@pytest.mark.parametrize("act", SESSION_ACTS)
def test_an_act_by_psql_ends_one_session(psql: psycopg.Connection, alice: Actor, catch_up: CatchUp, act: str) -> None:
    other = alice.again()
    psql.execute(act, {"sid": alice.session_id})
    catch_up()
    assert not alice.is_in()
    assert other.is_in()
    refreshed = alice.post("/auth/refresh", json={"refresh_token": alice.tokens["refresh_token"]})
    assert refreshed.status_code == 401
    assert [item["session_id"] for item in other.get("/me/sessions").json["items"]] == [other.session_id]


def test_a_hand_inserted_session_cutoff_marks_the_row(psql: psycopg.Connection, alice: Actor) -> None:
    psql.execute(SESSION_ACTS[2], {"sid": alice.session_id})
    ended = "SELECT ended_at IS NOT NULL FROM login_sessions WHERE id = %s"
    assert one(psql, ended, (alice.session_id,)) is True


ELSEWHERE = [
    "DELETE FROM public.users WHERE id = %(id)s",
    "UPDATE public.users SET username = 'alicia', password_hash = 'another' WHERE id = %(id)s",
    "DELETE FROM public.user_roles WHERE user_id = %(id)s",
    "UPDATE public.everyone SET gen = gen + 1",
    "UPDATE public.login_sessions SET ended_at = now() WHERE id = %(sid)s",
    "DELETE FROM public.login_sessions WHERE id = %(sid)s",
    "INSERT INTO public.cutoffs (scope, subject, min_gen) VALUES ('user', %(id)s, 1)",
    "INSERT INTO public.cutoffs (scope, subject) VALUES ('session', %(sid)s)",
    "TRUNCATE public.users, public.login_sessions, public.cutoffs, public.workers CASCADE",
]


@pytest.mark.parametrize("act", ELSEWHERE)
@pytest.mark.parametrize("looks_in", ["pg_catalog", "pg_temp, public"])
def test_an_act_of_who_looks_for_tables_elsewhere_revokes_as_well(
    psql: psycopg.Connection, alice: Actor, catch_up: CatchUp, looks_in: str, act: str
) -> None:
    for table in ("users", "everyone", "login_sessions", "cutoffs", "revocations", "incarnation"):
        psql.execute(f"CREATE TEMP TABLE {table} (LIKE public.{table} INCLUDING ALL)")
    psql.execute("INSERT INTO pg_temp.everyone (one) VALUES (TRUE)")
    psql.execute(f"SET search_path = {looks_in}")
    psql.execute(act, {"id": alice.user_id, "sid": alice.session_id})
    psql.execute("SET search_path = public")
    psql.execute("DISCARD TEMP")
    catch_up()
    assert not alice.is_in()


def test_two_roles_lost_in_one_transaction_are_one_revocation(psql: psycopg.Connection, bob: Actor) -> None:
    with psql.transaction():
        psql.execute("DELETE FROM user_roles WHERE user_id = %s AND role = 'editor'", (bob.user_id,))
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (bob.user_id,))
    assert one(psql, "SELECT gen FROM users WHERE id = %s", (bob.user_id,)) == 1
    assert one(psql, "SELECT count(*) FROM revocations") == 1


def test_a_sign_in_between_two_lost_roles_does_not_survive_the_second(
    psql: psycopg.Connection, bob: Actor, catch_up: CatchUp
) -> None:
    psql.execute("DELETE FROM user_roles WHERE user_id = %s AND role = 'editor'", (bob.user_id,))
    between = bob.again()
    psql.execute("DELETE FROM user_roles WHERE user_id = %s", (bob.user_id,))
    catch_up()
    assert not bob.is_in() and not between.is_in() and bob.again().is_in()


@pytest.mark.parametrize("off", ["off", "false"])
def test_the_opt_out_keeps_the_session_when_a_role_is_lost(
    psql: psycopg.Connection, alice: Actor, catch_up: CatchUp, off: str
) -> None:
    with psql.transaction():
        psql.execute(f"SET LOCAL lastcall.revoke_on_role_removal = {off}")
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
    catch_up()
    assert alice.is_in()
    psql.execute("INSERT INTO user_roles VALUES (%s, 'viewer')", (alice.user_id,))
    psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
    catch_up()
    assert not alice.is_in(), "the opt-out holds for its own transaction only"


def test_truncated_roles_sign_their_holders_out(psql: psycopg.Connection, alice: Actor, catch_up: CatchUp) -> None:
    psql.execute("TRUNCATE user_roles")
    catch_up()
    assert not alice.is_in()


def test_what_takes_nothing_away_signs_nobody_out(psql: psycopg.Connection, alice: Actor, catch_up: CatchUp) -> None:
    psql.execute("UPDATE users SET username = 'alicia', password_hash = password_hash")
    psql.execute("UPDATE users SET disabled_at = NULL")
    psql.execute("UPDATE users SET gen = 0")
    psql.execute("UPDATE user_roles SET role = role")
    psql.execute("INSERT INTO user_roles VALUES (%s, 'editor')", (alice.user_id,))
    psql.execute("DELETE FROM user_roles WHERE role = 'nobody has it'")
    catch_up()
    assert alice.is_in()
    assert one(psql, "SELECT count(*) FROM revocations") == 0


def test_a_deleted_users_id_that_comes_back_keeps_its_generation(
    psql: psycopg.Connection, alice: Actor, catch_up: CatchUp
) -> None:
    with psql.transaction():
        psql.execute("CREATE TEMP TABLE kept AS SELECT * FROM users WHERE id = %s", (alice.user_id,))
        psql.execute("DELETE FROM users WHERE id = %s", (alice.user_id,))
    psql.execute("INSERT INTO users SELECT * FROM kept")
    catch_up()
    assert one(psql, "SELECT gen FROM users WHERE id = %s", (alice.user_id,)) == 1
    assert not alice.is_in()
    refreshed = alice.post("/auth/refresh", json={"refresh_token": alice.tokens["refresh_token"]})
    assert refreshed.status_code == 401
    assert Actor.signed_in(alice.client, "alice", PASSWORD).is_in()


def test_the_history_names_who_said_who_he_is(psql: psycopg.Connection, alice: Actor) -> None:
    with psql.transaction():
        psql.execute("SET LOCAL lastcall.actor_name = 'nightly clean-up'")
        psql.execute("SET LOCAL lastcall.reason = 'left the company'")
        psql.execute("DELETE FROM users WHERE id = %s", (alice.user_id,))
    assert newest_history(psql)["actor_name"] == "nightly clean-up"
    assert one(psql, "SELECT reason FROM revocations") == "left the company"
    assert one(psql, "SELECT end_reason FROM login_sessions") == "left the company"
