"""Failover to a standby (docs/scaling.md): what a synchronous one keeps, and how the workers move over to it.

What an asynchronous one loses: test_the_database_has_gone_back_in_time in test_database_faults.py.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.bench import IN_FULL, LEASE_S, MARGIN_S, ROUNDS, SLACK_S, Bench, Host, ask, kill_database
from tests.faults.conftest import StartBench, StartHost
from tests.faults.history import ACCEPTED, NOT_NOW, REFUSED, Token
from tests.faults.proxy import Proxy
from tests.faults.standby import Standby
from tests.faults.test_database_faults import wait_until_reread
from tests.gunicorn import ROOT
from tools.postgres import EmbeddedPostgres

AT_ONCE = 6
WAITING = (
    " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lastcall'"
    " AND query = 'COMMIT' AND wait_event = 'SyncRep'"
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Here a server that is killed never comes back, so it need not write to a disk."""
    with EmbeddedPostgres(tmp_path / "cluster", fast=True) as server:
        yield server


@pytest.fixture
def machines(cluster: EmbeddedPostgres) -> Iterator[list[Proxy]]:
    """The addresses of two machines. At first there is a server on the first alone."""
    with Proxy(cluster.url) as first, Proxy(cluster.url) as second:
        second.refuse()
        yield [first, second]


def on_both(machines: list[Proxy]) -> Callable[[str], dict[str, str]]:
    """DATABASE_URL as docs/scaling.md gives it: both machines, whichever may be written to."""
    hosts = ",".join(f"127.0.0.1:{machine.port}" for machine in machines)
    options = "target_session_attrs=read-write&sslmode=disable&gssencmode=disable"
    return lambda name: {"DATABASE_URL": f"postgresql://lastcall@{hosts}/{name}?{options}"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What must end before the servers do."""
    with ExitStack() as stack:
        yield stack


def test_a_synchronous_standby_takes_over_and_nothing_is_lost(
    start_bench: StartBench, cluster: EmbeddedPostgres, machines: list[Proxy], stack: ExitStack, tmp_path: Path
) -> None:
    must = "nothing that returned is lost; nobody is signed out; the workers move over by themselves"
    bench = start_bench(
        "the primary is killed or gone, its synchronous standby is promoted",
        must,
        database=cluster,
        workers=(2,),
        where=on_both(machines),
    )
    primary, here, there = cluster, *machines
    slowest_s = 0.0
    for number in range(max(2, ROUNDS // 50)):
        standby = stack.enter_context(Standby(primary, tmp_path / f"standby-{number}"))
        there.lead_to(standby.server.url)
        there.heal()
        standby.make_synchronous()
        bench.wait_until_usual()
        tokens = [bench.new_victim() for _ in range(2)]
        # The last thing that happens: nothing may be left to be sent to the standby when it returns.
        for token in tokens:
            bench.revoke_at_last(token.subject)
        if number % 2 == 0:
            here.swallow()  # the whole machine: nobody says that a connection has ended, or refuses a new one
        kill_database(primary)
        since_s = time.monotonic()
        standby.promote()
        bench.database = standby.server
        took_s = bench.wait_until_usual(since_s)
        # A lease until the listener hangs up on who is silent, and an attempt that is under way at the promotion.
        assert took_s < 1.25 * LEASE_S + 0.8 + 0.8 + SLACK_S, f"it took {took_s:.1f} s to recover"
        slowest_s = max(slowest_s, took_s)
        for token in tokens:
            assert set(bench.load.ask_each(token)) == {REFUSED}
        assert set(bench.load.ask_each(bench.bystander)) == {ACCEPTED}, "nothing is in doubt, so nobody is signed out"
        bench.rounds(46 if IN_FULL else 2)
        primary, here, there = standby.server, there, here
    bench.figures.recovery_s = slowest_s
    bench.check()
    assert "BACK" not in bench.host.log()
    bench.host.server.stop()


@pytest.mark.parametrize("commit", ["on", "remote_apply"])
def test_of_two_synchronous_standbys_one_may_be_away(
    start_bench: StartBench,
    cluster: EmbeddedPostgres,
    machines: list[Proxy],
    stack: ExitStack,
    tmp_path: Path,
    commit: str,
) -> None:
    bench = start_bench(
        f"one of two synchronous standbys is away, then the primary is killed; `synchronous_commit = {commit}`",
        "signing out goes on meanwhile; nothing that returned is lost, nobody is signed out",
        database=cluster,
        workers=(2,),
        where=on_both(machines),
    )
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    names = re.search(r"^synchronous_standby_names = '(ANY 1 .*)'", page, re.MULTILINE)
    assert names is not None
    db2, db3 = (stack.enter_context(Standby(cluster, tmp_path / name)) for name in ("db2", "db3"))
    for standby in (db2, db3):
        standby.make_synchronous(names[1], commit=commit)
    bench.wait_until_usual()
    db3.hold_back()
    bench.rounds(ROUNDS)
    tokens = [bench.new_victim() for _ in range(2)]
    for token in tokens:
        bench.revoke_at_last(token.subject)
    kill_database(cluster)
    since_s = time.monotonic()
    most = max(db2, db3, key=Standby.received)
    assert most is db2, "the page says: promote the one that has received most"
    machines[1].lead_to(most.server.url)
    machines[1].heal()
    most.promote()
    bench.database = most.server
    bench.figures.recovery_s = bench.wait_until_usual(since_s)
    for token in tokens:
        assert set(bench.load.ask_each(token)) == {REFUSED}
    assert set(bench.load.ask_each(bench.bystander)) == {ACCEPTED}
    bench.check()
    assert "BACK" not in bench.host.log()
    bench.host.server.stop()


def test_a_synchronous_standby_is_away(
    start_bench: StartBench, cluster: EmbeddedPostgres, stack: ExitStack, tmp_path: Path
) -> None:
    bench = start_bench(
        "the synchronous standby is away",
        "never a 200; 503 within 2 s; whoever has a token goes on; nothing piles up; back by itself",
        database=cluster,
        workers=(1,),
    )
    standby = stack.enter_context(Standby(cluster, tmp_path / "standby"))
    standby.make_synchronous()
    hung, cancelled = bench.new_victim(), bench.new_victim()
    standby.line.refuse()
    since_s, slowest_s, said = time.monotonic(), 0.0, []
    over = threading.Event()

    def keep_signing_in() -> None:
        while not over.is_set():
            assert bench.try_to_sign_in("user-7") is None

    def keep_reading() -> None:
        while not over.is_set():
            ask(bench.host, "GET", "/me/sessions", token=bench.bystander.raw)

    with ThreadPoolExecutor(AT_ONCE + 1) as threads, bench.psql() as psql:
        people = [threads.submit(act) for act in [*[keep_signing_in] * AT_ONCE, keep_reading]]
        try:
            while time.monotonic() - since_s < 2 * LEASE_S:
                asked_s = time.monotonic()
                answer = bench.revoke(hung.subject)
                slowest_s = max(slowest_s, time.monotonic() - asked_s)
                assert answer is not None
                assert answer.status == NOT_NOW, answer.text
                said += bench.load.ask_each(bench.bystander)
        finally:
            over.set()
        for person in people:
            person.result()
        waiting = psql.execute(f"SELECT count(*) {WAITING}").fetchone()
    assert slowest_s < 2.0 + SLACK_S, f"it took {slowest_s:.1f} s to say so"
    assert said.count(ACCEPTED) > 0.9 * len(said), "a worker that can ask does not need to say 503"
    assert waiting is not None
    # One for each of them, one for whoever revokes, and one for the housekeeper.
    assert waiting[0] <= AT_ONCE + 1 + 1, f"{waiting[0]} server processes wait for the standby"
    standby.line.heal()
    took_s = bench.wait_until_usual()
    assert took_s < 1.25 * LEASE_S + 0.8 + SLACK_S, f"it took {took_s:.1f} s to recover"
    assert set(bench.load.ask_each(hung)) == {REFUSED if is_written(bench, hung) else ACCEPTED}
    bench.rounds(2)
    # Somebody ends the wait by hand: it is written, and in force, and not on the standby.
    standby.line.refuse()
    with ThreadPoolExecutor(1) as threads, bench.psql() as psql:
        late = threads.submit(bench.revoke, cancelled.subject)
        while not late.done():
            psql.execute(f"SELECT pg_cancel_backend(pid) {WAITING}")
    answer = late.result()
    assert answer is not None
    assert answer.status == NOT_NOW, answer.text
    if is_written(bench, cancelled):
        bench.wait_until_refused(cancelled)
    bench.check()
    standby.line.heal()
    bench.host.server.stop()


def is_written(bench: Bench, token: Token) -> bool:
    """Whether a force logout that nobody has promised anything about was committed.

    The generation tells: a session's row is marked later where somebody held it (here the note of when it was last
    seen, which waited for the standby as well).
    """
    with bench.psql() as psql:
        # Each session of a new victim is his newest.
        query = (
            "SELECT s.user_gen < u.gen FROM login_sessions AS s JOIN users AS u ON u.id = s.user_id"
            " WHERE u.id::text = %s ORDER BY s.created_at DESC LIMIT 1"
        )
        return psql.execute(query, (bench.user_ids[token.subject],)).fetchone() == (True,)


def test_an_old_primary_that_lives_on_without_its_standby_gives_nobody_a_lease(
    start_bench: StartBench, start_host: StartHost, cluster: EmbeddedPostgres, stack: ExitStack, tmp_path: Path
) -> None:
    """Nobody has fenced it. Its workers' renewals wait for a standby that is none any more."""
    bench = start_bench(
        "a synchronous standby is promoted, and the old primary lives on; LASTCALL_STALE=refuse",
        "0 accepted after return, on either side",
        database=cluster,
        workers=(1,),
    )
    standby = stack.enter_context(Standby(cluster, tmp_path / "standby"))
    left: Host = start_host(cluster, bench.name, 1, LASTCALL_STALE="refuse")
    left.pids = [line.worker_pid() for line in left.server.lines()]
    bench.load.start(left.server.port, left.pids)
    standby.make_synchronous()
    token = bench.new_victim()
    standby.line.refuse()
    promoted_s = time.time()
    standby.promote()
    bench.host.proxy.lead_to(standby.server.url)
    bench.host.proxy.cut()
    bench.database = standby.server
    wait_until_reread(bench, promoted_s)
    assert set(bench.load.ask_each(token)) <= {ACCEPTED, NOT_NOW}
    since_s = time.monotonic()
    answer = bench.revoke_at_last(token.subject)
    assert time.monotonic() - since_s < LEASE_S + MARGIN_S + SLACK_S
    assert answer.json["workers"]["fenced"] == 1, answer.text
    for _ in range(20):
        assert set(bench.load.ask_each(token)) == {REFUSED, NOT_NOW}
    bench.load.stop()
    assert bench.history.accepted_after_return()[:3] == []
    bench.figures.outcome = "held"
    for host in (bench.host, left):
        host.server.stop()
