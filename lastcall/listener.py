"""The listener: one thread in each process that keeps its `Cutoffs` true, and says in `workers` how far it has read.

docs/listener.md explains it on one page. NOTIFY is only a hint to look now; the read every quarter of a lease alone
keeps the promise. The order of the steps in `_round` is the proof, tests/unit/test_interleavings.py explores it.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, LiteralString

import psycopg

from lastcall.ask import hang_up
from lastcall.claims import Claims
from lastcall.clock import boottime_ns
from lastcall.cutoffs import Cutoffs
from lastcall.rows import COLUMNS, cutoff_from_row, microseconds

log = logging.getLogger("lastcall")

CHANNEL = "lastcall_cutoffs"
CANARY = "00000000-0000-0000-0000-000000000000"
"""The subject of the canary: an invented user who is signed out every 10 s, and whom every worker must refuse."""

_REGISTER: LiteralString = """
INSERT INTO workers (id, service, host, pid, version, lease_s)
VALUES (%(id)s, %(service)s, %(host)s, %(pid)s, %(version)s, %(lease_s)s)
ON CONFLICT (id) DO UPDATE SET renewals = workers.renewals + 1, renewed_at = clock_timestamp(), snapshot = NULL
"""
_RENEW: LiteralString = (
    "UPDATE workers SET renewals = renewals + 1, renewed_at = clock_timestamp() WHERE id = %s RETURNING 1"
)
_FACTS: LiteralString = f"""
pg_current_snapshot()::text, {microseconds("clock_timestamp()")}, {microseconds("everyone.purged_until")}
"""
# One statement, so one snapshot: the rows are exactly those that the position speaks of.
_READ_NEW: LiteralString = f"""
SELECT {_FACTS}, {COLUMNS} FROM everyone LEFT JOIN cutoffs AS c ON c.xid >= pg_snapshot_xmin(%s::pg_snapshot)
"""
_READ_ALL: LiteralString = f"SELECT {_FACTS}, {COLUMNS} FROM everyone LEFT JOIN cutoffs AS c ON TRUE"
_CONFIRM: LiteralString = "UPDATE workers SET snapshot = %s::pg_snapshot, canary = %s WHERE id = %s"
_WENT_BACK: LiteralString = """
SELECT pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(%s::pg_snapshot)
"""


class Unsuitable(Exception):
    """The connection can't carry LISTEN, or leads to a replica."""


class CutoffListener:
    """Keeps `cutoffs` true from PostgreSQL. `start` after the fork; `stop` waits, and tolerates a stop without start.

    `conninfo` must lead to the primary, directly or through a session-mode pooler. `on_change` is called in the
    listener's thread after new cutoffs have been applied and confirmed.
    """

    def __init__(
        self,
        conninfo: str,
        cutoffs: Cutoffs,
        *,
        lease_s: float = 2.0,
        service: str = "service",
        version: str = "",
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.cutoffs = cutoffs
        self.lease_s = lease_s
        self.worker_id = ""
        self._conninfo = conninfo
        self._service = service
        self._version = version
        self._on_change = on_change
        self._pid = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: psycopg.Connection | None = None
        self._busy_since_ns = 0
        self._position: str | None = None
        self._canary = 0
        self._complained = False
        self.reads_done = 0

    # ------------------------------------------------------------------------------------------ start and stop

    def ensure_running(self) -> None:
        """Start the thread, once a process: one that was started before a fork does not exist in the child."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._start()

    def _start(self) -> None:
        if self._pid:  # forked: what the parent read may be old, and its connection is the parent's
            self.cutoffs.lease_until_ns, self.cutoffs.loaded = 0, False
            self._connection = None
        self.worker_id = str(uuid.uuid4())
        self._position = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lastcall-listener", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, args=(self._stopping,), name="lastcall-watchdog", daemon=True).start()
        self._pid = os.getpid()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop in order: the worker's row goes last, so that nobody waits for it or trusts it wrongly."""
        self._stopping.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(timeout_s)
        self._thread = None

    # ------------------------------------------------------------------------------------------------ the loop

    def _run(self) -> None:
        delay_s = 0.1
        while not self._stopping.is_set():
            rounds_before = self.reads_done
            try:
                self._busy_since_ns = boottime_ns()
                with self._connect() as connection:
                    self._connection = connection
                    self._serve(connection)
            except (psycopg.Error, Unsuitable, OSError) as error:
                self._complain(error)
            except Exception:
                self.cutoffs.fence()
                log.exception(
                    "lastcall: the listener failed unexpectedly; this worker answers 503 until it has recovered"
                )
            finally:
                self._connection, self._busy_since_ns = None, 0
            if self.reads_done > rounds_before:
                delay_s = 0.1
            self._stopping.wait(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, 2.0)

    def _complain(self, error: Exception) -> None:
        if not self._complained and not self._stopping.is_set():
            self._complained = True
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "lastcall: worker %s has lost the database (%s); it trusts its cutoffs for at most %.1f s more and"
                " keeps trying",
                os.getpid(),
                reason[:300],
                self.lease_s,
            )

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=2,
            application_name="lastcall-listener",
            target_session_attrs="read-write",
            prepare_threshold=None,
        )

    def _serve(self, connection: psycopg.Connection) -> None:
        self._prove(connection)
        self._register(connection)
        # Listen, then read: read-then-listen loses what is committed in between.
        connection.execute(f"LISTEN {CHANNEL}")
        self._round(connection, everything=True)
        if self._complained:
            log.warning("lastcall: worker %s is back; everything was read anew", os.getpid())
            self._complained = False
        while not self._stopping.is_set():
            self._busy_since_ns = 0
            # The generator must have ended before the connection is used again, and must not be left by `break`.
            if list(connection.notifies(timeout=self.lease_s / 4, stop_after=1)):
                list(connection.notifies(timeout=0))  # a burst is one round
            self._round(connection)
        with suppress(psycopg.Error):
            self.cutoffs.lease_until_ns = 0
            connection.execute("DELETE FROM workers WHERE id = %s", (self.worker_id,))

    def _prove(self, connection: psycopg.Connection) -> None:
        """Raise Unsuitable unless this connection is direct, to a primary, and NOTIFY comes back on it."""
        pids = set()
        for _ in range(3):
            row = connection.execute("SELECT pg_backend_pid(), pg_is_in_recovery()").fetchone()
            if row is None or row[1]:
                raise Unsuitable(
                    "connected to a replica: DATABASE_URL and LASTCALL_LISTEN_URL must lead to the primary"
                )
            pids.add(row[0])
        probe = f"lastcall_probe_{uuid.uuid4().hex}"
        connection.execute(f"LISTEN {probe}")
        connection.execute("SELECT pg_notify(%s, '')", (probe,))
        heard = list(connection.notifies(timeout=1.0, stop_after=1))
        connection.execute(f"UNLISTEN {probe}")
        if len(pids) != 1 or not heard:
            raise Unsuitable(
                "NOTIFY does not come back: a transaction-mode pooler is in between; set LASTCALL_LISTEN_URL to a"
                " direct URL"
            )
        # A lost renewal only fences this worker; a lost registration is another matter, see _register.
        connection.execute("SET synchronous_commit = off")
        connection.execute("SELECT set_config('statement_timeout', %s, FALSE)", (f"{int(self.lease_s * 5000)}ms",))

    def _register(self, connection: psycopg.Connection) -> None:
        """Write the own row, durably: a confirmation waits for the workers that it can see."""
        with connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = on")
            connection.execute(
                _REGISTER,
                {
                    "id": self.worker_id,
                    "service": self._service,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "version": self._version,
                    "lease_s": self.lease_s,
                },
            )

    # ----------------------------------------------------------------------------------------------- one round

    def _round(self, connection: psycopg.Connection, *, everything: bool = False) -> None:
        # 1. The clock, before anything is sent.
        started_ns = self._busy_since_ns = boottime_ns()
        # 2. The own row, committed: from now on a confirmation waits for this worker.
        if connection.execute(_RENEW, (self.worker_id,)).fetchone() is None:
            self._register(connection)
        # 3. Then the cutoffs, in a new snapshot.
        everything = everything or self._position is None
        if self._position is not None and self._has_gone_back(connection, self._position):
            everything = True
        before = len(self.cutoffs), self.cutoffs.everyone_gen
        changed, position = self._read(connection, everything=everything)
        # 4. Applied, so the lease counts, from the clock of step 1.
        self.cutoffs.renew_lease(started_ns + int(self.lease_s * 1e9))
        self._position = position
        # 5. Then the position.
        connection.execute(_CONFIRM, (position, self._canary, self.worker_id))
        self.reads_done += 1
        self.cutoffs.forget(self.cutoffs.now_s())
        if self._on_change is not None and (changed or before != (len(self.cutoffs), self.cutoffs.everyone_gen)):
            self._on_change()

    def _read(self, connection: psycopg.Connection, *, everything: bool) -> tuple[bool, str]:
        """Apply what is new since the last position, or everything. Returns whether there was any, and the position."""
        cursor: psycopg.Cursor[tuple[Any, ...]] = (
            connection.execute(_READ_ALL) if everything else connection.execute(_READ_NEW, (self._position,))
        )
        position, changed, now_us, purged_us = "", False, 0, 0
        for row in cursor:
            position, now_us, purged_us, *cutoff = row
            if cutoff[0] is not None:
                changed = self._apply(tuple(cutoff)) or changed
        if not position:
            raise Unsuitable("the table everyone is empty: run `flask --app app init-db`")
        self.cutoffs.horizon_us = max(self.cutoffs.horizon_us, purged_us)
        self.cutoffs.wall_offset_ns = now_us * 1000 - boottime_ns()
        return changed, position

    def _apply(self, row: tuple[Any, ...]) -> bool:
        cutoff = cutoff_from_row(row)
        self.cutoffs.advance(cutoff)
        if cutoff.subject != CANARY:
            return True
        invented = Claims(CANARY, CANARY, cutoff.min_gen - 1, self.cutoffs.everyone_gen, 0, 1)
        if self.cutoffs.refuses(invented) == "user":
            self._canary = cutoff.min_gen
        return False

    def _has_gone_back(self, connection: psycopg.Connection, position: str) -> bool:
        """A position that goes backwards: an older backup, or a failover that lost commits. Fence, read all anew."""
        row = connection.execute(_WENT_BACK, (position,)).fetchone()
        if row is None or not row[0]:
            return False
        self.cutoffs.fence()
        log.critical(
            "lastcall: the database has gone BACK in time (a restored backup, or a failover that lost commits); worker"
            " %s stops trusting its cutoffs, reads everything anew and lowers none. Revocations of the lost time may be"
            " missing: log out all users",
            os.getpid(),
        )
        return True

    def _watch(self, stopping: threading.Event) -> None:
        """A probe cannot bound itself: what hangs for a lease in a silent connection is freed from here."""
        while not stopping.wait(self.lease_s / 4):
            connection, since_ns = self._connection, self._busy_since_ns
            if connection is not None and since_ns and boottime_ns() - since_ns > self.lease_s * 1e9:
                hang_up(connection)

    def wait_until_live(self, timeout_s: float = 10.0) -> bool:
        """Wait until the cutoffs have been read and the lease is valid; for programs and tests, not for requests."""
        deadline = boottime_ns() + timeout_s * 1e9
        while not self.cutoffs.lease_is_valid() and boottime_ns() < deadline:
            time.sleep(0.005)
        return self.cutoffs.lease_is_valid()
