"""What can happen between the workers and PostgreSQL: connections are cut, fall silent, are slow."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.conftest import PASSWORD
from tests.faults.bench import (
    DEADLINE_S,
    IN_FULL,
    LATE_S,
    LEASE_S,
    MARGIN_S,
    ROUNDS,
    SLACK_S,
    Bench,
    ask,
    children,
    frozen,
    paused,
    slowness,
)
from tests.faults.conftest import StartBench
from tests.faults.history import ACCEPTED, NOT_NOW, REFUSED, Token
from tests.gunicorn import Answer
from tools.postgres import EmbeddedPostgres

LONGEST_S = 1.0
"""No request may take longer, whatever the database does."""


def terminate(bench: Bench) -> None:
    with bench.psql() as psql:
        psql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'lastcall%'"
        )


def reset(bench: Bench) -> None:
    assert bench.host.proxy.cut() >= 4


@pytest.mark.parametrize("cut", [terminate, reset])
def test_connections_are_cut(start_bench: StartBench, cut: Callable[[Bench], None]) -> None:
    how = {"terminate": "pg_terminate_backend", "reset": "the proxy resets"}[cut.__name__]
    bench = start_bench(f"connections are cut ({how})", "back within 1 s; nothing is missed")
    cycle = 0
    while cycle < max(3, ROUNDS // 2):
        cycle += 1
        token = bench.new_victim()
        cut(bench)
        bench.revoke_by_psql(token.subject)
        took_s = bench.wait_until_refused(token)
        assert took_s < 1.0 + LATE_S, f"a revocation was missed for {took_s:.1f} s"
        took_s = bench.wait_until_usual()
        assert took_s < 1.0 + LATE_S, f"it took {took_s:.1f} s"
        bench.rounds(2)
    bench.check()


def test_the_database_refuses_connections_for_a_while(start_bench: StartBench) -> None:
    bench = start_bench("connections are reset, and new ones too, for 4 s", "503, and back within 1 s")
    for _ in range(max(1, ROUNDS // 20)):
        token = bench.new_victim()
        bench.host.proxy.refuse()
        bench.revoke_by_psql(token.subject)
        since_s = time.monotonic()
        while time.monotonic() - since_s < LEASE_S + MARGIN_S:
            assert bench.try_to_sign_in("user-0") is None
        while time.monotonic() - since_s < 2 * LEASE_S:
            assert set(bench.load.ask_each(token)) == {NOT_NOW}, "the lease is out, and nobody can be asked"
            assert set(bench.load.ask_each(bench.bystander)) == {NOT_NOW}
        bench.host.proxy.heal()
        since_s = time.monotonic()
        while set(bench.load.ask_each(bench.bystander)) != {ACCEPTED}:
            assert time.monotonic() - since_s < DEADLINE_S
        took_s = bench.wait_until_usual(since_s)
        assert took_s < 1.0 + LATE_S, f"it took {took_s:.1f} s"
        assert set(bench.load.ask_each(token)) == {REFUSED}
        bench.rounds(20 if IN_FULL else 3)
    bench.check()
    assert bench.host.log().count("has lost the database") == 4 * max(1, ROUNDS // 20), "one line for each worker"


def test_one_host_is_cut_off_by_a_silent_network(start_bench: StartBench) -> None:
    bench = start_bench(
        "connections hang half-open on one of two hosts",
        "it trusts its memory for a lease at most, then 503; no request over 1 s; recovers within 2 s",
        workers=(2, 2),
    )
    cut_off, healthy = bench.hosts
    for _ in range(max(1, ROUNDS // 20)):
        token = bench.new_victim(healthy)
        cut_off.proxy.swallow()
        since_s = time.monotonic()
        answer = bench.revoke_at_last(token.subject, healthy)
        took_s = time.monotonic() - since_s
        late = bench.load.chase(token, 3)
        workers = answer.json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (2, 2, 2)
        assert took_s < LEASE_S + MARGIN_S + SLACK_S, f"it took {took_s:.1f} s"
        while time.monotonic() - since_s < 3 * LEASE_S:
            late += bench.round(healthy, without=cut_off.pids)[1]
        assert set(statuses(bench.load.chase(bench.bystander, 1, healthy.pids))) == {NOT_NOW}
        cut_off.proxy.heal()
        took_s = bench.wait_until_usual()
        assert set(statuses(late)) <= {REFUSED, NOT_NOW}
        assert took_s < 2.0 + LATE_S, f"it took {took_s:.1f} s to recover"
        assert set(bench.load.ask_each(token)) == {REFUSED}
        bench.rounds(3, healthy)
    bench.check()
    longest_s = bench.history.longest_request_s()
    assert longest_s < LONGEST_S + LATE_S, f"a request hung for {longest_s:.1f} s"


def test_only_the_listeners_connection_hangs(start_bench: StartBench) -> None:
    bench = start_bench(
        "only the listeners' connections hang half-open", "workers whose lease ran out ask; answers stay right"
    )
    for _ in range(max(1, ROUNDS // 20)):
        token = bench.new_victim()
        bench.host.proxy.swallow("lastcall-listener")
        since_s = time.monotonic()
        answer = bench.revoke_at_last(token.subject)
        assert answer.json["workers"]["fenced"] == 4
        assert time.monotonic() - since_s < LEASE_S + MARGIN_S + SLACK_S
        assert set(bench.load.ask_each(token, 2)) <= {REFUSED, NOT_NOW}
        asked_ns = time.monotonic_ns()
        while time.monotonic() - since_s < 2.5 * LEASE_S:
            bench.round()
        said = [r.status for r in bench.history.requests if r.token == "bystander/1" and r.started_ns > asked_ns]
        assert said.count(ACCEPTED) > 0.9 * len(said), "a worker that can ask does not need to say 503"
        bench.host.proxy.heal()
        took_s = bench.wait_until_usual()
        assert took_s < 2.0 + LATE_S, f"it took {took_s:.1f} s to recover"
    bench.check()
    longest_s = bench.history.longest_request_s()
    assert longest_s < LONGEST_S + LATE_S, f"a request hung for {longest_s:.1f} s"


@pytest.mark.parametrize("later_ones", [True, False], ids=["new ones too", "those there are"])
def test_only_the_applications_connections_hang(start_bench: StartBench, later_ones: bool) -> None:
    """The listeners hear everything: nothing but the server knows that it does not work for these connections."""
    which = "those there are, and new ones" if later_ones else "those there are"
    bench = start_bench(
        f"only the pools' connections hang half-open: {which}", "no request hangs longer than 1 s", workers=(2,)
    )
    act = requests_of_every_kind(bench, bench.bystander, bench.bystander, bench.bystander)["own sessions"]

    def ask_many(at_once: int = 12) -> list[tuple[int, float]]:
        with ThreadPoolExecutor(at_once) as threads:
            asked = [threads.submit(timed_status, act) for _ in range(3 * at_once)]
            return [future.result(60) for future in asked]

    for _ in range(max(1, ROUNDS // 125)):  # what is swallowed holds PostgreSQL's connections for a minute
        ask_many()
        bench.host.proxy.swallow("lastcall")
        if not later_ones:
            bench.host.proxy.heal()
        said = ask_many(40)  # more than the pools of both workers
        slowest_s = max(took_s for _, took_s in said)
        assert slowest_s < LONGEST_S + LATE_S, f"a request hung for {slowest_s:.1f} s"
        assert {status for status, _ in said} <= {ACCEPTED, NOT_NOW}
        bench.host.proxy.heal()
        since_s = time.monotonic()
        while {status for status, _ in ask_many()} != {ACCEPTED}:
            assert time.monotonic() - since_s < 2.0 + LATE_S
        bench.rounds(125 if IN_FULL else 3)
    bench.check()


def test_workers_that_nobody_asks_are_not_told_that_the_database_is_away(start_bench: StartBench) -> None:
    """Their listeners hear nothing and they have asked nothing for a while: that is no reason to refuse anybody."""
    bench = start_bench(
        "only the listeners' connections hang half-open; nobody asks, then many at once", "nobody is refused"
    )
    path, at_once = "/me/sessions", 16 if IN_FULL else int(16 / slowness())
    bench.host.proxy.swallow("lastcall-listener")
    bench.load.stop()
    time.sleep(2 * LEASE_S)  # for so long nobody asks
    with ThreadPoolExecutor(at_once) as threads:
        asked = [threads.submit(ask, bench.host, "GET", path, token=bench.bystander.raw) for _ in range(at_once)]
        said = [future.result(DEADLINE_S) for future in asked]
    refused = [answer.text for answer in said if answer.status != ACCEPTED]
    # Each of them needs a connection and an answer within a fraction of a second, of a machine that may be laden.
    assert len(refused) <= (0 if IN_FULL else at_once // 4), refused
    bench.figures.outcome = "held"


def test_connections_that_died_while_nobody_asked_hold_nobody_up(start_bench: StartBench) -> None:
    """The pool holds them, and the network that swallowed them is back: whoever is given one would wait for ever."""
    bench = start_bench(
        "every connection goes half-open while nobody asks; the network is back, then many ask",
        "no request hangs longer than 1 s",
        workers=(2,),
    )
    bench.load.stop()
    at_once = 12

    def take_many() -> list[tuple[int, float]]:
        act = requests_of_every_kind(bench, bench.bystander, bench.bystander, bench.bystander)["list"]
        with ThreadPoolExecutor(at_once) as threads:
            asked = [threads.submit(timed_status, act) for _ in range(3 * at_once)]
            return [future.result(60) for future in asked]

    take_many()
    for pause_s in (LEASE_S / 4, 2 * LEASE_S) if IN_FULL else (LEASE_S / 4,):
        bench.host.proxy.swallow()
        time.sleep(pause_s)  # for so long nobody asks
        bench.host.proxy.heal()
        time.sleep(2 * LEASE_S)
        said = take_many()
        slowest_s = max(took_s for _, took_s in said)
        assert slowest_s < LONGEST_S + LATE_S, f"a request hung for {slowest_s:.1f} s"
        assert {status for status, _ in take_many()} == {ACCEPTED}
    bench.figures.outcome = "held"


def test_the_network_is_slow(start_bench: StartBench) -> None:
    bench = start_bench("every packet is held up for 20 ms", "0 accepted; the receipt takes as long as it takes")
    bench.host.proxy.delay_s = 0.02
    for answer in bench.rounds(ROUNDS if IN_FULL else 3):
        assert answer.json["workers"]["confirmed"] == 4
    bench.host.proxy.delay_s = 0.0
    bench.check()


# ------------------------------------------------------------------------- no request hangs, whatever it asks for


@contextmanager
def silent(bench: Bench) -> Iterator[None]:
    bench.host.proxy.swallow()
    try:
        yield
    finally:
        bench.host.proxy.heal()


class Status(int):
    """One that a failed test shows with what came with it."""

    text = ""

    def __repr__(self) -> str:
        return f"{int(self)} {self.text}"


def status_of(answer: Answer) -> Status:
    status = Status(answer.status)
    status.text = "" if answer.status == ACCEPTED else answer.text
    return status


def requests_of_every_kind(bench: Bench, live: Token, dead: Token, leaving: Token) -> dict[str, Callable[[], int]]:
    """What people may ask for while the database is away, by name; each gives the status, 0 for no answer."""
    host, admin = bench.host, bench.admin_token

    def send(method: str, path: str, **more: object) -> Callable[[], int]:
        def act() -> int:
            try:
                return status_of(ask(host, method, path, **more))
            except (OSError, http.client.HTTPException):
                return 0

        return act

    return {
        "a live token": send("GET", "/auth/me", token=live.raw),
        "a dead token": send("GET", "/auth/me", token=dead.raw),
        "sign in": send("POST", "/auth/login", body={"username": "user-1", "password": PASSWORD}),
        "refresh": send("POST", "/auth/refresh", body={"refresh_token": "A" * 64}),
        "sign out": send("POST", "/auth/logout", token=leaving.raw),
        "own sessions": send("GET", "/me/sessions", token=live.raw),
        "list": send("GET", "/admin/sessions", token=admin),
        "history": send("GET", "/admin/revocations", token=admin),
        "workers": send("GET", "/admin/workers", token=admin),
        "force logout": send("DELETE", f"/admin/sessions/{bench.user_ids['user-2']}", token=admin),
    }


@pytest.mark.parametrize("how", ["half-open", "frozen"])
def test_no_request_of_any_kind_hangs_while_the_database_is_silent(
    start_bench: StartBench, cluster: EmbeddedPostgres, how: str
) -> None:
    bench = start_bench(
        f"every connection is {how}, and every kind of request comes",
        "no request hangs longer than 1 s; 503",
        database=cluster,
        workers=(2,),
    )
    dead = bench.new_victim()
    bench.revoke_at_last(dead.subject)
    live, leaving = bench.bystander, bench.new_victim()
    # What was asked for while nothing answered, may be done later.
    bench.expect_gone(leaving.subject)
    bench.expect_gone("user-2")
    hung: list[str] = []
    odd: list[str] = []
    with ThreadPoolExecutor(16) as threads, frozen(cluster) if how == "frozen" else silent(bench):
        begun_s = time.monotonic()
        for phase in ("within the lease", "after the lease"):
            if phase == "after the lease":
                while time.monotonic() - begun_s < LEASE_S + 0.2:
                    bench.load.ask_each(live)
            asked: dict[str, Future[tuple[int, float]]] = {
                name: threads.submit(timed_status, act)
                for name, act in requests_of_every_kind(bench, live, dead, leaving).items()
            }
            waited_until_s = time.monotonic() + 5
            for name, future in asked.items():
                try:
                    status, took_s = future.result(max(0.0, waited_until_s - time.monotonic()))
                except TimeoutError:
                    hung.append(f"{name}, {phase}: over 5 s")
                    continue
                if took_s > LONGEST_S + LATE_S:
                    hung.append(f"{name}, {phase}: {took_s:.1f} s, {status}")
                if status not in (ACCEPTED, REFUSED, NOT_NOW) or (phase == "after the lease" and status != NOT_NOW):
                    odd.append(f"{name}, {phase}: {status}")
        # What still hangs must be let go before the threads can be joined.
        if how == "frozen":
            for pid in [cluster.pid, *children(cluster.pid)]:
                os.kill(pid, signal.SIGCONT)
        else:
            bench.host.proxy.cut()
    took_s = bench.wait_until_usual()
    assert not hung, "hung: " + "; ".join(hung)
    assert not odd, "odd answers: " + "; ".join(odd)
    assert took_s < 2.0 + LATE_S, f"it took {took_s:.1f} s to recover"
    bench.check()


def test_what_comes_bit_by_bit_hangs_no_longer_than_what_comes_at_once(
    start_bench: StartBench, cluster: EmbeddedPostgres
) -> None:
    """Each request takes another connection that was answered before: taking it is no answer."""
    bench = start_bench(
        "the database is frozen, and one request comes after the other",
        "no request hangs longer than 1 s; 503",
        database=cluster,
        workers=(1,),
    )
    acts = requests_of_every_kind(bench, bench.bystander, bench.new_victim(), bench.new_victim())
    for _ in range(max(1, ROUNDS // 20)):
        with ThreadPoolExecutor(16) as threads:
            since_s = time.monotonic()
            while set(threads.map(lambda _: acts["list"](), range(12))) != {ACCEPTED}:  # each has its connection
                assert time.monotonic() - since_s < DEADLINE_S
            asked: list[Future[tuple[int, float]]] = []
            with frozen(cluster):
                for number in range(10):
                    asked.append(threads.submit(timed_status, acts["sign in" if number % 2 else "list"]))
                    time.sleep(0.3)
            found = [future.result(DEADLINE_S) for future in asked]
        bench.wait_until_usual()
        slowest_s = max(took_s for _, took_s in found)
        assert slowest_s < LONGEST_S + LATE_S, f"a request hung for {slowest_s:.1f} s: {found}"
    bench.check()


def test_a_machine_that_stood_still_turns_nobody_away(start_bench: StartBench, cluster: EmbeddedPostgres) -> None:
    """A virtual machine that is moved or held up: all clocks go on, and nobody has said nothing."""
    bench = start_bench(
        "the machine with everything on it stands still for 0.6 s, again and again",
        "whoever waited is answered as ever",
        database=cluster,
        workers=(2,),
    )
    acts = requests_of_every_kind(bench, bench.bystander, bench.bystander, bench.bystander)
    bench.expect_gone("user-2")
    over = threading.Event()

    def keep_asking(name: str) -> list[int]:
        found = []
        while not over.is_set():
            found.append(acts[name]())
        return found

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(keep_asking, name) for name in ("list", "force logout", "force logout", "workers")]
        try:
            for _ in range(max(5, ROUNDS // 20)):
                with paused(bench.pids), frozen(cluster):
                    time.sleep(0.6)
                time.sleep(0.3)
        finally:
            over.set()
    assert set(statuses(asked)) == {ACCEPTED}
    bench.check()


def timed_status(act: Callable[[], int]) -> tuple[int, float]:
    since_s = time.monotonic()
    return act(), time.monotonic() - since_s


def statuses(futures: list[Future[list[int]]]) -> list[int]:
    return [status for future in futures for status in future.result(DEADLINE_S)]
