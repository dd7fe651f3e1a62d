"""The witness: asks the server whether it is at work for a connection that waits.

What is between us and the server (a firewall, a proxy, a machine that is gone) may forget one connection and go on
carrying others. Who waits on it waits for ever, and a statement that is slow waits as well: the server knows which.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from lastcall.clock import boottime_ns

if TYPE_CHECKING:
    from models.patience import PatientConnection

Wait = tuple["PatientConnection", int]
"""A connection that waits, and since when (nanoseconds)."""

IDLE_S = 0.3
"""A thread of ours that has not been scheduled looks just like a forgotten connection; only after this long is it taken
for one (seconds)."""
# PostgreSQL manual, "pg_stat_activity": an idle process waits for a command. What may not be seen counts as work.
_AT_WORK: LiteralString = """
SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s) AND coalesce(state, '') NOT LIKE 'idle%%'
"""


class Witness:
    """`connect` opens its connection, which it holds only while there is something to ask."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._idle: dict[Wait, int] = {}

    def find_forgotten(self, waits: Sequence[Wait]) -> list[Wait]:
        """Those for whom the server has done nothing for IDLE_S, although nothing is there to be read. None without a
        server process of its own: a pooler gives it another one each time."""
        before, self._idle = self._idle, {}
        if not waits:
            self.close()
            return []
        try:
            if self._connection is None:
                self._connection = self._connect()
            pids = [connection.server_pid for connection, _ in waits if connection.server_pid]
            at_work = {row[0] for row in self._connection.execute(_AT_WORK, (pids,))} | {None}
        except (psycopg.Error, RuntimeError):
            self.close()  # no witness either; if nobody is answered, the listener will hear nothing as well
            return []
        now_ns = boottime_ns()
        idle = [wait for wait in waits if wait[0].server_pid not in at_work and not has_news(wait[0])]
        self._idle = {wait: before.get(wait, now_ns) for wait in idle}
        return [wait for wait, since_ns in self._idle.items() if now_ns - since_ns >= IDLE_S * 1e9]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def has_news(connection: psycopg.Connection[Any]) -> bool:
    """Whether something has come that nobody has read yet: an answer, or the end."""
    poll = select.poll()
    try:
        poll.register(connection.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))
    except (psycopg.Error, OSError):  # it was closed meanwhile
        return True
