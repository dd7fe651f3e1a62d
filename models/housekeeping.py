"""Housekeeping: one thread a process; what only one of all processes may do is done by whoever gets the lock.

Each process: watch the workers' leases, write what was seen, notice sign-ins for the event streams.
One of all:   send the canary; and clean: take what has expired or ended to its shelf, purge what is over.

One process a second cleans, by chance, however many there are; and whoever may have left something behind goes on.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import text

from lastcall.errors import DatabaseAway
from lastcall.listener import CANARY
from models.changes import Changes
from models.database import changed, db, transaction
from models.login_session import note_seen
from models.seen import Seen
from models.shelves import mark_everyones_ends, mark_users_ends, read_shelves, take_the_expired_away
from models.worker import WorkerWatch, count_servers, observe_workers

log = logging.getLogger("lastcall")
Result = TypeVar("Result")

TICK_S = 1.0
CANARY_EVERY_S = 10
ALARM_AFTER_S = 5
"""Longer than a lease, so that a worker which stopped or was paused has been fenced by then (seconds)."""
KEEP_SESSIONS_DAYS = 30
BATCH = 1000
_CLEANING_LOCK, _CANARY_LOCK = 7_530_004, 7_530_006
# Cutoffs come from another region (docs/scaling.md), which purges them and sends its own canary. A row that was purged
# here alone would be missing when it is raised there, and PostgreSQL skips an update whose row it does not find.
_FROM_ANOTHER_REGION = "EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = 'cutoffs'::regclass)"


class Housekeeper:
    """Runs `tick` every second in a thread of its own, within `context()` (an application context)."""

    def __init__(
        self, context: Callable[[], AbstractContextManager[object]], watch: WorkerWatch, seen: Seen, changes: Changes
    ) -> None:
        self._context = context
        self._watch = watch
        self._seen = seen
        self._changes = changes
        self._stopping = threading.Event()
        self._pid = 0
        self._newest_session: object = None
        self._workers: object = None
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._stopping = threading.Event()
            self._thread = threading.Thread(target=self._run, name="lastcall-housekeeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(3.0)

    def _run(self) -> None:
        goes_on = True
        while not self._stopping.wait(TICK_S):
            try:
                with self._context():
                    goes_on = self.tick(cleans=goes_on or self.is_on_duty())
            except DatabaseAway:
                pass  # the listener says so, once
            except Exception:
                log.exception("lastcall: housekeeping failed and goes on")
        with_rest = self._seen.take()
        if with_rest:
            try:
                with self._context():
                    note_seen(with_rest)
            except DatabaseAway:
                pass

    def is_on_duty(self) -> bool:
        """So often that of all the server's processes one a second is."""
        return random.random() * count_servers() < 1  # noqa: S311

    def tick(self, *, cleans: bool = True) -> bool:
        """Returns whether there may be more to clean."""
        fenced = observe_workers(self._watch)
        self._notice(fenced)
        seen = self._seen.take()
        if seen:
            note_seen(seen)
        _alone(_CANARY_LOCK, partial(_send_canary, fenced))
        return cleans and _clean()

    def _notice(self, fenced: set[str]) -> None:
        if not self._changes.streams:
            return
        with transaction() as session:
            newest = session.scalar(
                text("SELECT max(created_at) FROM login_sessions WHERE shelf = (SELECT gen FROM everyone)")
            )
            workers = (tuple(session.scalars(text("SELECT id::text FROM workers ORDER BY id"))), frozenset(fenced))
        if newest != self._newest_session:
            self._newest_session = newest
            self._changes.note("sessions")
        if workers != self._workers:
            self._workers = workers
            self._changes.note("workers")


def _alone(lock: int, task: Callable[[], Result]) -> Result | None:
    """What the task returns; None where another process is at it."""
    with transaction() as session:
        if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": lock}):
            return None
        return task()


def _clean() -> bool:
    """Returns whether there may be more. Each task is a transaction of its own: a log-out of everyone waits for one of
    them at most."""
    done = [_alone(_CLEANING_LOCK, task) for task in _CLEANING]
    return any(count is None or count >= BATCH for count in done)


def purge() -> dict[str, int]:
    """Purge everything that is over, batch by batch. Returns how many rows of each table went."""
    gone: dict[str, int] = {}
    while True:
        with transaction() as session:
            session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CLEANING_LOCK})
            batch = purge_once()
        for table, count in batch.items():
            gone[table] = gone.get(table, 0) + count
        if max(batch.values()) < BATCH:
            return gone


def purge_once() -> dict[str, int]:
    """One batch, within a transaction under way that holds the lock.

    A cutoff goes when its time is over and no token under an older generation is on record that could still live.
    """
    return {
        "cutoffs": _purge_cutoffs(),
        "login_sessions": _purge_sessions(),
        "sign_in_attempts": _purge_sign_in_attempts(),
    }


def _purge_sessions() -> int:
    query = text("""
        DELETE FROM login_sessions WHERE id IN (
            SELECT id FROM login_sessions
            WHERE shelf = ANY(:shelves) AND expires_at < statement_timestamp() - make_interval(days => :days)
            LIMIT :batch FOR UPDATE SKIP LOCKED
        ) RETURNING user_id
    """)
    values = {"shelves": read_shelves().all, "days": KEEP_SESSIONS_DAYS, "batch": BATCH}
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
    query = text(f"SELECT TRUE FROM everyone WHERE NOT {_FROM_ANOTHER_REGION} FOR NO KEY UPDATE SKIP LOCKED")
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


def _send_canary(fenced: set[str]) -> None:
    """Every 10 s an invented user is signed out, and every live worker must refuse him within a second.

    The canary of the last time is judged first: its age is a metric, and one that lives on is said loudly.
    """
    row = db.session.execute(
        text(f"""
            SELECT c.min_gen, c.cutoff_at, extract(epoch FROM clock_timestamp() - c.cutoff_at) AS age_s,
                {_FROM_ANOTHER_REGION} AS is_theirs,
                (SELECT array_agg(w.id::text) FROM workers AS w WHERE w.canary < c.min_gen AND w.lease_s IS NOT NULL
                 AND w.started_at < c.cutoff_at AND w.renewed_at > c.cutoff_at) AS deaf,
                e.canary_at
            FROM everyone AS e LEFT JOIN cutoffs AS c ON c.scope = 'user' AND c.subject = :canary
        """),
        {"canary": CANARY},
    ).one()
    if row.min_gen is not None:
        deaf = [worker_id for worker_id in row.deaf or () if worker_id not in fenced]
        if not deaf and row.canary_at != row.cutoff_at:
            db.session.execute(text("UPDATE everyone SET canary_at = :at"), {"at": row.cutoff_at})
        elif deaf and ALARM_AFTER_S < row.age_s < ALARM_AFTER_S + TICK_S:
            log.critical("lastcall: the canary lives: workers %s have not refused it", ", ".join(deaf))
    if not row.is_theirs and (row.min_gen is None or row.age_s >= CANARY_EVERY_S):
        db.session.execute(
            text("SELECT raise_cutoff('user', :canary, :gen, clock_timestamp() + interval '1 hour')"),
            {"canary": CANARY, "gen": (row.min_gen or 0) + 1},
        )


_CLEANING: tuple[Callable[[], int], ...] = (
    partial(take_the_expired_away, BATCH),
    partial(mark_everyones_ends, BATCH),
    partial(mark_users_ends, BATCH),
    _purge_cutoffs,
    _purge_sessions,
    _purge_sign_in_attempts,
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the tables are; `sessions` is the planner's estimate. `canary_age_s` is None before the first one."""

    cutoffs: int
    sessions: int
    canary_age_s: float | None


def read_sizes() -> Sizes:
    query = text("""
        SELECT
            (SELECT count(*) FROM cutoffs),
            (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'login_sessions'::regclass),
            (SELECT extract(epoch FROM clock_timestamp() - canary_at)::float8 FROM everyone)
    """)
    with transaction() as session:
        return Sizes(*session.execute(query).one())
