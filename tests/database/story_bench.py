"""What stories run on: a database whose clock stands still until it is set, and workers that come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import psycopg

from lastcall.ask import Asker
from lastcall.claims import Claims
from lastcall.cutoffs import Cutoffs
from lastcall.errors import CutoffsStale
from lastcall.guard import Guard
from lastcall.listener import CutoffListener
from lastcall.tokens import KeyRing, generate_signing_key
from models.database import apply_schema
from settings import Settings
from tools.postgres import EmbeddedPostgres

TEMPLATE = "lastcall_story"
LEASE_S = 10.0
"""Longer than any pause of this process, so that no story depends on how busy the machine is (seconds)."""
START = 1_800_000_000
"""When each story begins, in seconds since 1970."""

# Names are looked up along the search_path: with these before pg_catalog, schema.sql and the application use them.
_CLOCK = """
CREATE SCHEMA story;
CREATE TABLE story.clock (at timestamptz NOT NULL);
INSERT INTO story.clock VALUES (to_timestamp(%s));
CREATE FUNCTION story.set_clock(seconds text) RETURNS void LANGUAGE sql AS $$
    UPDATE story.clock SET at = to_timestamp(seconds::bigint);
    SELECT pg_notify('lastcall_cutoffs', '');
$$;
"""
_CLOCK_FUNCTION = "CREATE FUNCTION story.{}() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM story.clock'"
# schema.sql lets its triggers look in pg_catalog first.
_TRIGGERS_BY_THE_CLOCK = """
DO $$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'story'::regnamespace AND prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = story, pg_catalog, pg_temp', ours);
    END LOOP;
END
$$;
"""
_SEARCH_PATH = "&options=-csearch_path%3Dstory,pg_catalog"


def make_template(postgres: EmbeddedPostgres) -> None:
    url = postgres.create_database(TEMPLATE)
    with psycopg.connect(url) as psql:
        psql.execute(_CLOCK.replace("%s", str(START)))
        for name in ("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp"):
            psql.execute(_CLOCK_FUNCTION.format(name))
    apply_schema(url + _SEARCH_PATH)
    with psycopg.connect(url) as psql:
        psql.execute(_TRIGGERS_BY_THE_CLOCK)


@contextmanager
def database_of_a_story(postgres: EmbeddedPostgres, name: str) -> Iterator[str]:
    url = postgres.create_database(name, TEMPLATE) + _SEARCH_PATH
    try:
        yield url
    finally:
        postgres.drop_database(name)


@cache
def signing_key(number: int) -> dict[str, str]:
    return generate_signing_key("EdDSA")


def key_ring(numbers: tuple[int, ...]) -> KeyRing:
    from json import dumps

    return KeyRing.parse(dumps([signing_key(number) for number in numbers]))


class Worker:
    """A guard with its cutoffs and its listener, as each process has them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asker = Asker(settings.database_url)
        self.cutoffs = Cutoffs()
        self.guard = self._guard()
        self.listening = False
        self.start()

    def _guard(self) -> Guard:
        return Guard(
            self._settings.keys,
            self.cutoffs,
            issuer=self._settings.issuer,
            audience=self._settings.audience,
            longest_lifetime_s=self._settings.longest_lifetime,
            asker=self._asker,
        )

    def take_keys(self, settings: Settings) -> None:
        """Keys are read at the start of a process: a new guard, which remembers nothing."""
        self._settings = settings
        self.guard = self._guard()

    def start(self) -> None:
        """Listen again, with the cutoffs of before. While nobody listens the guard asks the database."""
        self.listener = CutoffListener(self._settings.listen_url, self.cutoffs, lease_s=LEASE_S, service="story")
        self.listener.ensure_running()
        assert self.listener.wait_until_live()
        self.listening = True

    def start_afresh(self) -> None:
        self.cutoffs = Cutoffs()
        self.guard = self._guard()
        self.start()

    def stop(self) -> None:
        self.listening = False
        self.listener.stop()

    def close(self) -> None:
        self.stop()
        self._asker.close()

    def check(self, token: str) -> Claims:
        """What the guard says. A worker that could not find out in time is asked again: that is no verdict."""
        for _ in range(20):
            try:
                return self.guard.check(token)
            except CutoffsStale:
                continue
        raise CutoffsStale


def stop_all(workers: list[Worker], psql: psycopg.Connection) -> None:
    """All at once, woken up by a NOTIFY: a listener looks up only ten times a second."""
    threads = [threading.Thread(target=worker.close) for worker in workers]
    for thread in threads:
        thread.start()
    psql.execute("SELECT pg_notify('lastcall_cutoffs', '')")
    for thread in threads:
        thread.join()
