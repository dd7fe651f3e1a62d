"""Two regions, each with a PostgreSQL of its own: cutoffs go from one to the other as docs/scaling.md says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from lastcall import KeyRing
from lastcall.listener import CANARY
from models.database import apply_schema
from tests.conftest import FAST_ENVIRONMENT
from tests.faults.bench import DEADLINE_S
from tests.faults.proxy import Proxy
from tests.gunicorn import ROOT, Gunicorn
from tools.postgres import APP, EmbeddedPostgres

SERVICE = "invoices"
WORKERS = 2


class Service(Gunicorn):
    """Its database has been prepared already."""

    def prepare(self) -> None:
        pass


@dataclass
class Regions:
    """Two servers: people sign in and are signed out at `home`, `away` only checks. `line` is what joins them."""

    home: EmbeddedPostgres
    away: EmbeddedPostgres
    line: Proxy
    server: Gunicorn
    service: Gunicorn

    def at_home(self) -> psycopg.Connection:
        return psycopg.connect(self.home.url(), autocommit=True)

    def far_away(self) -> psycopg.Connection:
        return psycopg.connect(self.away.url(), autocommit=True)

    def subscribe(self) -> None:
        with self.far_away() as psql:
            origin = f"host=127.0.0.1 port={self.line.port} dbname=lastcall user=region_b sslmode=disable"
            command = re.sub("'host=[^']*'", f"'{origin}'", command_of_the_page("CREATE SUBSCRIPTION"))
            psql.execute(command.encode())
            wait_until(psql, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")


def command_of_the_page(begin: str) -> str:
    """The SQL command of docs/scaling.md that begins so."""
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    return page[page.index(begin) :].split(";", 1)[0]


def wait_until(psql: psycopg.Connection, question: str, *parameters: object) -> float:
    """Until the database says yes. Returns how long that took."""
    since_s = time.monotonic()
    while psql.execute(question.encode(), parameters).fetchone() != (True,):
        assert time.monotonic() - since_s < DEADLINE_S, question
        time.sleep(0.002)  # nothing tells from outside
    return time.monotonic() - since_s


@contextmanager
def two_regions(folder: Path, signing_key: str, *, fast: bool) -> Iterator[Regions]:
    """`fast` gives up durability."""
    with ExitStack() as stack:
        home = stack.enter_context(EmbeddedPostgres(folder / "home", fast=fast, wal_level="logical"))
        away = stack.enter_context(EmbeddedPostgres(folder / "away", fast=fast, wal_retrieve_retry_interval="100ms"))
        line = stack.enter_context(Proxy(home.url))
        for server in (home, away):
            apply_schema(server.url())
        home.let_in(APP)
        common = {**FAST_ENVIRONMENT, "LASTCALL_DATA_DIR": str(folder / "instance")}
        with psycopg.connect(home.url(), autocommit=True) as psql:
            for begin in ("CREATE ROLE region_b", "GRANT SELECT ON cutoffs", "CREATE PUBLICATION"):
                psql.execute(command_of_the_page(begin).encode())
        with psycopg.connect(away.url(), autocommit=True) as psql:
            psql.execute(f"CREATE ROLE {SERVICE} LOGIN IN ROLE lastcall_service".encode())
            # Whatever a region has said by itself before: rows that meet are merged.
            psql.execute("INSERT INTO cutoffs (scope, subject, min_gen) VALUES ('user', %s, 1)", (CANARY,))
        keys = {"LASTCALL_SIGNING_KEY": signing_key, "DATABASE_URL": home.url()}
        server = Gunicorn(WORKERS, (), {**common, **keys}, folder / "home.log")
        keys = {
            "LASTCALL_SIGNING_KEY": json.dumps(KeyRing.parse(signing_key).jwks()),
            "DATABASE_URL": away.url(user=SERVICE),
        }
        options = ("--config", "tests/faults/service_conf.py")
        service = Service(WORKERS, options, {**common, **keys}, folder / "away.log")
        regions = Regions(home, away, line, server, service)
        stack.enter_context(server)
        regions.subscribe()
        stack.enter_context(service)
        yield regions
