"""What can happen to PostgreSQL: it is killed, frozen, full, wrong about the time, or a server of yesterday."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from tests.faults.bench import (
    DEADLINE_S,
    IN_FULL,
    LATE_S,
    LEASE_S,
    MARGIN_S,
    ROUNDS,
    SLACK_S,
    Bench,
    Host,
    frozen,
    kill_database,
    paused,
)
from tests.faults.conftest import StartBench, StartHost
from tests.faults.history import ACCEPTED, NOT_NOW, REFUSED, Token
from tests.faults.load import Caller
from tests.faults.standby import Standby
from tests.faults.wrong_clock import WrongClock
from tools.postgres import EmbeddedPostgres


def test_the_database_is_killed_and_started_again(start_bench: StartBench, cluster: EmbeddedPostgres) -> None:
    bench = start_bench(
        "the database is killed (-9) and started again",
        "503 meanwhile; nothing that returned is lost; recovery by itself",
        database=cluster,
    )
    with bench.psql() as psql:
        # Whatever is not asked for expressly shall be lost.
        psql.execute(f"ALTER DATABASE {bench.name} SET synchronous_commit = off")
    bench.host.proxy.cut()
    bench.wait_until_usual()
    bench.figures.recovery_s = None
    cycle = 0
    while cycle < max(1, ROUNDS // 7 + 1):
        cycle += 1
        bench.rounds(3)
        tokens = [bench.new_victim() for _ in range(2)]
        # The last thing that happens: nothing may be left to be written when it returns.
        for token in tokens:
            bench.revoke_at_last(token.subject)
        kill_database(cluster)
        for token in tokens:
            assert set(bench.load.ask_each(token)) <= {REFUSED, NOT_NOW}
        assert bench.try_to_sign_in("user-0") is None
        answer = bench.revoke("user-0")
        assert answer is not None
        assert answer.status == NOT_NOW, answer.text
        cluster.start()
        took_s = bench.wait_until_usual()
        assert took_s < 2 * LEASE_S + SLACK_S, f"it took {took_s:.1f} s to recover"
        for token in tokens:
            assert set(bench.load.ask_each(token)) == {REFUSED}
        bench.rounds(2)
    bench.check()


def test_deletions_of_users_that_returned_survive_a_killed_database(
    start_bench: StartBench, cluster: EmbeddedPostgres
) -> None:
    bench = start_bench(
        "a user is deleted, and the database is killed (-9)", "the deletion that returned stands", database=cluster
    )
    with bench.psql() as psql:
        psql.execute(f"ALTER DATABASE {bench.name} SET synchronous_commit = off")
    bench.host.proxy.cut()
    bench.wait_until_usual()
    for number in range(2):
        username = f"user-{number}"
        token = bench.sign_in(username)
        answer = bench.ask("DELETE", f"/admin/users/{bench.user_ids[username]}")
        kill_database(cluster)
        assert answer.status in (200, 204), answer.text
        bench.expect_gone(username)
        cluster.start()
        bench.wait_until_usual()
        with bench.psql() as psql:
            found = psql.execute("SELECT FROM users WHERE username = %s", (username,)).fetchone()
        assert found is None, "the deletion had returned, and the database has lost it"
        assert set(bench.load.ask_each(token)) == {REFUSED}
    bench.check()


def test_the_database_is_frozen(start_bench: StartBench, cluster: EmbeddedPostgres) -> None:
    bench = start_bench(
        "the database is frozen (SIGSTOP of its processes)",
        "no guarded request over 1 s; 503 once the lease is out; recovery by itself",
        database=cluster,
    )
    for _ in range(max(1, ROUNDS // 20)):
        bench.rounds(3)
        token = bench.new_victim()
        bench.revoke_at_last(token.subject)
        with frozen(cluster):
            since_s = time.monotonic()
            while time.monotonic() - since_s < LEASE_S + MARGIN_S:
                assert ACCEPTED not in bench.load.ask_each(token)
            while time.monotonic() - since_s < 2.5 * LEASE_S:
                assert set(bench.load.ask_each(bench.bystander)) == {NOT_NOW}
                assert set(bench.load.ask_each(token)) == {NOT_NOW}
        took_s = bench.wait_until_usual()
        assert took_s < LEASE_S + LATE_S, f"it took {took_s:.1f} s to recover"
        assert set(bench.load.ask_each(token)) == {REFUSED}
        bench.rounds(18 if IN_FULL else 3)
    bench.check()
    longest_s = bench.history.longest_request_s()
    assert longest_s < 1.0 + LATE_S, f"a guarded request hung for {longest_s:.1f} s"


def test_the_clock_of_the_database_steps(start_bench: StartBench, tmp_path: Path) -> None:
    clock = WrongClock(tmp_path)
    with ExitStack() as stack:
        with clock.in_force():
            database = stack.enter_context(EmbeddedPostgres(tmp_path / "cluster"))
        bench = start_bench(
            "the clock of the database steps by 1 h, back and forth", "old out, new in, as ever", database=database
        )
        with bench.psql() as psql:
            before = psql.execute("SELECT clock_timestamp()").fetchone()
            clock.set(-3600)
            after = psql.execute("SELECT clock_timestamp()").fetchone()
            assert before is not None
            assert after is not None
            assert after[0] < before[0], "the clock can't be set"
        for hours in (-1, 0, 1, 0):
            clock.set(hours * 3600)
            # Those who now seem to have been idle for an hour PostgreSQL ends (idle_session_timeout) when it next looks
            # at its timers, within seconds; whose request comes at that moment gets 503. Here it is done at once.
            with bench.psql() as psql:
                psql.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name = 'lastcall' AND state = 'idle'"
                )
            # By now every worker has read the new time; the admin's token is of this time too.
            marked = bench.new_victim()
            bench.revoke_by_psql(marked.subject)
            bench.wait_until_refused(marked)
            bench.sign_in_as_admin()
            bench.rounds(max(2, ROUNDS // 4))
        bench.check()
        bench.finish()
        for host in bench.hosts:
            host.server.stop()


def test_a_token_from_before_the_clock_stepped_back_is_still_good(start_bench: StartBench, tmp_path: Path) -> None:
    """To a worker that has not seen it before, it comes from the future, by more than it may live."""
    clock = WrongClock(tmp_path)
    with clock.in_force():
        database = EmbeddedPostgres(tmp_path / "cluster")
        database.start()
    try:
        bench = start_bench(
            "the clock of the database steps back by 1 h; usual lifetimes",
            "no token is refused that nothing covers",
            database=database,
            LASTCALL_ACCESS_TTL="300",
        )
        unseen, revoked = bench.sign_in("user-0"), bench.sign_in("user-1")
        clock.set(-3600)
        bench.revoke_by_psql(revoked.subject)
        bench.wait_until_refused(revoked)  # by now every worker has read the new time
        answers = bench.load.ask_each(unseen)
        assert set(answers) == {ACCEPTED}, f"a good token gets {answers}"
        bench.rounds(2)
        bench.check()
        bench.host.server.stop()
    finally:
        database.stop()


# --------------------------------------------------------------------------------------------- a server of yesterday


class Yesterday:
    """A copy of a server as it was at one moment, to take its place later."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self._server, self._folder = server, folder

    def take(self) -> None:
        """Keep what there is now: stop, copy, start."""
        self._server.stop()
        shutil.copytree(self._server.data_dir, self._folder / "postgres", symlinks=True)
        self._server.start()

    def come_back(self) -> None:
        """The server goes on from the copy."""
        self._server.stop()
        shutil.rmtree(self._server.data_dir)
        shutil.copytree(self._folder / "postgres", self._server.data_dir, symlinks=True)
        self._server.start()


class Failover:
    """An asynchronous standby of a server that falls behind, and is promoted when the server dies."""

    def __init__(self, server: EmbeddedPostgres, standby: Standby, bench: Bench) -> None:
        self._server, self._standby, self._bench = server, standby, bench

    def take(self) -> None:
        self._standby.hold_back()

    def come_back(self) -> None:
        kill_database(self._server)
        self._standby.promote()
        for host in self._bench.hosts:
            host.proxy.lead_to(self._standby.server.url)
        self._bench.database = self._standby.server


@contextmanager
def older_server(how: str, bench: Bench, cluster: EmbeddedPostgres, folder: Path) -> Iterator[Yesterday | Failover]:
    if how == "restored":
        folder.mkdir(mode=0o700)
        yield Yesterday(cluster, folder)
    else:
        with Standby(cluster, folder) as standby:
            yield Failover(cluster, standby, bench)


def wait_until_reread(bench: Bench, started_s: float) -> None:
    """Until every worker listens to the database that there is since `started_s` (time.time(); the rows of workers may
    be older). Who is still signed in, is not asked."""
    since_s = time.monotonic()
    while True:
        assert time.monotonic() - since_s < DEADLINE_S, "the workers do not come back:\n" + bench.host.log()[-2000:]
        try:
            with bench.psql() as psql:
                row = psql.execute(
                    "SELECT count(*) FROM workers WHERE snapshot IS NOT NULL AND pid = ANY(%s)"
                    " AND renewed_at > to_timestamp(%s)",
                    (bench.pids, started_s),
                ).fetchone()
            if row is not None and row[0] >= len(bench.pids) and bench.try_to_sign_in("user-7") is not None:
                bench.figures.recovered_in(time.monotonic() - since_s)
                return
        except psycopg.OperationalError:
            pass
        time.sleep(0.02)  # nothing tells from outside


def add_a_worker(bench: Bench, workers: int) -> None:
    bench.host.server.signal(signal.SIGTTIN)
    deadline_s = time.monotonic() + DEADLINE_S
    while len(bench.pids) < workers:
        assert time.monotonic() < deadline_s, "the new worker does not come"
        bench.follow_the_workers()


@pytest.mark.parametrize("how", ["restored", "promoted"])
def test_the_database_has_gone_back_in_time(
    start_bench: StartBench, cluster: EmbeddedPostgres, tmp_path: Path, how: str
) -> None:
    fault = {"restored": "an older backup is restored", "promoted": "a failover loses the last commits"}[how]
    must = "fenced, full read; every token of the time in doubt is refused; one loud line"
    bench = start_bench(fault, must, database=cluster, workers=(2,))
    with older_server(how, bench, cluster, tmp_path / "older") as older:
        older.take()
        bench.wait_until_usual()
        bench.figures.recovery_s = None
        revoked = bench.new_victim()
        for _ in range(5):
            bench.round()
        receipt = bench.revoke_at_last(revoked.subject).json
        lost_session = bench.new_victim()
        since_s = time.time()
        older.come_back()
        wait_until_reread(bench, since_s)
        add_a_worker(bench, 3)
        said = {
            "a token that was revoked in the lost time": (revoked, {REFUSED}),
            "a token of a session of the lost time": (lost_session, {REFUSED}),
        }
        wrong = [
            f"{what}: {answers}"
            for what, (token, right) in said.items()
            if set(answers := bench.load.ask_each(token)) != right
        ]
        again: Token = bench.sign_in(revoked.subject)
        if set(answers := bench.load.ask_each(again)) != {ACCEPTED}:
            wrong.append(f"a sign-in of the signed-out user, after it: {answers}")
        with bench.psql() as psql:
            # What it costs: the history of the lost time, and everyone has to sign in again, once.
            (lost,) = psql.execute(
                "SELECT count(*) = 0 FROM revocations WHERE id = %s", (receipt["revocation_id"],)
            ).fetchall()
            (out,) = psql.execute(
                "SELECT count(*) FROM revocations WHERE scope = 'everyone' AND cause = 'database_went_back'"
            ).fetchall()
        if (lost, out) != ((True,), (1,)):
            wrong.append(f"the receipt's row is lost: {lost}; logged out everyone: {out}")
        loud = [line for line in bench.host.log().splitlines() if "BACK" in line]
        if not 1 <= len(loud) <= 2:
            wrong.append(f"{len(loud)} loud lines of two workers")
        bench.load.stop()
        wrong += bench.history.accepted_after_return()[:3]
        for host in bench.hosts:
            host.server.stop()
    assert not wrong, "; ".join(wrong)
    bench.figures.outcome = "held"


@pytest.mark.parametrize("how", ["restored", "promoted"])
def test_a_new_worker_on_a_database_that_has_gone_back_lets_the_others_tell(
    start_bench: StartBench, cluster: EmbeddedPostgres, tmp_path: Path, how: str
) -> None:
    """It starts first, and knows nothing of the lost time; those that do are held up for a while."""
    fault = f"a worker starts on a database that was {how} and has gone back, before the others are back"
    bench = start_bench(fault, "0 accepted after return: it waits for them", database=cluster, workers=(2,))
    with older_server(how, bench, cluster, tmp_path / "older") as older:
        older.take()
        bench.wait_until_usual()
        bench.figures.recovery_s = None
        revoked = bench.new_victim()
        bench.revoke_at_last(revoked.subject)
        since_s, before = time.time(), bench.pids
        with paused(before):
            older.come_back()
            add_a_worker(bench, 3)
            meanwhile = [bench.load.ask_each(revoked, without=before) for _ in range(5)]
        wait_until_reread(bench, since_s)
        bench.sign_in_as_admin()
        bench.bystander = bench.sign_in("bystander")
        bench.load.ask_for(bench.bystander)
        bench.wait_until_usual()
        after = bench.load.ask_each(revoked)
        bench.load.stop()
        accepted = bench.history.accepted_after_return()[:3]
        for host in bench.hosts:
            host.server.stop()
    assert (meanwhile, set(after), accepted) == ([[NOT_NOW]] * 5, {REFUSED}, [])
    bench.figures.outcome = "held"


def test_a_new_worker_waits_for_the_dead_no_longer_than_they_would_need(
    start_bench: StartBench, cluster: EmbeddedPostgres
) -> None:
    bench = start_bench(
        "the database and all workers are killed at once, and new ones start",
        "ready as soon as those of before would be back: a lease and 2 s",
        database=cluster,
        workers=(2,),
    )
    token = bench.new_victim()
    bench.load.stop()
    kill_database(cluster)
    for pid in bench.pids:
        os.kill(pid, signal.SIGKILL)
    cluster.start()
    since_s, statuses, caller = time.monotonic(), {NOT_NOW}, Caller(bench.host.server.port)
    while ACCEPTED not in statuses:
        statuses.add(caller.ask(token.raw)[1])
        assert statuses <= {NOT_NOW, ACCEPTED}, statuses
        took_s = time.monotonic() - since_s
        assert took_s < LEASE_S + 2 + SLACK_S, "the new workers are not ready:\n" + bench.host.log()[-2000:]
    caller.close()
    assert took_s > LEASE_S, "it did not wait for the workers of before"
    bench.figures.recovered_in(took_s)
    bench.figures.outcome = "held"


def test_a_restored_database_does_not_know_a_worker_that_still_trusts_its_memory(
    start_bench: StartBench, start_host: StartHost, cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Its row came after the backup, and it can't reach the database: nobody waits for it, so everybody must wait."""
    fault = "an older backup is restored, and a worker that it does not know is cut off"
    bench = start_bench(fault, "0 accepted after return", database=cluster, workers=(2,), LASTCALL_LEASE="6")
    (tmp_path / "older").mkdir(mode=0o700)
    older = Yesterday(cluster, tmp_path / "older")
    token = bench.new_victim()
    older.take()
    bench.wait_until_usual()
    late: Host = start_host(cluster, bench.name, 1, LASTCALL_LEASE="6")
    late.pids = [line.worker_pid() for line in late.server.lines()]
    bench.load.start(late.server.port, late.pids)
    assert set(bench.load.ask_each(token)) == {ACCEPTED}
    late.proxy.refuse()
    older.come_back()
    deadline_s = time.monotonic() + DEADLINE_S
    while (answer := bench.revoke(token.subject)) is None or answer.status == NOT_NOW:
        assert time.monotonic() < deadline_s, "nobody can revoke"
    bench.load.ask_each(token, 5)
    bench.load.stop()
    late.proxy.heal()
    assert bench.history.accepted_after_return()[:3] == []
    bench.figures.outcome = "held"


# ------------------------------------------------------------------------------------------------------- no room left


def test_all_connections_are_taken(start_bench: StartBench, cluster: EmbeddedPostgres) -> None:
    bench = start_bench(
        "max_connections is reached", "a clear 503, nothing half done, recovery by itself", database=cluster
    )
    token = bench.new_victim()
    with ExitStack() as stack:
        psql = stack.enter_context(psycopg.connect(cluster.url(bench.name), autocommit=True))

        def take_all() -> None:
            for _ in range(400):
                try:
                    stack.enter_context(psycopg.connect(cluster.url("postgres"), autocommit=True))
                except psycopg.OperationalError:
                    return

        take_all()
        since_s = time.monotonic()
        while time.monotonic() - since_s < LEASE_S + MARGIN_S:
            psql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'lastcall%'"
            )
            take_all()
        statuses = set(bench.load.ask_each(bench.bystander))
        assert statuses == {NOT_NOW}, statuses
        assert bench.try_to_sign_in("user-0") is None
        answer = bench.revoke(token.subject)
        assert answer is not None
        assert answer.status == NOT_NOW, answer.text
        assert answer.json["code"] in ("cutoffs_stale", "database_away")
    took_s = bench.wait_until_usual()
    assert took_s < 2 * LEASE_S + SLACK_S, f"it took {took_s:.1f} s to recover"
    assert set(bench.load.ask_each(token)) == {ACCEPTED}, "it was not revoked, and nobody said that it was"
    bench.rounds(3)
    bench.check()
    assert "Traceback" not in bench.host.log()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 150 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "lastcall", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere: " + mounted.stderr.decode().strip())
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_disk_is_full(start_bench: StartBench, small_disk: Path) -> None:
    with EmbeddedPostgres(small_disk / "cluster") as cluster:
        bench = start_bench(
            "the disk of the database is full", "a clear 503, nothing half done, nothing lost", database=cluster
        )
        bench.rounds(2)
        told, cycle = 0, 0
        while cycle < max(1, ROUNDS // 50):
            cycle += 1
            told += _fill_the_disk_and_go_on_revoking(bench, small_disk, cluster)
            bench.wait_until_usual()
            bench.rounds(3 if ROUNDS < 100 else ROUNDS // 10)
        assert told, "nobody was told that the disk is full"
        with bench.psql() as psql:
            # Each rise of a generation has its cutoff and its line in the history, or none of it happened.
            assert not psql.execute(
                "SELECT FROM users AS u WHERE gen > 0 AND ("
                " gen IS DISTINCT FROM (SELECT min_gen FROM cutoffs WHERE scope = 'user' AND subject = u.id::text) OR"
                " gen IS DISTINCT FROM (SELECT count(*) FROM revocations WHERE subject = u.id::text))"
            ).fetchall()
        bench.check()
    assert "Traceback" not in bench.host.log()


def _fill_the_disk_and_go_on_revoking(bench: Bench, disk: Path, cluster: EmbeddedPostgres) -> int:
    """Until PostgreSQL says that it is full, or can't go on at all; then there is room again.

    Returns how often somebody was told "database_full".
    """
    token = bench.new_victim()
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    told = 0
    for _ in range(200):
        answer = bench.revoke(token.subject, reason="x" * 500)
        if answer is not None and answer.status != 200:
            assert answer.status == NOT_NOW, answer.text
            told += answer.json["code"] == "database_full"
        if told >= 3 or cluster.has_ended():
            break
    ballast.unlink()
    if cluster.has_ended():  # it panics when its log can't be written (PostgreSQL manual, 28.5); somebody starts it
        cluster.stop()
        cluster.start()
    return told


def test_the_queue_of_notify_is_full(start_bench: StartBench, cluster: EmbeddedPostgres) -> None:
    with psycopg.connect(cluster.url(), autocommit=True) as psql:
        psql.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
    cluster.stop()
    cluster.start()
    bench = start_bench(
        "the NOTIFY queue is full; then a listener is stuck in a transaction as well",
        "in force by the lease all the same; the stuck one is fenced",
        database=cluster,
    )
    bench.rounds(2)
    pid = bench.pids[0]
    with bench.psql() as stuck, bench.psql() as psql:
        # Somebody listens, and stays in a transaction: what he has not read can't be thrown away.
        stuck.execute("LISTEN anything")
        stuck.execute("BEGIN")
        stuck.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="NOTIFY queue"):
            for _ in range(1000):
                psql.execute("SELECT pg_notify('anything', repeat('x', 7900) || g) FROM generate_series(1, 50) AS g")
        for answer in bench.rounds(100 if IN_FULL else 3):
            assert answer.json["workers"]["confirmed"] == 4
        token = bench.new_victim()
        bench.host.hooks.stick_the_listener(pid)
        time.sleep(LEASE_S / 2)  # a round begins each quarter of a lease
        since_s = time.monotonic()
        workers = bench.revoke_at_last(token.subject).json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (3, 3, 1)
        assert time.monotonic() - since_s < LEASE_S + MARGIN_S + SLACK_S
        assert set(bench.load.ask_each(token, 2)) == {REFUSED}
        bench.host.hooks.let_the_listener_go(pid)
        bench.wait_until_usual()
        stuck.execute("ROLLBACK")
    bench.rounds(2)
    bench.check()
