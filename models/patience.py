"""Patience: how long the application waits for a database that says nothing.

PostgreSQL's own timeouts bound what a living server does. Behind a cut network, or a server that was stopped, no
timeout of its can run out, and neither keepalives nor `tcp_user_timeout` bound a read. Here another thread hangs up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg

from lastcall.ask import hang_up
from lastcall.clock import boottime_ns

WAIT_S = 0.4
"""A statement that has waited for so long is given up once the database is silent (seconds)."""
CONNECT_S = 0.9
"""How long a new connection may take (seconds); libpq's connect_timeout knows whole seconds, 2 at least."""
_LOOK_EVERY_S = 0.05


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose every wait is noted, so that another thread can end it."""

    waits: dict[int, tuple[psycopg.Connection[Any], int]] | None = None

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        if self.waits is None:
            return super().wait(*args, **kwargs)
        key = id(self)
        self.waits[key] = self, boottime_ns()
        try:
            return super().wait(*args, **kwargs)
        finally:
            self.waits.pop(key, None)


def _close(late: Future[PatientConnection]) -> None:
    if late.exception() is None:
        late.result().close()


class Patience:
    """Opens the application's connections, and hangs up those that wait while `is_silent()`."""

    def __init__(self, is_silent: Callable[[], bool]) -> None:
        self.is_silent = is_silent
        self._waits: dict[int, tuple[psycopg.Connection[Any], int]] = {}
        self._stopping = threading.Event()
        self._pid = 0

    def ensure_running(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._stopping = os.getpid(), threading.Event()
            threading.Thread(target=self._watch, args=(self._stopping,), name="lastcall-patience", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def connect(self, conninfo: str, **options: Any) -> PatientConnection:
        """Raises psycopg.OperationalError after CONNECT_S at most."""
        opened: Future[PatientConnection] = Future()

        def open_it() -> None:
            try:
                opened.set_result(PatientConnection.connect(conninfo, connect_timeout=2, **options))
            except Exception as error:
                opened.set_exception(error)

        threading.Thread(target=open_it, name="lastcall-connect", daemon=True).start()
        try:
            connection = opened.result(CONNECT_S)
        except TimeoutError:
            opened.add_done_callback(_close)
            raise psycopg.OperationalError(f"no connection within {CONNECT_S} s") from None
        connection.waits = self._waits
        return connection

    def _watch(self, stopping: threading.Event) -> None:
        while not stopping.wait(_LOOK_EVERY_S):
            if not self._waits or not self.is_silent():
                continue
            now_ns = boottime_ns()
            for connection, since_ns in list(self._waits.values()):
                if now_ns - since_ns > WAIT_S * 1e9:
                    hang_up(connection)
