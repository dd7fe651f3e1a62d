"""A standby of a PostgreSQL: streaming, held back, synchronous, promoted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psycopg

from tests.faults.bench import DEADLINE_S
from tests.faults.proxy import Proxy
from tools.postgres import EmbeddedPostgres, _as_ordinary_user, _binary


class Standby:
    """Use it as a context manager: made from a running primary, and following it."""

    def __init__(self, primary: EmbeddedPostgres, folder: Path) -> None:
        self.primary = primary
        self.name = folder.name
        self.server = EmbeddedPostgres(folder, fast=True, wal_retrieve_retry_interval="100ms")
        self.line = Proxy(primary.url)
        """The way from the primary to here."""

    def __enter__(self) -> Standby:
        self.line.__enter__()
        self.server.data_dir.parent.mkdir(mode=0o700)
        origin = f"host=127.0.0.1 port={self.line.port} user=lastcall sslmode=disable gssencmode=disable"
        origin += f" application_name={self.name}"
        command = [*_as_ordinary_user(), str(_binary("pg_basebackup")), "--pgdata", str(self.server.data_dir)]
        command += ["--dbname", origin, "--checkpoint=fast", "--write-recovery-conf", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True)
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.line.__exit__()

    def hold_back(self) -> None:
        """From now on the standby hears nothing more. What the primary has committed by now, it has."""
        with _psql(self.primary) as primary, _psql(self.server) as standby:
            at = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
            _wait_until(standby, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", *(at or ()))
            self.line.refuse()
            _wait_until(standby, "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")

    def make_synchronous(self, names: str = "*", *, commit: str = "on") -> None:
        """From now on a commit on the primary waits until it is written here, or, of several names, as they say."""
        with _psql(self.primary) as primary:
            for setting, value in (("synchronous_standby_names", names), ("synchronous_commit", commit)):
                primary.execute(f"ALTER SYSTEM SET {setting} = '{value}'".encode())
            primary.execute("SELECT pg_reload_conf()")
            _wait_until(
                primary,
                "SELECT EXISTS (SELECT FROM pg_stat_replication"
                " WHERE application_name = %s AND sync_state IN ('sync', 'quorum'))",
                self.name,
            )

    def received(self) -> int:
        """How much it has of what the primary has written (bytes)."""
        with _psql(self.server) as standby:
            row = standby.execute("SELECT pg_last_wal_receive_lsn() - '0/0'").fetchone()
        return int(row[0]) if row else 0

    def promote(self) -> None:
        with _psql(self.server) as standby:
            standby.execute("SELECT pg_promote()")


def _psql(server: EmbeddedPostgres) -> psycopg.Connection:
    return psycopg.connect(server.url("postgres"), autocommit=True)


def _wait_until(psql: psycopg.Connection, question: str, *parameters: object) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while psql.execute(question, parameters).fetchone() != (True,):
        assert time.monotonic() < deadline_s, question
        time.sleep(0.005)  # nothing tells from outside
