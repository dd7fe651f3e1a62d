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
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TypeVar

from sqlalchemy import text

from lastcall.errors import DatabaseAway
from models.canary import Canary
from models.changes import Changes
from models.database import transaction
from models.login_session import note_seen
from models.purge import BATCH, CLEANING_LOCK, PURGES
from models.seen import Seen
from models.shelves import mark_everyones_ends, mark_users_ends, take_the_expired_away
from models.worker import WorkerWatch, count_servers, observe_workers

log = logging.getLogger("lastcall")
Result = TypeVar("Result")

TICK_S = 1.0
_CANARY_LOCK = 7_530_006


class Housekeeper:
    """Runs `tick` every second in a thread of its own, within `context()` (an application context)."""

    def __init__(
        self, context: Callable[[], AbstractContextManager[object]], watch: WorkerWatch, seen: Seen, changes: Changes
    ) -> None:
        self._context = context
        self._watch = watch
        self._seen = seen
        self._changes = changes
        self._canary = Canary()
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
        with suppress(DatabaseAway), self._context():
            self._write_what_was_seen()

    def is_on_duty(self) -> bool:
        """True with probability 1/n for n server processes: on average one of them cleans each second."""
        return random.random() * count_servers() < 1  # noqa: S311

    def tick(self, *, cleans: bool = True) -> bool:
        """Returns whether there may be more to clean."""
        fenced = observe_workers(self._watch)
        self._notice(fenced)
        self._write_what_was_seen()
        _alone(_CANARY_LOCK, partial(self._canary.send, fenced))
        return cleans and _clean()

    def _write_what_was_seen(self) -> None:
        if seen := self._seen.take():
            note_seen(seen)

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
    done = [_alone(CLEANING_LOCK, task) for task in _CLEANING]
    return any(count is None or count >= BATCH for count in done)


_CLEANING: tuple[Callable[[], int], ...] = (
    partial(take_the_expired_away, BATCH),
    partial(mark_everyones_ends, BATCH),
    partial(mark_users_ends, BATCH),
    *PURGES.values(),
)
