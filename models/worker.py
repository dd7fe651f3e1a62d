"""Workers: every process that checks tokens, its lease, and how far it has read. Here it is decided who is fenced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import text

from lastcall.clock import boottime_ns
from lastcall.cutoffs import LEASE_S
from models.cursor import read_cursor, write_cursor
from models.database import db, each_alone, transaction

MARGIN_S = 0.25
"""Added to every lease before anyone counts on its end (seconds)."""
FORGET_AFTER_S = 30.0
"""A row whose lease has not moved for so long is deleted: the process is gone (seconds)."""
SERVER = "lastcall"
"""The service of the server's own workers; others have their own names."""
_READ_WORKERS = text("SELECT * FROM read_workers(CAST(:position AS text)::xid8, :within_ms)")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    id: str
    renewals: int
    lease_s: float | None
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the table. `incarnation` is the server's since its last crash or promotion; `settled` tells
    that it had begun long before, as the database says."""

    rows: list[WorkerRow]
    incarnation: str
    settled: bool


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker as clients see it. `lease_age_ms` is the time since its last renewal, by the database's clock."""

    id: str
    service: str
    host: str
    pid: int
    version: str
    state: str
    lease_age_ms: int
    behind: int
    started_at: datetime


class WorkerWatch:
    """Judges by this process's own clock whether a lease has run out: nobody's wall clock takes part.

    A row whose `renewals` have not moved for its lease and a margin belongs to a worker that trusts nothing any more:
    what it sent last was sent before we first saw it, and its lease counts from before it was sent.
    """

    def __init__(self, own_worker: Callable[[], str | None] = lambda: None) -> None:
        self.own_worker = own_worker
        """The id of this very process among the workers, while it has a lease."""
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, int]] = {}  # id -> renewals, and when we first saw this number
        self._incarnation: tuple[str, int] = ("", 0)  # and when we first saw it
        self._longest_lease_s = LEASE_S

    def observe(self, reading: Reading, asked_ns: int, answered_ns: int) -> set[str]:
        """Take in one reading, and the clock before it was asked for and after it had come.

        Returns the ids whose lease has surely run out. A worker that never had a lease is never among them.
        """
        fenced = set()
        with self._lock:
            if reading.incarnation != self._incarnation[0]:
                # The first reading of all may believe the database; later ones have seen the crash themselves.
                settled = reading.settled and not self._incarnation[0]
                self._incarnation = (reading.incarnation, 0 if settled else answered_ns)
                self._seen = {}
            present: dict[str, tuple[int, int]] = {}
            for row in reading.rows:
                self._longest_lease_s = max(self._longest_lease_s, row.lease_s or 0.0)
                renewals, since_ns = self._seen.get(row.id, (-1, 0))
                if renewals != row.renewals:
                    present[row.id] = (row.renewals, answered_ns)
                    continue
                present[row.id] = (renewals, since_ns)
                if row.lease_s is not None and asked_ns - since_ns > (row.lease_s + MARGIN_S) * 1e9:
                    fenced.add(row.id)
            self._seen = present
        return fenced

    def has_settled(self, asked_ns: int) -> bool:
        """Whether one lease has passed since the server's last crash or promotion. Before that a worker may trust a
        lease that the table does not tell of."""
        since_ns = self._incarnation[1]
        return since_ns == 0 or asked_ns - since_ns > (self._longest_lease_s + MARGIN_S) * 1e9

    def unmoved_for_s(self, worker_id: str) -> float:
        """For how long the row has not moved before our eyes (seconds)."""
        _, since_ns = self._seen.get(worker_id, (0, boottime_ns()))
        return (boottime_ns() - since_ns) / 1e9


def read_workers(position: str, *, within_ms: int = 0) -> Reading:
    """All rows, with whether each has applied everything up to and including the transaction `position`: at once, or
    as soon as all have, `within_ms` milliseconds at most."""
    given = {"position": position, "within_ms": within_ms}
    with each_alone() as session:
        found = session.execute(_READ_WORKERS, given).all()
        if not found:  # emptied by a crash, and no worker is back yet
            session.execute(text("INSERT INTO incarnation DEFAULT VALUES ON CONFLICT DO NOTHING"))
            found = session.execute(_READ_WORKERS, given).all()
    rows = [
        WorkerRow(row.worker_id, row.renewals, row.lease_s, bool(row.has_applied))
        for row in found
        if row.worker_id is not None
    ]
    return Reading(rows, found[0].incarnation, found[0].is_old)


def observe_workers(watch: WorkerWatch) -> set[str]:
    """Keep the watch up to date, and drop the rows of processes that are gone. Returns the ids that are fenced."""
    asked_ns = boottime_ns()
    reading = read_workers("3")  # the first ordinary transaction id, visible to all: no position is asked about
    fenced = watch.observe(reading, asked_ns, boottime_ns())
    gone = [row for row in reading.rows if row.id in fenced and watch.unmoved_for_s(row.id) > FORGET_AFTER_S]
    if gone:
        with transaction() as session:
            for row in gone:  # `renewals` again: it may have woken up just now
                session.execute(
                    text("DELETE FROM workers WHERE id = :id AND renewals = :renewals"),
                    {"id": row.id, "renewals": row.renewals},
                )
    return fenced


def count_servers() -> int:
    """How many of the workers are the server's own processes."""
    with each_alone() as session:
        query = text("SELECT count(*) FROM workers WHERE service = :service")
        return int(session.scalar(query, {"service": SERVER}) or 0)


def list_workers(fenced: set[str]) -> list[WorkerFacts]:
    """All workers. `behind` counts the cutoffs that a worker has not applied yet."""
    query = text("""
        SELECT
            w.id::text, w.service, w.host, w.pid, w.version,
            CASE WHEN w.snapshot IS NULL THEN 'starting' ELSE 'live' END,
            greatest(0, extract(epoch FROM clock_timestamp() - w.renewed_at) * 1000)::bigint,
            (SELECT count(*) FROM cutoffs AS c
             WHERE c.xid >= pg_snapshot_xmin(w.snapshot) AND NOT pg_visible_in_snapshot(c.xid, w.snapshot)),
            w.started_at
        FROM workers AS w ORDER BY w.host, w.service, w.pid, w.id
    """)
    with transaction():
        found = [WorkerFacts(*row) for row in db.session.execute(query)]
    return [replace(worker, state="fenced") if worker.id in fenced else worker for worker in found]


def observed_workers(watch: WorkerWatch) -> list[WorkerFacts]:
    """All workers, as this process has just seen their leases."""
    return list_workers(observe_workers(watch))


def page_of(
    workers: list[WorkerFacts], *, limit: int, cursor: str | None = None
) -> tuple[list[WorkerFacts], str | None]:
    """A page of them, and where the next one begins. Raises BadCursor."""
    context = {"list": "workers"}

    def place(worker: WorkerFacts) -> list[str]:
        return [worker.host, worker.service, f"{worker.pid:010}", worker.id]

    after = read_cursor(cursor, context, 4) if cursor else []
    found = sorted((worker for worker in workers if place(worker) > after), key=place)
    if len(found) <= limit:
        return found, None
    return found[:limit], write_cursor(place(found[limit - 1]), context)
