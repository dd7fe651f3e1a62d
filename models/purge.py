"""Purging: what is over is deleted, batch by batch: cutoffs, sessions, failed sign-ins."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from models.database import changed, db, transaction
from models.shelves import read_in_order, read_shelves

KEEP_SESSIONS_DAYS = 30
BATCH = 1000
CLEANING_LOCK = 7_530_004
# Cutoffs come from another region (docs/scaling.md), which purges them and sends its own canary. A row that was purged
# here alone would be missing when it is raised there, and PostgreSQL skips an update whose row it does not find.
FROM_ANOTHER_REGION = "EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = 'cutoffs'::regclass)"


def purge() -> dict[str, int]:
    """Purge everything that is over, batch by batch. Returns how many rows of each table went."""
    gone: dict[str, int] = {}
    while True:
        with transaction() as session:
            session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CLEANING_LOCK})
            batch = purge_once()
        for table, count in batch.items():
            gone[table] = gone.get(table, 0) + count
        if max(batch.values()) < BATCH:
            return gone


def purge_once() -> dict[str, int]:
    """One batch, within a transaction under way that holds the lock.

    A cutoff goes when its time is over and no token under an older generation is on record that could still live.
    """
    return {table: purge_some() for table, purge_some in PURGES.items()}


def _purge_sessions() -> int:
    query = text("""
        DELETE FROM login_sessions WHERE id IN (
            SELECT id FROM login_sessions
            WHERE shelf = ANY(:shelves) AND expires_at < statement_timestamp() - make_interval(days => :days)
            LIMIT :batch FOR UPDATE SKIP LOCKED
        ) RETURNING user_id
    """)
    read_in_order()
    values = {"shelves": list(read_shelves().all), "days": KEEP_SESSIONS_DAYS, "batch": BATCH}
    gone = db.session.scalars(query, values).all()
    if gone:
        query = text("""
            DELETE FROM former_names AS n WHERE user_id = ANY(:gone)
            AND NOT EXISTS (SELECT FROM login_sessions AS s WHERE s.user_id = n.user_id)
        """)
        db.session.execute(query, {"gone": list(set(gone))})
    return len(gone)


def _purge_sign_in_attempts() -> int:
    query = text("""
        DELETE FROM sign_in_attempts WHERE id IN (
            SELECT id FROM sign_in_attempts WHERE tried_at < statement_timestamp() - interval '1 hour' LIMIT :batch
        )
    """)
    return changed(query, {"batch": BATCH})


def _purge_cutoffs() -> int:
    # Everyone's row first, as a log-out of everyone takes its locks; while one is under way, the next batch will do.
    query = text(f"SELECT TRUE FROM everyone WHERE NOT {FROM_ANOTHER_REGION} FOR NO KEY UPDATE SKIP LOCKED")
    if db.session.scalar(query) is None:
        return 0
    return int(
        db.session.execute(
            text("""
            WITH over AS (
                SELECT scope, subject FROM cutoffs AS c WHERE expires_at <= statement_timestamp() AND NOT EXISTS (
                    SELECT FROM login_sessions AS s WHERE c.scope = 'user' AND s.user_id = as_uuid(c.subject)
                    AND s.user_gen < c.min_gen AND s.token_expires_at > statement_timestamp() - cutoff_leeway()
                ) AND NOT EXISTS (
                    SELECT FROM login_sessions AS s WHERE c.scope = 'everyone'
                    AND s.token_expires_at > statement_timestamp() - cutoff_leeway() AND s.everyone_gen < c.min_gen
                ) ORDER BY expires_at LIMIT :batch FOR UPDATE SKIP LOCKED
            ), gone AS (
                DELETE FROM cutoffs AS c USING over WHERE c.scope = over.scope AND c.subject = over.subject
                RETURNING c.cutoff_at
            ), noted AS (
                UPDATE everyone SET
                    purged_until = greatest(purged_until, (SELECT max(cutoff_at) FROM gone)),
                    purged_at = statement_timestamp()
                WHERE EXISTS (SELECT FROM gone) RETURNING 1
            )
            SELECT count(*) FROM gone
            """),
            {"batch": BATCH},
        ).scalar_one()
    )


PURGES: dict[str, Callable[[], int]] = {
    "cutoffs": _purge_cutoffs,
    "login_sessions": _purge_sessions,
    "sign_in_attempts": _purge_sign_in_attempts,
}
"""What purges a batch of each table, and returns how many rows went."""
