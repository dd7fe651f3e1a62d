"""Bounded: a cutoff is kept until the last token it could cover has expired plus leeway, and no longer."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from blueprints.server import Server
from models import everyone, force_logout, refreshing, sign_in
from models import user as users
from models.audit import Actor as Who
from models.database import db, transaction
from models.database_errors import Busy
from models.everyone import note_access_ttl
from models.minting import ClientInfo
from models.purge import BATCH, KEEP_SESSIONS_DAYS, purge, purge_once
from settings import Settings
from tests.actors import Actor
from tests.conftest import PASSWORD
from tests.database.conftest import CatchUp, accepts, add_session, add_user, one, statements

LEEWAY_S = 10
SOMEBODY = Who("somebody")
SCOPES = ["user", "session", "everyone"]

pytestmark = pytest.mark.usefixtures("context")


def revoke(scope: str, actor: Actor) -> None:
    if scope == "user":
        force_logout.revoke_user(UUID(actor.user_id), SOMEBODY)
    elif scope == "session":
        force_logout.revoke_session(UUID(actor.session_id), SOMEBODY)
    else:
        force_logout.revoke_everyone(SOMEBODY)


def time_passes_until(psql: psycopg.Connection, left_s: float) -> dict[str, int]:
    """Purge at a moment when the newest token has `left_s` to live: everything written moves into the past."""
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER ALL")
    with transaction() as session:
        move = (
            "WITH passed AS (SELECT max(token_expires_at) - clock_timestamp() - make_interval(secs => :left) AS by"
            " FROM login_sessions)"
        )
        session.execute(
            text(
                f"{move}, moved AS (UPDATE login_sessions SET token_expires_at = token_expires_at - by FROM passed)"
                " UPDATE cutoffs SET expires_at = expires_at - by, cutoff_at = cutoff_at - by FROM passed"
            ),
            {"left": left_s},
        )
        return purge_once()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("left_s", [1, 0, 0.5 - LEEWAY_S])
def test_a_cutoff_stays_while_its_last_token_may_be_accepted(
    psql: psycopg.Connection, alice: Actor, scope: str, left_s: float
) -> None:
    revoke(scope, alice)
    assert time_passes_until(psql, left_s)["cutoffs"] == 0
    assert one(psql, "SELECT count(*) FROM cutoffs") == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_a_cutoff_goes_when_its_last_token_has_expired_for_longer_than_the_leeway(
    psql: psycopg.Connection, alice: Actor, scope: str
) -> None:
    revoke(scope, alice)
    # Sign-in and revocation are not the same moment: that much longer a token that was in flight may live.
    late = one(psql, "SELECT max(expires_at) FROM cutoffs") - one(
        psql, "SELECT max(token_expires_at) FROM login_sessions"
    )
    assert timedelta(seconds=LEEWAY_S) <= late < timedelta(seconds=LEEWAY_S + 60)
    assert time_passes_until(psql, -late.total_seconds() - 0.001)["cutoffs"] == 1
    assert one(psql, "SELECT count(*) FROM cutoffs") == 0


@pytest.mark.parametrize("before_s", [1.0, 0.2])
def test_a_cutoff_is_not_purged_even_a_little_early(psql: psycopg.Connection, before_s: float) -> None:
    psql.execute("SELECT raise_cutoff('session', 'x', 0, now() + '1 h')")
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER ALL")
    with transaction() as session:
        session.execute(
            text("UPDATE cutoffs SET expires_at = clock_timestamp() + make_interval(secs => :s)"), {"s": before_s}
        )
        assert purge_once()["cutoffs"] == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_the_tokens_themselves_say_how_long_a_cutoff_is_kept_not_todays_setting(
    psql: psycopg.Connection, settings: Settings, alice: Actor, scope: str
) -> None:
    longer = replace(settings, access_ttl=900)
    tokens = sign_in.sign_in("alice", PASSWORD, ClientInfo("old", None, ""), longer)
    with transaction():
        note_access_ttl(60, exactly=True)
    revoke(scope, replace(alice, tokens={"user_id": tokens.user_id, "session_id": tokens.session_id}))
    kept: datetime = one(psql, "SELECT max(expires_at) FROM cutoffs")
    last: datetime = one(psql, "SELECT max(token_expires_at) FROM login_sessions")
    assert kept >= last + timedelta(seconds=LEEWAY_S)


def test_no_token_lives_longer_than_cutoffs_know_of(psql: psycopg.Connection, settings: Settings, alice: Actor) -> None:
    longer, here = replace(settings, access_ttl=900), ClientInfo("new", None, "")
    tokens = sign_in.sign_in("alice", PASSWORD, here, longer)
    assert (tokens.expires_in, one(psql, "SELECT access_ttl_s FROM everyone")) == (900, 900)
    with transaction():
        note_access_ttl(60, exactly=True)  # init-db, on a host with other settings
    refreshed = refreshing.refresh(tokens.refresh_token, here, longer)
    assert (refreshed.expires_in, one(psql, "SELECT access_ttl_s FROM everyone")) == (60, 60)
    again = sign_in.sign_in("alice", PASSWORD, here, longer)
    assert (again.expires_in, one(psql, "SELECT access_ttl_s FROM everyone")) == (900, 900)


def test_the_lifetime_is_not_shortened_while_a_token_is_being_minted(
    psql: psycopg.Connection, database_url: str, alice: Actor
) -> None:
    def shorten() -> None:
        with transaction():
            note_access_ttl(60, exactly=True)

    with psycopg.connect(database_url) as minting:
        add_session(minting, alice.user_id)
        with pytest.raises(Busy):
            shorten()
    shorten()
    assert one(psql, "SELECT access_ttl_s FROM everyone") == 60


def test_a_forgotten_transaction_does_not_make_each_sign_in_wait_to_note_a_longer_lifetime(
    psql: psycopg.Connection,
    database_url: str,
    settings: Settings,
    alice: Actor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longer, here = replace(settings, access_ttl=900), ClientInfo("new", None, "")
    with psycopg.connect(database_url) as forgotten, statements(db.engine) as sent:
        add_session(forgotten, alice.user_id)
        begun = time.monotonic()
        assert [sign_in.sign_in("alice", PASSWORD, here, longer).expires_in for _ in range(3)] == [300] * 3
        assert time.monotonic() - begun < 1.5, "what a lock is waited for elsewhere"
        assert sum("LOCK TABLE" in statement for statement, _ in sent) == 1
    monkeypatch.setattr(everyone, "_try_after_ns", 0)  # some seconds later
    assert [sign_in.sign_in("alice", PASSWORD, here, longer).expires_in for _ in range(2)] == [900] * 2
    assert everyone._try_after_ns == 0


@pytest.mark.parametrize("scope", ["user", "everyone"])
def test_a_cutoff_waits_for_a_sign_in_that_was_in_flight_when_it_was_made(
    psql: psycopg.Connection, alice: Actor, scope: str
) -> None:
    revoke(scope, alice)
    add_session(psql, alice.user_id, user_gen=0, everyone_gen=0)  # read before, committed after
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER ALL")
    psql.execute("UPDATE cutoffs SET expires_at = clock_timestamp() - interval '1 s'")
    assert purge()["cutoffs"] == 0


def test_a_deleted_users_cutoff_stays(
    psql: psycopg.Connection, server: Server, alice: Actor, catch_up: CatchUp
) -> None:
    users.delete_user(UUID(alice.user_id), SOMEBODY)
    assert purge()["cutoffs"] == 0
    catch_up()
    assert one(psql, "SELECT subject FROM cutoffs") == alice.user_id
    assert not accepts(server, alice.token)


def test_memory_shrinks_as_the_table_does(server: Server, alice: Actor, root: Actor, catch_up: CatchUp) -> None:
    cutoffs = server.lastcall.cutoffs
    assert len(cutoffs) == 0
    revoke("user", alice)
    revoke("session", root)
    catch_up()
    assert len(cutoffs) == 2
    last_s = cutoffs.now_s() + server.settings.access_ttl
    assert cutoffs.forget(last_s) == 0, "their tokens may still live"
    assert not accepts(server, alice.token)
    assert cutoffs.forget(last_s + LEEWAY_S + 60) == 2
    assert len(cutoffs) == 0


def test_what_is_purged_moves_the_horizon_for_tokens_without_generations(
    psql: psycopg.Connection, server: Server, catch_up: CatchUp
) -> None:
    psql.execute(
        "INSERT INTO cutoffs (scope, subject, cutoff_at, expires_at) VALUES"
        " ('session', 'x', now() - interval '1 h', now() - interval '1 min')"
    )
    newest = one(psql, "SELECT (extract(epoch FROM cutoff_at) * 1000000)::bigint FROM cutoffs")
    assert purge()["cutoffs"] == 1
    catch_up()
    assert server.lastcall.cutoffs.horizon_us >= newest


def test_purging_goes_on_in_batches_until_all_is_gone(psql: psycopg.Connection) -> None:
    psql.execute(
        "INSERT INTO cutoffs (scope, subject, expires_at)"
        " SELECT 'session', n::text, now() - interval '1 min' FROM generate_series(1, %s) AS n",
        (2 * BATCH + 5,),
    )
    with transaction():
        assert purge_once()["cutoffs"] == BATCH
    assert purge()["cutoffs"] == BATCH + 5


def test_sessions_are_kept_for_thirty_days_after_their_end(psql: psycopg.Connection) -> None:
    user_id, kept = add_user(psql, "alice"), []
    now = one(psql, "SELECT now()")
    for days in (0, KEEP_SESSIONS_DAYS - 1, KEEP_SESSIONS_DAYS + 1):
        over = now - timedelta(days=days)
        kept.append(add_session(psql, user_id, expires_at=over, token_expires_at=over))
    assert KEEP_SESSIONS_DAYS == 30
    assert purge()["login_sessions"] == 1
    assert {str(row[0]) for row in psql.execute("SELECT id FROM login_sessions")} == set(kept[:2])


def test_old_sign_in_attempts_go_and_the_history_stays(psql: psycopg.Connection, alice: Actor) -> None:
    revoke("user", alice)
    psql.execute(
        "INSERT INTO sign_in_attempts (name_key, address_key, tried_at) VALUES"
        " ('x', 'x', now() - interval '2 h'), ('x', 'x', now())"
    )
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER ALL")
    psql.execute("UPDATE cutoffs SET expires_at = now() - interval '1 day'")
    psql.execute("UPDATE login_sessions SET token_expires_at = now() - interval '1 day'")
    assert purge() == {"cutoffs": 1, "login_sessions": 0, "sign_in_attempts": 1}
    assert one(psql, "SELECT count(*) FROM revocations") == 1


@pytest.mark.parametrize(("ahead_days", "out"), [(KEEP_SESSIONS_DAYS - 2, False), (KEEP_SESSIONS_DAYS + 1, True)])
def test_when_the_clock_was_so_far_ahead_that_sessions_were_purged_everyone_is_out(
    psql: psycopg.Connection, server: Server, alice: Actor, catch_up: CatchUp, ahead_days: int, out: bool
) -> None:
    psql.execute("UPDATE everyone SET purged_at = clock_timestamp() + make_interval(days => %s)", (ahead_days,))
    for _ in range(2):
        psql.execute("SELECT bring_back_cutoffs()")
    catch_up()
    assert accepts(server, alice.token) is not out
    causes = psql.execute("SELECT scope, cause FROM revocations").fetchall()
    assert causes == ([("everyone", "clock_stepped_back")] if out else [])
    assert one(psql, "SELECT purged_at < clock_timestamp() FROM everyone")
    if out:
        assert one(psql, "SELECT expires_at > now() + interval '1 day' FROM cutoffs WHERE scope = 'everyone'")
