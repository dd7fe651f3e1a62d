"""The listener's connection: straight to a primary, NOTIFY comes back on it, and set for what it is used for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.pq import TransactionStatus

from lastcall.hosts import connect_to_primary

_ON_A_REPLICA = "connected to a replica: DATABASE_URL and LASTCALL_LISTEN_URL must lead to the primary"

APPLY_SCHEMA = "run `flask --app app init-db`"


class Unsuitable(Exception):
    """The connection can't carry LISTEN, leads to a replica, or what it shows is not to be trusted yet."""


def lacking(error: BaseException | None) -> str | None:
    """What the database's schema lacks for this version, and what to do; None for any other error."""
    if isinstance(
        error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn | psycopg.errors.UndefinedFunction
    ):
        return f"{error.diag.message_primary}: {APPLY_SCHEMA}"
    return None


def connect(conninfo: str) -> psycopg.Connection:
    """Raises Unsuitable where there is a replica, psycopg.Error where there is nobody."""
    try:
        return connect_to_primary(
            psycopg.connect,
            conninfo,
            autocommit=True,
            connect_timeout=2,
            application_name="lastcall-listener",
            target_session_attrs="read-write",
        )
    except psycopg.OperationalError as error:
        if "read-only" in str(error):
            raise Unsuitable(_ON_A_REPLICA) from None
        raise


def prove(connection: psycopg.Connection, other: psycopg.Connection, *, wait_for_lock_s: float) -> None:
    """Raise Unsuitable unless `connection` is direct, to a primary, and NOTIFY comes back on it.

    `other` sends it: a transaction-mode pooler that is idle would echo a NOTIFY of the connection's own.
    """
    pids = set()
    for _ in range(3):
        row = connection.execute("SELECT pg_backend_pid(), pg_is_in_recovery()").fetchone()
        if row is None or row[1]:
            raise Unsuitable(_ON_A_REPLICA)
        pids.add(row[0])
    channel = f"lastcall_probe_{uuid.uuid4().hex}"
    connection.execute(f"LISTEN {channel}")
    # A commit that waits for its standby holds the lock of NOTIFY all the while.
    notify = "SELECT set_config('lock_timeout', %s, FALSE), pg_notify(%s, '')"
    try:
        other.execute(notify, (f"{int(wait_for_lock_s * 1000)}ms", channel))
        queue_is_full = False
    except psycopg.errors.ProgramLimitExceeded:
        queue_is_full = True  # nobody hears anything now; the rounds read without it
    heard = queue_is_full or list(connection.notifies(timeout=1.0, stop_after=1))
    connection.execute(f"UNLISTEN {channel}")
    if len(pids) != 1 or not heard:
        raise Unsuitable(
            "NOTIFY does not come back: a transaction-mode pooler is in between; set LASTCALL_LISTEN_URL to a direct"
            " URL"
        )


def adjust(connection: psycopg.Connection, lease_s: float) -> None:
    """Set what the listener's own statements ask for."""
    # A renewal must be durable: a crash that lost one would let an observer think that the lease is out. So must a
    # position: by the loss of one it shows that the database has gone back.
    connection.execute("SET synchronous_commit = on")
    long_over = f"{max(int(lease_s * 5000), 2000)}ms"
    settings = {
        # One plan, by an index even on an empty table: it is kept for a million rows.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "jit": "off",
        # Of several processes that write their rows at once none is turned away, whatever the role's default is.
        "default_transaction_isolation": "read committed",
        "statement_timeout": long_over,
        # A network that goes half-open again and again must not use up max_connections.
        "idle_session_timeout": long_over,
        # Whoever was hung up on while it waited for a row is gone soon: a server process does not notice by itself.
        "lock_timeout": f"{int(lease_s * 1000)}ms",
    }
    query = "SELECT set_config(name, setting, FALSE) FROM unnest(%s::text [], %s::text []) AS given (name, setting)"
    connection.execute(query, (list(settings), list(settings.values())))


@contextmanager
def of_many_rows(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction whose statements are planned as usual: `adjust` sets what is best for few rows, again and again."""
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = on")
        connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        yield


def refuse_open_transaction(connection: psycopg.Connection) -> None:
    """Before what must commit by itself: others would not see it, and what is rolled back would seem to be lost.

    Raises Unsuitable."""
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        raise Unsuitable("a transaction is open on the listener's connection: others do not see what it writes")
