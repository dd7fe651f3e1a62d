"""Old out, new in: sign-in, refresh, password change and deletion against a revocation, started at the same moment.

Two measures, none of them a clock:

- With the old password, on a deleted user, or from a session that was there before, no token may survive at all.
- A sign-in whose session row the revoking transaction saw just before its commit must be refused.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from blueprints.server import Server
from lastcall.claims import Claims
from lastcall.errors import Revoked
from models import force_logout, own_password, refreshing, sign_in
from models.confirmation import confirm
from models.database import transaction
from models.errors import RefreshRejected
from models.everyone import note_access_ttl
from models.minting import Tokens
from models.session_filter import SessionFilter
from settings import Settings
from tests.conftest import PASSWORD
from tests.database.conftest import InThread, accepts, all_at_once, one
from tests.database.racing import HERE, MARKS, ROUNDS, SOMEBODY, name_of, new_user, revoke, survivors

pytestmark = MARKS

LOOK_AROUND = """
    CREATE TABLE seen (session_id uuid);
    CREATE FUNCTION look_around() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            PERFORM pg_sleep(random() * 0.01);
            INSERT INTO seen SELECT id FROM login_sessions;
            RETURN NULL;
        END $$;
    CREATE CONSTRAINT TRIGGER look_around AFTER INSERT ON revocations DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION look_around()
"""
"""The last that a revoking transaction does, within its COMMIT: whatever it sees was committed before."""


def test_no_sign_in_that_committed_before_a_force_logout_survives_it(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)
    psql.execute(LOOK_AROUND)
    survived = judged = 0
    for _ in range(ROUNDS):
        tokens = all_at_once(
            in_thread(revoke, server, "user", user_id, ""),
            *[in_thread(sign_in.sign_in, name, PASSWORD, HERE, settings)] * 3,
        )[1:]
        assert all(isinstance(token, Tokens) for token in tokens), tokens
        seen = {row[0] for row in psql.execute("DELETE FROM seen RETURNING session_id::text")}
        before = [token for token in tokens if token.session_id in seen]
        judged += len(before)
        survived += sum(accepts(server, token.access_token) for token in before)
    assert judged > 0, "the race was none"
    assert survived == 0


@pytest.mark.parametrize("scope", ["user", "everyone", "session"])
def test_a_sign_in_that_begins_after_it_has_returned_is_accepted_at_once(
    server: Server, settings: Settings, psql: psycopg.Connection, scope: str
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)
    old = sign_in.sign_in(name, PASSWORD, HERE, settings)
    for _ in range(ROUNDS):
        revoke(server, scope, user_id, old.session_id)
        new = sign_in.sign_in(name, PASSWORD, HERE, settings)
        assert not accepts(server, old.access_token)
        assert accepts(server, new.access_token)
        old = new


def test_no_sign_in_with_the_old_password_survives_its_change(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    user_id = new_user("password number 0")
    name = name_of(psql, user_id)
    survived = signed_in = 0
    for number in range(ROUNDS):
        old, new = f"password number {number}", f"password number {number + 1}"
        results = all_at_once(
            in_thread(sign_in.sign_in, name, old, HERE, settings), in_thread(revoke, server, f"to {new}", user_id, "")
        )
        survived += survivors(server, results)
        signed_in += isinstance(results[0], Tokens)
        psql.execute("DELETE FROM sign_in_attempts")
    assert signed_in > 0, "the race was none"
    assert survived == 0


def test_only_who_changes_his_own_password_goes_on(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    user_id = new_user("password number 0")
    name = name_of(psql, user_id)
    survived = 0
    for number in range(ROUNDS):
        old, new = f"password number {number}", f"password number {number + 1}"
        mine = sign_in.sign_in(name, old, HERE, settings)
        claims = server.lastcall.guard.check(mine.access_token)
        changed, thief = all_at_once(
            in_thread(own_password.change_password, claims, old, new, HERE, settings),
            in_thread(sign_in.sign_in, name, old, HERE, settings),
        )
        kept, position = changed
        assert confirm(position, server.watch).in_force
        assert accepts(server, kept.access_token)
        survived += survivors(server, [thief, mine])
        psql.execute("DELETE FROM sign_in_attempts")
    assert survived == 0


def test_no_sign_in_survives_the_deletion_of_its_user(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    survived = signed_in = 0
    for _ in range(ROUNDS):
        user_id = new_user()
        name = name_of(psql, user_id)
        results = all_at_once(
            in_thread(sign_in.sign_in, name, PASSWORD, HERE, settings),
            in_thread(revoke, server, "deletion", user_id, ""),
        )
        survived += survivors(server, results)
        signed_in += isinstance(results[0], Tokens)
        psql.execute("DELETE FROM sign_in_attempts")
    assert signed_in > 0, "the race was none"
    assert survived == 0


@pytest.mark.parametrize("scope", ["user", "session", "everyone", "deletion"])
def test_no_refresh_survives_a_revocation(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread, scope: str
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)
    longer = replace(settings, access_ttl=settings.longest_lifetime)
    with transaction():
        note_access_ttl(longer.access_ttl)
    survived = refreshed = 0
    for _ in range(ROUNDS):
        if scope == "deletion":
            user_id = new_user()
            name = name_of(psql, user_id)
        old = sign_in.sign_in(name, PASSWORD, HERE, settings)
        results = all_at_once(
            in_thread(refreshing.refresh, old.refresh_token, HERE, longer),
            in_thread(revoke, server, scope, user_id, old.session_id),
        )
        survived += survivors(server, [*results, old])
        refreshed += isinstance(results[0], Tokens)
        for token in [old.refresh_token, *(r.refresh_token for r in results if isinstance(r, Tokens))]:
            with pytest.raises((RefreshRejected, Revoked)):
                refreshing.refresh(token, HERE, settings)
        if scope == "session":
            # The refresh gave a token that lives longer: the cutoff must have heard of it.
            short = "SELECT count(*) FROM cutoffs AS c JOIN login_sessions AS s ON c.subject = s.id::text"
            assert one(psql, short + " WHERE c.expires_at < s.token_expires_at + cutoff_leeway()") == 0
    assert refreshed > 0, "the race was none"
    assert survived == 0


@pytest.mark.parametrize("scope", ["user", "session", "everyone"])
def test_no_change_of_the_own_password_rescues_a_session_that_is_revoked(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread, scope: str
) -> None:
    user_id = new_user("password number 0")
    name = name_of(psql, user_id)
    old = "password number 0"
    survived = 0
    for number in range(ROUNDS):
        new = f"password number {number + 1}"
        mine = sign_in.sign_in(name, old, HERE, settings)
        claims = server.lastcall.guard.check(mine.access_token)

        def change(claims: Claims = claims, old: str = old, new: str = new) -> Tokens:
            return own_password.change_password(claims, old, new, HERE, settings)[0]

        results = all_at_once(in_thread(change), in_thread(revoke, server, scope, user_id, mine.session_id))
        survived += survivors(server, [*results, mine])
        # Whoever was told that he was out has no new password either.
        has_changed = isinstance(results[0], Tokens)
        old = new if has_changed else old
    assert survived == 0


def test_nobody_who_is_kept_in_a_log_out_of_everyone_is_rescued_from_his_own(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)

    def keep(session_id: str) -> Tokens:
        position = force_logout.revoke_everyone(SOMEBODY, keep_session=session_id).position
        tokens = refreshing.renew(session_id, HERE, settings)
        assert confirm(position, server.watch).in_force
        return tokens

    survived = 0
    for number in range(ROUNDS):
        mine = sign_in.sign_in(name, PASSWORD, HERE, settings)
        scope = ("session", "user")[number % 2]
        results = all_at_once(
            in_thread(keep, mine.session_id), in_thread(revoke, server, scope, user_id, mine.session_id)
        )
        survived += survivors(server, [*results, mine])
    assert survived == 0


@pytest.mark.parametrize("scope", ["everyone", "his own"])
def test_of_two_who_keep_only_themselves_one_is_kept_and_the_other_has_done_nothing(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread, scope: str
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)

    def keep(session_id: str) -> Tokens:
        if scope == "everyone":
            receipt = force_logout.revoke_everyone(SOMEBODY, keep_session=session_id)
        else:
            receipt = force_logout.revoke_matching(
                SessionFilter(user_id=str(user_id)), SOMEBODY, keep_session=session_id
            )
        tokens = refreshing.renew(session_id, HERE, settings)
        assert confirm(receipt.position, server.watch).in_force
        return tokens

    for _ in range(ROUNDS):
        two = [sign_in.sign_in(name, PASSWORD, HERE, settings) for _ in range(2)]
        before = one(psql, "SELECT count(*) FROM revocations")
        results = all_at_once(*[in_thread(keep, tokens.session_id) for tokens in two])
        assert survivors(server, results) == 1 == sum(isinstance(result, Revoked) for result in results)
        assert one(psql, "SELECT count(*) FROM revocations") == before + 1


def test_racing_refreshes_of_one_token_all_get_the_same_successor(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    name = name_of(psql, new_user())
    for _ in range(ROUNDS):
        old = sign_in.sign_in(name, PASSWORD, HERE, settings)
        results = all_at_once(*[in_thread(refreshing.refresh, old.refresh_token, HERE, settings)] * 6)
        assert len({result.refresh_token for result in results}) == 1
        assert all(accepts(server, result.access_token) for result in results)
        assert refreshing.refresh(results[0].refresh_token, HERE, settings).session_id == old.session_id
