"""The listener: one thread in each process that keeps its `Cutoffs` true, and says in `workers` how far it has read.

docs/listener.md explains it on one page. NOTIFY is only a hint to look now; the read every quarter of a lease alone
keeps the promise. The order of the steps in `_round` and `_look` is the proof, tests/unit/test_interleavings.py
explores it.
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
from typing import Any

import psycopg

from lastcall import statements
from lastcall.ask import hang_up
from lastcall.claims import Claims
from lastcall.clock import boottime_ns
from lastcall.connection import (
    APPLY_SCHEMA,
    Unsuitable,
    adjust,
    connect,
    lacking,
    of_many_rows,
    prove,
    refuse_open_transaction,
)
from lastcall.cutoffs import LEASE_S, Cutoffs
from lastcall.prepared import ask, prepare, was_notified
from lastcall.turns import Turns, quick_turns

log = logging.getLogger("lastcall")

CHANNEL = "lastcall_cutoffs"
CANARY = "00000000-0000-0000-0000-000000000000"
"""The subject of the canary: an invented user who is signed out every 10 s, and whom every worker must refuse."""

ROUND_S = 0.5
"""A round at least so often, however long the lease: silence must be noticed (seconds)."""
SILENCE_S = 0.4
"""A statement of the listener that takes longer means that the database says nothing (seconds)."""
_READ_NEW, _CONFIRM = b"lastcall_read_new", b"lastcall_confirm"
_PIECE = 1_000
_STEP_NS = 2_000_000_000
_DOUBT_LOCK = 7_530_005
_BRING_BACK_S = 60
"""What `bring_back_cutoffs` may take (seconds)."""


class CutoffListener:
    """Keeps `cutoffs` true from PostgreSQL. Call `ensure_running` after the fork, and `stop` at the end.

    `conninfo` must lead to the primary, directly or through a session-mode pooler. `service` and `version` are what the
    list of workers calls this process. `on_change` is called in the listener's thread after new cutoffs have been
    applied and confirmed.
    """

    def __init__(
        self,
        conninfo: str,
        cutoffs: Cutoffs,
        *,
        lease_s: float = LEASE_S,
        service: str = "service",
        version: str = "",
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.cutoffs = cutoffs
        self.lease_s = lease_s
        """How long `cutoffs` may be trusted after a successful read, counted from before it was sent (seconds)."""
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
        self._other: psycopg.Connection | None = None
        self._busy_since_ns = 0
        self._away = False
        self._position: str | None = None
        self._said: set[str | None] = {None}
        """What the own row may hold as the position: what was confirmed last, or what was sent without an answer."""
        self._renewals = 0
        self._asks_since_ns = 0
        """When a new process asked first whether the others are back (CLOCK_BOOTTIME, nanoseconds)."""
        self._doubted_gen: int | None = None
        """After the database has gone back: nothing is trusted until everyone's generation is above this one."""
        self._round_due_ns = 0
        self._turns = Turns()
        self._canary = 0
        self._complained = False
        self._risen = False
        self.reads_done = 0
        """How often it has read and confirmed, in rounds and on hints, since it was made."""

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
            self._connection = self._other = None
            self._turns.end()
        self.worker_id = str(uuid.uuid4())
        self._position, self._said, self._renewals, self._asks_since_ns = None, {None}, 0, 0
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
        self._turns.begin()
        while not self._stopping.is_set():
            rounds_before = self.reads_done
            tried_ns = self._busy_since_ns = boottime_ns()
            try:
                with self._connect() as connection:
                    self._connection, self._busy_since_ns = connection, boottime_ns()
                    self._serve(connection)
            except (psycopg.Error, Unsuitable, OSError) as error:
                self._away = isinstance(error, psycopg.OperationalError)
                self._complain(error)
            except Exception:
                self.cutoffs.fence()
                log.exception(
                    "lastcall: the listener failed unexpectedly; this worker answers 503 until it has recovered"
                )
            finally:
                self._connection, self._other, self._busy_since_ns = None, None, 0
            paused_s = (boottime_ns() - tried_ns) / 1e9  # an attempt that hung was a pause itself
            if self.reads_done > rounds_before:
                delay_s, paused_s = 0.1, 0.0
            self._stopping.wait(max(0.0, delay_s * random.uniform(0.5, 1.0) - paused_s))
            delay_s = min(delay_s * 2, 0.8)  # back within a second after the database can be reached again
        self._turns.end()

    def _complain(self, error: Exception) -> None:
        if not self._complained and not self._stopping.is_set():
            self._complained = True
            lacks = lacking(error)
            reason = lacks or (" ".join(str(error).split()) or type(error).__name__)[:300]
            if lacks or isinstance(error, Unsuitable):
                log.error("lastcall: worker %s does not get ready: %s", os.getpid(), reason)
                return
            log.warning(
                "lastcall: worker %s has lost the database (%s); it trusts its cutoffs for at most %.1f s more and"
                " keeps trying",
                os.getpid(),
                reason,
                self.lease_s,
            )

    def _connect(self) -> psycopg.Connection:
        return connect(self._conninfo)

    @property
    def database_is_silent(self) -> bool:
        """Whether the database says nothing, or could not be reached a moment ago: nobody needs to wait for it."""
        since_ns = self._busy_since_ns
        return self._away or (since_ns != 0 and boottime_ns() - since_ns > SILENCE_S * 1e9)

    def _serve(self, connection: psycopg.Connection) -> None:
        with self._connect() as self._other:
            prove(connection, self._other, wait_for_lock_s=self.lease_s)
        adjust(connection, self.lease_s)
        self._busy_since_ns = boottime_ns()
        went_back = self._register(connection)
        self._busy_since_ns = boottime_ns()
        # Listen, then read: read-then-listen loses what is committed in between.
        connection.execute(f"LISTEN {CHANNEL}")
        prepare(connection, _READ_NEW, statements.READ_NEW)
        prepare(connection, _CONFIRM, statements.CONFIRM)
        if went_back:
            self._end_what_is_in_doubt(connection)
        else:
            self._load(connection)
        self._round(connection)
        if self._complained:
            log.warning("lastcall: worker %s is back; everything was read anew", os.getpid())
            self._complained = False
        while not self._stopping.is_set():
            self._busy_since_ns = 0
            if self._wait_for_a_hint(connection):
                self._look(connection)
            else:
                self._round(connection)
        with suppress(psycopg.Error):
            self.cutoffs.lease_until_ns = 0
            connection.execute("DELETE FROM workers WHERE id = %s", (self.worker_id,))

    def _wait_for_a_hint(self, connection: psycopg.Connection) -> bool:
        """Wait until the next round is due or the process stops: False; or until a NOTIFY has come before: True."""

        def wait(most_s: float) -> bool:
            # The generator must have ended before the connection is used again, and must not be left by `break`.
            return was_notified(connection) or bool(list(connection.notifies(timeout=most_s, stop_after=1)))

        while not self._stopping.is_set() and (left_s := (self._round_due_ns - boottime_ns()) / 1e9) > 0:
            if self._turns.wait(left_s, wait):
                return True
        return False

    def _register(self, connection: psycopg.Connection) -> bool:
        """Write the own row: a confirmation waits for the workers that it can see. Returns whether the database has
        gone back in time: a restored backup, or a failover that lost commits."""
        connection.execute("INSERT INTO incarnation DEFAULT VALUES ON CONFLICT DO NOTHING")
        row = connection.execute(
            statements.REGISTER,
            {
                "id": self.worker_id,
                "service": self._service,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": self._version,
                "lease_s": self.lease_s,
            },
        ).fetchone()
        renewals, found, is_new = row or (0, None, True)
        if self._has_gone_back(connection, renewals, found, is_new=is_new):
            # Whatever fails from here on: it stays in doubt, and the row that told is new.
            self.cutoffs.fence()
            self._doubted_gen = max(self._doubted_gen or 0, self.cutoffs.everyone_gen)
        self._renewals, self._said = renewals, {None}
        return self._doubted_gen is not None

    def _has_gone_back(self, connection: psycopg.Connection, renewals: int, found: str | None, *, is_new: bool) -> bool:
        """By the number and the position that the own row had when it was registered again."""
        if self._position is None:
            return False
        if not is_new and renewals <= self._renewals:
            return True
        if not is_new and (renewals == self._renewals + 1 or found is not None):
            # No renewal was lost. A revocation that returned after the last one had this worker's position before.
            return found not in self._said
        # The row was gone: deleted because nothing moved for long, or lost. Then the transaction ids tell, and not its
        # number, which is new: a lower one where the database's clock stepped back.
        row = connection.execute(statements.WENT_BACK, (self._position,)).fetchone()
        return bool(row and row[0])

    def _others_may_tell(self, connection: psycopg.Connection) -> bool:
        """Whether a process that has trusted nothing yet should go on so. It can't see that the database has gone back;
        the workers of before can, and are back soon after the server's start or promotion: their watchdogs free them
        within a lease, and they try again within a second."""
        within_s = max(self.lease_s, 1.0) + 2.0
        now_ns = boottime_ns()
        self._asks_since_ns = self._asks_since_ns or now_ns
        if now_ns - self._asks_since_ns > within_s * 1e9:  # whatever the database's clock says
            return False
        row = connection.execute(statements.OTHERS_MAY_TELL, {"id": self.worker_id, "within_s": within_s}).fetchone()
        return row is None or bool(row[0])

    # ----------------------------------------------------------------------------------------------- one round

    def _round(self, connection: psycopg.Connection) -> None:
        # 1. The clock, before anything is sent.
        started_ns = self._busy_since_ns = boottime_ns()
        self._round_due_ns = started_ns + int(min(self.lease_s / 4, ROUND_S) * 1e9)
        others_may_tell = not self.cutoffs.loaded and self._others_may_tell(connection)
        # 2. The own row, committed: from now on a confirmation waits for this worker.
        self._renew(connection)
        # 3. Then the cutoffs, in a new snapshot.
        position = self._read(connection)
        # 4. Applied, so the lease counts, from the clock of step 1.
        if not others_may_tell and (self._doubted_gen is None or self.cutoffs.everyone_gen > self._doubted_gen):
            self._doubted_gen = None
            self.cutoffs.renew_lease(started_ns + int(self.lease_s * 1e9))
        # 5. Then the position.
        self._confirm(connection, position)

    def _look(self, connection: psycopg.Connection) -> None:
        """On a hint, between two rounds: read, apply, and say so. The lease stays what it was: only a row that was
        renewed before the read may be trusted for longer. Checks that come while it reads wait for it."""
        self._busy_since_ns = boottime_ns()
        look = self.cutoffs.look = threading.Event()
        with quick_turns():
            try:
                position = self._read(connection)
            finally:
                self.cutoffs.look = None
                look.set()
            self._confirm(connection, position)

    def _confirm(self, connection: psycopg.Connection, position: str) -> None:
        refuse_open_transaction(connection)
        self._position = position
        self._said.add(position)
        if ask(connection, _CONFIRM, position, str(self._canary), self.worker_id, str(self._renewals)):
            self._said = {position}
        self.reads_done += 1
        self._away = False
        forgotten = self.cutoffs.forget(self.cutoffs.now_s())
        risen, self._risen = self._risen, False
        if self._on_change is not None and (risen or forgotten):
            self._on_change()

    def _renew(self, connection: psycopg.Connection) -> None:
        refuse_open_transaction(connection)
        row = connection.execute(statements.RENEW, (self.worker_id,)).fetchone()
        if row is not None and row[0] > self._renewals:
            self._renewals = row[0]
        elif self._register(connection):
            self._end_what_is_in_doubt(connection)
        else:
            self._load(connection)

    def _load(self, connection: psycopg.Connection) -> None:
        """Read everything: a million cutoffs are no silence, use up no lease, and are never all in memory as rows. The
        round that follows reads what has come since, and only that round lets the lease count."""
        with of_many_rows(connection):
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute("SET LOCAL statement_timeout = 0")
            row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
            # As they come, while the server reads on; libpq 16 and earlier hands them out one by one.
            piece = _PIECE if psycopg.capabilities.has_stream_chunked() else 1
            with connection.cursor() as cursor:
                for number, cutoff in enumerate(cursor.stream(statements.READ_ALL, size=piece)):
                    if number % _PIECE == 0:
                        self._busy_since_ns = boottime_ns()
                    self._apply(cutoff)
        self._position = row[0] if row else None

    def _read(self, connection: psycopg.Connection) -> str:
        """Apply what is new since the last position. Returns the new one."""
        position, now_us, purged_us, purged_at_us = "", 0, 0, 0
        for number, row in enumerate(ask(connection, _READ_NEW, self._position or "")):
            if number and number % _PIECE == 0:
                self._busy_since_ns = boottime_ns()  # it has answered; to apply much takes a while
            position, now_us, purged_us, purged_at_us, *cutoff = row
            if cutoff[0] is not None:
                self._apply(tuple(cutoff))
        if not position:
            raise Unsuitable(f"the table everyone is empty: {APPLY_SCHEMA}")
        self.cutoffs.horizon_us = max(self.cutoffs.horizon_us, purged_us)
        self.cutoffs.newest_us = max(self.cutoffs.newest_us, now_us, purged_at_us)
        offset_ns = now_us * 1000 - boottime_ns()
        stepped_back = self.reads_done > 0 and offset_ns < self.cutoffs.wall_offset_ns - _STEP_NS
        purged = purged_at_us > now_us + _STEP_NS // 1000
        if stepped_back or purged:
            self._follow_the_clock_back(connection, purged=purged)
        self.cutoffs.wall_offset_ns = offset_ns
        return position

    def _follow_the_clock_back(self, connection: psycopg.Connection, *, purged: bool) -> None:
        """The database's clock stepped back: tokens that had expired are good again, and so must be the cutoffs that
        were purged or forgotten since. Before the new time counts here."""
        log.warning("lastcall: the database's clock stepped back; worker %s brings back older cutoffs", os.getpid())
        try:
            with of_many_rows(connection):
                connection.execute("SELECT set_config('statement_timeout', %s, TRUE)", (f"{_BRING_BACK_S}s",))
                self._busy_since_ns = boottime_ns() + _BRING_BACK_S * 1_000_000_000  # one statement, however many rows
                connection.execute("SELECT bring_back_cutoffs()")
        except psycopg.errors.InsufficientPrivilege:
            if purged:  # what was purged is in the history alone until the server's own processes have done it
                raise Unsuitable(
                    "the database's clock stepped back; this waits until a worker of the server has brought back the"
                    " cutoffs that were purged"
                ) from None
        finally:
            self._busy_since_ns = boottime_ns()
        self._load(connection)

    def _apply(self, cutoff: tuple[Any, ...]) -> None:
        """A row of `rows.columns`."""
        risen = self.cutoffs.advance(cutoff)
        _, subject, min_gen, *_ = cutoff
        if subject != CANARY:
            self._risen |= risen
            return
        invented = Claims(CANARY, CANARY, min_gen - 1, self.cutoffs.everyone_gen, 0, 1)
        if self.cutoffs.refuses(invented) == "user":
            self._canary = min_gen

    def _end_what_is_in_doubt(self, connection: psycopg.Connection) -> None:
        """The database has lost commits. Trust nothing, read everything anew and lower none of it; give back the
        revocations that this process still knows; and refuse every token of before, since sign-ins and revocations
        of the lost time may have used the same generations as those to come.

        A role that may not do the last two waits until somebody has: the lease counts again by what is then read."""
        log.critical(
            "lastcall: the database has gone BACK in time (a restored backup, or a failover that lost commits); worker"
            " %s reads everything anew, gives back the revocations that it knows, and logs out all users, because"
            " revocations of the lost time may be missing",
            os.getpid(),
        )
        known = self._doubted_gen or 0
        self._load(connection)
        held = list(self.cutoffs.all_held())
        with suppress(psycopg.errors.InsufficientPrivilege), of_many_rows(connection):
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_DOUBT_LOCK,))
            connection.execute("SELECT set_config('lastcall.cause', 'database_went_back', TRUE)")
            for first in range(0, len(held), _PIECE):
                self._busy_since_ns = boottime_ns()  # a million take longer than a lease
                connection.execute(
                    statements.GIVE_BACK, tuple(map(list, zip(*held[first : first + _PIECE], strict=True)))
                )
            connection.execute(statements.END_WHAT_IS_IN_DOUBT, {"known": known})

    def _watch(self, stopping: threading.Event) -> None:
        """A probe cannot bound itself: what hangs for a lease in a silent connection is freed from here."""
        while not stopping.wait(self.lease_s / 4):
            since_ns = self._busy_since_ns
            if since_ns and boottime_ns() - since_ns > max(self.lease_s, 1.0) * 1e9:
                for connection in (self._connection, self._other):
                    if connection is not None:
                        hang_up(connection)

    def wait_until_live(self, timeout_s: float = 10.0) -> bool:
        """Wait until the cutoffs have been read and the lease is valid, and return whether it is. For programs and
        tests, not for requests."""
        deadline = boottime_ns() + timeout_s * 1e9
        while not self.cutoffs.lease_is_valid() and boottime_ns() < deadline:
            time.sleep(0.005)
        return self.cutoffs.lease_is_valid()
