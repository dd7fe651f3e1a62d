"""The connection budget: how many a worker opens at most, and that docs/scaling.md says so."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from lastcall.ask import AT_ONCE
from models.database import ENGINE_OPTIONS
from tests.conftest import StartGunicorn
from tests.gunicorn import ROOT, Gunicorn
from tests.workers.people import API, ME, sign_in

WORKERS = 2
THREADS = 64
"""Of each worker (gunicorn.conf.py). More people than that ask at once here."""
DEADLINE_S = 20.0


def budget_of_the_page() -> dict[str, int]:
    """The table of docs/scaling.md: connections of a process, by their name in pg_stat_activity."""
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    return {name: int(count) for name, count in re.findall(r"^\| `(lastcall[a-z-]*)` \| (\d+) \|", page, re.MULTILINE)}


@contextmanager
def all_threads_busy(server: Gunicorn, token: str, path: str) -> Iterator[None]:
    """Every thread of every worker has a request to answer."""
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            server.ask("GET", path, token=token)

    threads = [threading.Thread(target=keep_asking) for _ in range(WORKERS * (THREADS + 8))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Counting:
    """The most connections of each name that were there at once."""

    def __init__(self, psql: psycopg.Connection) -> None:
        self._psql = psql
        self.most: dict[str, int] = {}

    def until(self, name: str, count: int) -> None:
        """Until there are so many of a name."""
        deadline_s = time.monotonic() + DEADLINE_S
        while self.most.get(name, 0) < count:
            self._count()
            assert time.monotonic() < deadline_s, f"{name}: only {self.most}"

    def during(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self._count()

    def _count(self) -> None:
        query = "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1"
        for name, number in self._psql.execute(query).fetchall():
            self.most[name] = max(self.most.get(name, 0), number)


def test_a_worker_opens_no_more_connections_than_the_page_says(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection, database_url: str
) -> None:
    budget = budget_of_the_page()
    pool = ENGINE_OPTIONS["pool_size"] + ENGINE_OPTIONS["max_overflow"]
    assert budget == {"lastcall": pool, "lastcall-ask": AT_ONCE, "lastcall-listener": 1, "lastcall-witness": 1}
    server = start_gunicorn(WORKERS, LASTCALL_LEASE="0.5")
    admin = sign_in(server)
    counting = Counting(psql)
    with psycopg.connect(database_url) as somebody, all_threads_busy(server, admin.token, f"{API}/me/sessions"):
        # Whoever wants to read the sessions has to wait, and holds his connection meanwhile.
        somebody.execute("LOCK TABLE login_sessions IN ACCESS EXCLUSIVE MODE")
        counting.until("lastcall", WORKERS * pool)
        counting.until("lastcall-witness", WORKERS)
        counting.during(0.3)
    at_work = dict(counting.most)
    with psycopg.connect(database_url) as somebody, all_threads_busy(server, admin.token, ME):
        somebody.execute("SELECT FROM workers FOR UPDATE")  # no lease can be renewed, so every request has to ask
        counting.until("lastcall-ask", WORKERS * AT_ONCE)
        counting.during(0.3)
        # Now nobody is answered in time: whoever is given up must not stay, or soon there are no connections left.
        somebody.execute("LOCK TABLE cutoffs IN ACCESS EXCLUSIVE MODE")
        counting.during(1.5)
    # One that was just given up may still be going, one that connects has another one to prove itself.
    assert at_work["lastcall-listener"] in range(WORKERS, 2 * WORKERS + 1)
    assert at_work["lastcall-witness"] == WORKERS
    assert at_work["lastcall"] in range(WORKERS * pool, WORKERS * (pool + 1) + 1)
    assert counting.most["lastcall-ask"] <= 2 * WORKERS * AT_ONCE, "those that are asked, and those just given up"
