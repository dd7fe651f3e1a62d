"""Thousands of users in one transaction: each costs as much as the first."""

from __future__ import annotations

import psycopg
import pytest

from tests.database.conftest import one

USERS = 1_500


@pytest.mark.parametrize("act", ["UPDATE users SET gen = gen + 1", "DELETE FROM users"])
def test_whoever_signs_out_many_by_psql_reads_no_table_again_for_each_of_them(
    psql: psycopg.Connection, act: str
) -> None:
    psql.execute(
        "INSERT INTO users (username, password_hash) SELECT 'bulk-' || n, 'x' FROM generate_series(1, %s) AS n",
        (USERS,),
    )
    psql.execute("""
        INSERT INTO login_sessions (
            user_id, username, roles, client_id, token_expires_at, expires_at, user_gen, everyone_gen, family_hash,
            refresh_hash
        )
        SELECT
            id, username, '{}', 'api', now() + interval '5 minutes', now() + interval '1 day', 0, 0,
            sha256(id::text::bytea), sha256(id::text::bytea)
        FROM users WHERE username LIKE 'bulk-%'
    """)
    psql.execute("ANALYZE")  # now it is known that no end is unmarked, and nobody signed out
    psql.execute("SET statement_timeout = '20s'")
    psql.execute("SELECT pg_stat_force_next_flush()")
    psql.execute("SELECT pg_stat_reset()")
    with psql.transaction():
        psql.execute(act + " WHERE username LIKE 'bulk-%'")
        psql.execute("SELECT pg_sleep(2.1)")  # from 2 s on the cutoffs are looked at again at the commit
    psql.execute("SELECT pg_stat_force_next_flush()")
    read = one(
        psql,
        "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN"
        " ('login_sessions', 'unmarked_ends', 'cutoffs', 'users', 'revocations')",
    )
    assert read < 10 * USERS, f"{read} rows were read one after the other"
    assert one(psql, "SELECT count(*) FROM cutoffs WHERE scope = 'user'") >= USERS
