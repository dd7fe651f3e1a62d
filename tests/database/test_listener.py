"""The real listener on a real PostgreSQL: it misses nothing, believes nothing false, and recovers by itself."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from lastcall.claims import Claims
from lastcall.connection import adjust, of_many_rows
from lastcall.cutoffs import Cutoff, Cutoffs, Row
from lastcall.errors import Revoked
from lastcall.guard import Guard
from lastcall.listener import CANARY, CutoffListener
from lastcall.prepared import ask, prepare
from lastcall.statements import CONFIRM, READ_NEW
from tests.database.conftest import DEADLINE_S, CatchUp, one, wait_until
from tests.unit.by_hand import HS256, token

AHEAD = "4000000000:4000000000:"


class Fenceable(Cutoffs):
    """Cutoffs that tell when they were fenced."""

    def __init__(self) -> None:
        super().__init__()
        self.was_fenced = threading.Event()

    def fence(self) -> None:
        super().fence()
        self.was_fenced.set()


class Heard:
    """How often `on_change` was called; `wait` until it is called once more."""

    def __init__(self) -> None:
        self._calls = threading.Semaphore(0)

    def __call__(self) -> None:
        self._calls.release()

    def wait(self) -> None:
        assert self._calls.acquire(timeout=DEADLINE_S), "the listener heard nothing"

    def nothing(self) -> bool:
        return not self._calls.acquire(blocking=False)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def cutoffs() -> Fenceable:
    return Fenceable()


@pytest.fixture
def listener(database_url: str, cutoffs: Fenceable, heard: Heard) -> Iterator[CutoffListener]:
    listener = CutoffListener(database_url, cutoffs, lease_s=1.0, service="test", version="1", on_change=heard)
    listener.ensure_running()
    assert listener.wait_until_live()
    yield listener
    listener.stop()


def raise_user(psql: psycopg.Connection, subject: str, generation: int) -> None:
    psql.execute("SELECT raise_cutoff('user', %s, %s, now() + '1 h')", (subject, generation))


def refuses(cutoffs: Cutoffs, subject: str, generation: int) -> bool:
    """Whether a token of this user, of this generation, is refused."""
    return cutoffs.refuses(Claims(subject, "sid", generation, cutoffs.everyone_gen, 1, 2)) == "user"


@pytest.mark.usefixtures("listener")
def test_a_cutoff_is_in_force_once_it_was_heard(psql: psycopg.Connection, cutoffs: Cutoffs, heard: Heard) -> None:
    raise_user(psql, "ann", 3)
    heard.wait()
    assert refuses(cutoffs, "ann", 2) and not refuses(cutoffs, "ann", 3) and not refuses(cutoffs, "bob", 0)


def test_all_cutoffs_from_before_the_start_are_known_before_the_lease_begins(
    psql: psycopg.Connection, database_url: str
) -> None:
    for number in range(20):
        raise_user(psql, f"user {number}", 1)
    psql.execute("UPDATE everyone SET gen = 4")
    cutoffs = Cutoffs()
    listener = CutoffListener(database_url, cutoffs)
    listener.ensure_running()
    assert listener.wait_until_live()
    assert all(refuses(cutoffs, f"user {number}", 0) or cutoffs.everyone_gen for number in range(20))
    assert (len(cutoffs), cutoffs.everyone_gen) == (21, 4)
    listener.stop()


def test_a_cutoff_that_is_made_right_after_the_first_read_is_heard_at_once(
    psql: psycopg.Connection, database_url: str, cutoffs: Cutoffs, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(CutoffListener):
        def _round(self, *args: Any, **kwargs: Any) -> None:
            super()._round(*args, **kwargs)
            if self.reads_done == 1:
                raise_user(psql, "ann", 1)

    # The periodic read comes after the deadline: only a LISTEN before the first read can help.
    monkeypatch.setattr("lastcall.listener.ROUND_S", 2 * DEADLINE_S)
    listener = Interrupted(database_url, cutoffs, lease_s=8 * DEADLINE_S, on_change=heard)
    listener.ensure_running()
    heard.wait()
    assert refuses(cutoffs, "ann", 0)
    listener._stopping.set()
    psql.execute("NOTIFY lastcall_cutoffs")
    listener.stop()


@pytest.mark.parametrize("times", [1, 3])
def test_a_cut_connection_recovers_and_nothing_is_missed(
    psql: psycopg.Connection, listener: CutoffListener, cutoffs: Cutoffs, heard: Heard, catch_up: CatchUp, times: int
) -> None:
    for turn in range(times):
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        mine = " WHERE application_name = 'lastcall-listener' AND datname = current_database()"
        wait_until(lambda sql=ended + mine: one(psql, sql) == 1, "the listener is connected")
        raise_user(psql, f"user {turn}", 1)  # while nobody listens
        heard.wait()
        catch_up()
    assert all(refuses(cutoffs, f"user {turn}", 0) for turn in range(times))
    assert listener.wait_until_live()
    assert one(psql, "SELECT count(*) FROM workers") == 1


@pytest.mark.usefixtures("listener")
def test_without_any_announcement_the_periodic_read_keeps_the_promise(
    psql: psycopg.Connection, cutoffs: Cutoffs, heard: Heard
) -> None:
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER cutoffs_after_write")
    raise_user(psql, "ann", 1)
    heard.wait()
    assert refuses(cutoffs, "ann", 0)


@pytest.mark.parametrize(
    "payload", ["", "everyone", '{"scope": "everyone", "min_gen": 99}', "\N{SNOWMAN}", "x" * 7999], ids=len
)
@pytest.mark.usefixtures("listener")
def test_a_forged_announcement_changes_nothing(
    psql: psycopg.Connection, cutoffs: Cutoffs, heard: Heard, catch_up: CatchUp, payload: str
) -> None:
    raise_user(psql, "ann", 1)
    heard.wait()
    for _ in range(50):
        psql.execute("SELECT pg_notify('lastcall_cutoffs', %s)", (payload,))
    catch_up()
    assert heard.nothing()
    assert (len(cutoffs), cutoffs.everyone_gen) == (1, 0) and cutoffs.lease_is_valid()
    assert refuses(cutoffs, "ann", 0)


@pytest.mark.usefixtures("listener")
def test_a_burst_of_announcements_loses_no_cutoff(
    psql: psycopg.Connection, cutoffs: Cutoffs, catch_up: CatchUp
) -> None:
    for number in range(200):
        raise_user(psql, f"user {number}", 1)
    catch_up()
    assert all(refuses(cutoffs, f"user {number}", 0) for number in range(200))


@pytest.fixture
def only_looks(monkeypatch: pytest.MonkeyPatch, database_url: str, cutoffs: Fenceable) -> Iterator[CutoffListener]:
    """A listener whose second round is long after the deadline."""
    monkeypatch.setattr("lastcall.listener.ROUND_S", 2 * DEADLINE_S)
    listener = CutoffListener(database_url, cutoffs, lease_s=8 * DEADLINE_S)
    listener.ensure_running()
    assert listener.wait_until_live()
    yield listener
    listener.stop()


def test_no_announcement_is_lost_that_comes_while_the_listener_looks(
    psql: psycopg.Connection, cutoffs: Cutoffs, only_looks: CutoffListener, catch_up: CatchUp
) -> None:
    renewals, lease_until_ns = one(psql, "SELECT renewals FROM workers"), cutoffs.lease_until_ns
    for number in range(300):
        raise_user(psql, f"user {number}", 1)
        if number % 30 == 0:
            wait_until(lambda number=number: refuses(cutoffs, f"user {number}", 0), "it is heard without any round")
    catch_up()
    assert all(refuses(cutoffs, f"user {number}", 0) for number in range(300))
    assert one(psql, "SELECT renewals FROM workers") == renewals
    assert cutoffs.lease_until_ns == lease_until_ns, "a look is no new lease"


@pytest.mark.usefixtures("only_looks")
def test_what_was_read_is_not_read_again_while_an_old_transaction_stays_open(
    psql: psycopg.Connection, database_url: str, cutoffs: Cutoffs, catch_up: CatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    advanced: list[str] = []
    advance = cutoffs.advance

    def note(cutoff: Row) -> bool:
        advanced.append(cutoff[1])
        return advance(cutoff)

    monkeypatch.setattr(cutoffs, "advance", note)
    with psycopg.connect(database_url) as slow:
        raise_user(slow, "slow", 1)
        for number in range(20):
            raise_user(psql, f"user {number}", 1)
            catch_up()
        slow.commit()
    catch_up()
    assert sorted(advanced) == sorted([*(f"user {number}" for number in range(20)), "slow"])


def test_its_own_statements_are_isolated_as_they_need_it_whatever_the_role_says(database_url: str) -> None:
    serializable = "-c default_transaction_isolation=serializable"
    with psycopg.connect(database_url, autocommit=True, options=serializable) as connection:
        adjust(connection, lease_s=2.0)
        assert one(connection, "SHOW transaction_isolation") == "read committed"
        with of_many_rows(connection):
            assert one(connection, "SHOW transaction_isolation") == "read committed"


def test_it_reads_what_is_new_by_an_index_though_its_plan_is_of_an_empty_table(
    psql: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        adjust(connection, lease_s=2.0)
        prepare(connection, b"read_new", READ_NEW)
        position = str(one(psql, "SELECT pg_current_snapshot()::text"))
        for rows in (0, 10_000):
            psql.execute(
                "INSERT INTO cutoffs (scope, subject, expires_at) SELECT 'session', number::text, now() + '1 h'"
                " FROM generate_series(1, %s) AS number",
                (rows,),
            )
            psql.execute("ANALYZE cutoffs")
            ask(connection, b"read_new", position)
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN EXECUTE read_new('{position}')"))
            assert "Seq Scan on cutoffs" not in plan and "cutoffs_xid" in plan, plan
            assert "JIT" not in plan, plan
        with of_many_rows(connection):
            all_of_them = "EXPLAIN SELECT subject, xid FROM cutoffs WHERE expires_at > now()"
            plan = "\n".join(row[0] for row in connection.execute(all_of_them))
        assert "Seq Scan on cutoffs" in plan and "Disabled" not in plan, plan


@pytest.mark.usefixtures("listener")
def test_a_transaction_that_began_early_and_commits_late_is_not_skipped(
    psql: psycopg.Connection, database_url: str, cutoffs: Cutoffs, catch_up: CatchUp
) -> None:
    with psycopg.connect(database_url) as slow:
        raise_user(slow, "slow", 1)
        raise_user(psql, "quick", 1)
        wait_until(lambda: refuses(cutoffs, "quick", 0), "the quick one is in force")
        assert not refuses(cutoffs, "slow", 0)
        slow.commit()
    catch_up()
    assert refuses(cutoffs, "slow", 0)


@pytest.mark.usefixtures("listener")
def test_a_cutoff_whose_transaction_commits_late_is_kept_as_long_as_tokens_of_until_then(
    psql: psycopg.Connection, database_url: str, cutoffs: Cutoffs, catch_up: CatchUp
) -> None:
    """Its end was written long before the COMMIT, and people signed in meanwhile."""
    psql.execute("SELECT raise_cutoff('user', 'ann', 3, now() - interval '1 min')")
    catch_up()
    started_later = Cutoffs()
    listener = CutoffListener(database_url, started_later)
    listener.ensure_running()
    assert listener.wait_until_live()
    for held in (cutoffs, started_later):
        held.forget(held.now_s() + 290)
        assert refuses(held, "ann", 2), "a token of before the COMMIT lives for 300 s"
        held.forget(held.now_s() + 340)
        assert not refuses(held, "ann", 2)
    listener._stopping.set()
    psql.execute("NOTIFY lastcall_cutoffs")
    listener.stop()


def test_the_row_of_a_worker_says_who_it_is_and_goes_when_it_stops(
    psql: psycopg.Connection, listener: CutoffListener, cutoffs: Cutoffs
) -> None:
    row = psql.execute("SELECT id::text, service, version, lease_s, snapshot IS NOT NULL FROM workers").fetchone()
    assert row is not None and row[:4] == (listener.worker_id, "test", "1", 1.0)
    wait_until(lambda: one(psql, "SELECT snapshot IS NOT NULL FROM workers"), "the first position")
    listener.stop()
    assert one(psql, "SELECT count(*) FROM workers") == 0
    assert not cutoffs.lease_is_valid(), "nobody waits for it any more, so it must not answer"


def test_a_worker_whose_row_was_deleted_registers_again(
    psql: psycopg.Connection, listener: CutoffListener, cutoffs: Cutoffs
) -> None:
    psql.execute("DELETE FROM workers")
    wait_until(lambda: one(psql, "SELECT count(*) FROM workers WHERE snapshot IS NOT NULL") == 1, "it is back")
    assert one(psql, "SELECT id::text FROM workers") == listener.worker_id and cutoffs.lease_is_valid()


@pytest.mark.parametrize(
    "how", ["its own row is older than it was", "its own row is lost", "its last position is lost"]
)
def test_a_position_that_goes_backwards_fences_reads_all_anew_and_lowers_nothing(
    psql: psycopg.Connection,
    listener: CutoffListener,
    cutoffs: Fenceable,
    caplog: pytest.LogCaptureFixture,
    catch_up: CatchUp,
    how: str,
) -> None:
    # What the backup does not know of: it was read from the database that was lost.
    cutoffs.advance(Cutoff("user", "lost", 9, 1, 2**51))
    # What the next read would skip, if it read only what is new.
    raise_user(psql, "ann", 1)
    catch_up()
    assert refuses(cutoffs, "ann", 0)
    cutoffs._users.pop("ann")
    everyone_gen = cutoffs.everyone_gen
    with caplog.at_level(logging.CRITICAL, "lastcall"):
        while not cutoffs.was_fenced.is_set():  # again and again: a round under way overwrites it
            if how == "its own row is lost":
                listener._position = AHEAD
                psql.execute("DELETE FROM workers")
            elif how == "its last position is lost":
                with psql.transaction():
                    psql.execute("UPDATE workers SET snapshot = '1:1:'")
                    psql.execute(TERMINATE)
            else:
                listener._renewals = 2**53
            # A round sees it; a look, on a hint, would only write a new position.
            cutoffs.was_fenced.wait(0.6)
        assert listener.wait_until_live()
    assert refuses(cutoffs, "ann", 0) and refuses(cutoffs, "lost", 8)
    assert "BACK in time" in caplog.text
    catch_up()
    assert cutoffs.everyone_gen > everyone_gen, "every token of the time in doubt is refused"


@pytest.mark.parametrize("step", ["_read", "_confirm"])
def test_what_is_not_committed_counts_for_nothing(
    psql: psycopg.Connection, listener: CutoffListener, cutoffs: Cutoffs, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The others would take the worker for fenced, while it trusts its memory; and what was rolled back is nothing that
    the database has lost."""
    usual, renew_lease = getattr(listener, step), cutoffs.renew_lease
    begun, trusted = threading.Event(), []

    def act_and_begin(connection: psycopg.Connection, *given: str) -> Any:
        result = usual(connection, *given)
        if not begun.is_set():
            connection.execute("BEGIN")
            begun.set()
        return result

    def note_and_renew(until_ns: int) -> None:
        assert listener._connection is not None
        trusted.append(listener._connection.info.transaction_status)
        renew_lease(until_ns)

    connection = listener._connection
    monkeypatch.setattr(listener, step, act_and_begin)
    assert begun.wait(DEADLINE_S)
    begun_at = one(psql, "SELECT clock_timestamp()")
    wait_until(lambda: listener._connection not in (None, connection), "it begins anew")
    monkeypatch.setattr(cutoffs, "renew_lease", note_and_renew)
    wait_until(lambda: one(psql, "SELECT max(renewed_at) FROM workers") > begun_at, "it renews its row again")
    wait_until(lambda: trusted, "it trusts its memory again")
    assert set(trusted) == {TransactionStatus.IDLE}
    assert one(psql, "SELECT gen FROM everyone") == 0, "nobody is logged out"


TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'lastcall-listener' AND datname = current_database()"
)


def test_a_position_that_comes_late_replaces_none_that_was_written_since(
    psql: psycopg.Connection, listener: CutoffListener
) -> None:
    """A server process goes on when its listener has hung up on it. Its old position would look like a lost one."""
    wait_until(lambda: one(psql, "SELECT snapshot IS NOT NULL FROM workers"), "its first position is written")
    position, renewals = one(psql, "SELECT (snapshot::text, renewals) FROM workers")
    psql.execute("SELECT pg_current_xact_id()")  # so that the position to come is another one
    psql.execute(TERMINATE)
    anew = "SELECT count(*) FROM workers WHERE renewals > %s AND snapshot::text <> %s"
    wait_until(lambda: one(psql, anew, (renewals, position)) == 1, "it is registered anew")
    prepare(psql, b"late", CONFIRM)
    assert ask(psql, b"late", position, "0", listener.worker_id, str(renewals)) == []
    assert one(psql, "SELECT snapshot::text FROM workers") != position


def test_the_canary_is_refused_and_noted(psql: psycopg.Connection, listener: CutoffListener, heard: Heard) -> None:
    assert one(psql, "SELECT canary FROM workers") == 0
    raise_user(psql, CANARY, 7)
    wait_until(lambda: one(psql, "SELECT canary FROM workers") == 7, "the canary is refused")
    assert heard.nothing(), "it is nobody's revocation"


def test_a_stop_without_a_start_is_tolerated(database_url: str) -> None:
    listener = CutoffListener(database_url, Cutoffs())
    listener.stop()
    listener.stop()


def test_a_worker_never_starts_without_the_schema_says_what_to_do_and_comes_when_it_is_there(
    psql: psycopg.Connection, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cutoffs = Cutoffs()
    listener = CutoffListener(database_url, cutoffs)
    psql.execute("ALTER TABLE everyone RENAME TO elsewhere")
    listener.ensure_running()
    wait_until(lambda: one(psql, "SELECT count(*) FROM workers") == 1, "it registers first")
    wait_until(lambda: "init-db" in caplog.text, "it says what to do")
    assert 'does not get ready: relation "everyone" does not exist: run `flask --app app init-db`' in caplog.text
    assert not cutoffs.lease_is_valid() and cutoffs.state == "starting"
    psql.execute("ALTER TABLE elsewhere RENAME TO everyone")
    assert listener.wait_until_live(DEADLINE_S)
    listener.stop()


FORK = """
import os, sys
from lastcall.cutoffs import Cutoffs
from lastcall.listener import CutoffListener

listener = CutoffListener(sys.argv[1], Cutoffs(), lease_s=1.0)
listener.ensure_running()
assert listener.wait_until_live()
parent = listener.worker_id
if (child := os.fork()) == 0:
    problem = 1
    try:
        assert not listener.cutoffs.lease_is_valid(), "a lease of the parent's counts in no fork"
        listener.ensure_running()
        listener.ensure_running()
        assert listener._thread.is_alive() and listener.worker_id != parent
        assert not listener.cutoffs.loaded or listener.cutoffs.lease_is_valid()
        assert listener.wait_until_live()
        listener.stop()
        problem = 0
    finally:
        os._exit(problem)
assert os.waitpid(child, 0)[1] == 0
assert listener.wait_until_live()
assert listener.worker_id == parent
listener.stop()
"""


FORK_THAT_ASKS = """
import os, sys
from lastcall import ask

ask.PATIENCE_S = 10.0
asker = ask.Asker(sys.argv[1])
asker.now_s()
(kept,) = asker._connections
if (child := os.fork()) == 0:
    problem = 1
    try:
        asker.now_s()
        asker.close()
        problem = 0
    finally:
        os._exit(problem)
assert os.waitpid(child, 0)[1] == 0
asker.now_s()
assert asker._connections == [kept]
asker.close()
"""


@pytest.mark.parametrize("program", [FORK, FORK_THAT_ASKS], ids=["listener", "asker"])
def test_a_fork_has_its_own_and_leaves_the_parents_alone(
    psql: psycopg.Connection, database_url: str, program: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, database_url],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert one(psql, "SELECT count(*) FROM workers") == 0


def test_postgresql_ends_the_connection_of_a_listener_that_says_nothing(
    listener: CutoffListener, psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a network that has gone half-open: or each time it does, connections would be left behind."""
    stuck = threading.Event()
    monkeypatch.setattr(listener, "_wait_for_a_hint", lambda _: stuck.wait(DEADLINE_S))
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'lastcall-listener' AND datname = current_database()"
    )
    assert one(psql, query) == 1
    wait_until(lambda: one(psql, query) == 0, "the connection is ended")
    stuck.set()
    monkeypatch.undo()
    wait_until(lambda: one(psql, query) == 1, "the listener is back")


def test_a_check_that_comes_while_the_listener_looks_finds_the_cutoff(
    psql: psycopg.Connection, database_url: str, listener: CutoffListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastcall.guard.LOOK_S", DEADLINE_S)
    guard = Guard(HS256, listener.cutoffs, issuer="lastcall", audience="lastcall")
    now = int(time.time())
    raw = token(sub="ann", iat=now, auth_time=now, exp=now + 300, user_gen=0, everyone_gen=0)
    assert guard.check(raw).sub == "ann"
    with psycopg.connect(database_url) as revoking, ThreadPoolExecutor(1) as others:
        revoking.execute("LOCK TABLE cutoffs")  # what the listener reads
        raise_user(revoking, "ann", 1)
        psql.execute("NOTIFY lastcall_cutoffs")
        wait_until(lambda: listener.cutoffs.look is not None, "the listener looks")
        answer = others.submit(guard.check, raw)
        revoking.commit()
        with pytest.raises(Revoked):
            answer.result(DEADLINE_S)
