"""What can happen to a worker: it is busy, paused, slow, killed, replaced, or its clock is wrong."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest

from tests.faults.bench import DEADLINE_S, IN_FULL, LEASE_S, MARGIN_S, ROUNDS, SLACK_S, Bench, paused, timed
from tests.faults.conftest import StartBench
from tests.faults.history import ACCEPTED, LOST, NOT_NOW, REFUSED

PAUSE_S = 5.0 if IN_FULL else 3.0


def test_eight_busy_workers(start_bench: StartBench) -> None:
    bench = start_bench("none; 8 workers, all busy", "0 accepted after return", workers=(8,))
    for answer in bench.rounds():
        workers = answer.json["workers"]
        assert (workers["live"], workers["confirmed"]) == (8, 8)
    bench.check()


def test_everyone_is_signed_out_again_and_again(start_bench: StartBench) -> None:
    bench = start_bench("none; everyone is signed out", "0 accepted after return, sign-ins go on")
    for _ in range(ROUNDS):
        token = bench.new_victim()
        answer = bench.revoke(None)
        assert answer is not None
        assert answer.status == 200, answer.text
        assert set(bench.load.ask_each(token, 2)) == {REFUSED}
        bench.look_at(bench.bystander)
        assert set(bench.load.ask_each(bench.bystander)) == {ACCEPTED}
    bench.check()


def test_a_worker_is_paused(start_bench: StartBench) -> None:
    bench = start_bench(
        "a worker is paused (SIGSTOP)", "the revocation returns within one lease; the worker asks or refuses on waking"
    )
    cycle = 0
    while bench.history.returned < ROUNDS and cycle < max(2, ROUNDS // 5):
        pid = bench.pids[cycle % len(bench.pids)]
        cycle += 1
        token = bench.new_victim()
        with paused([pid]):
            since_s = time.monotonic()
            answer = bench.revoke_at_last(token.subject)
            took_s = time.monotonic() - since_s
            late = bench.load.chase(token, 2)
            workers = answer.json["workers"]
            assert (workers["live"], workers["confirmed"], workers["fenced"]) == (3, 3, 1)
            assert took_s < LEASE_S + MARGIN_S + SLACK_S, f"it took {took_s:.1f} s"
            while time.monotonic() - since_s < PAUSE_S:
                late += bench.round(without=[pid])[1]
        for future in late:
            assert set(future.result(DEADLINE_S)) <= {REFUSED, NOT_NOW}
        bench.wait_until_usual()
    bench.check()


def test_a_worker_is_paused_for_less_than_a_lease(start_bench: StartBench) -> None:
    bench = start_bench("a worker is paused for half a lease", "the revocation waits for it, and fences nobody")
    for pid in bench.pids[: max(2, ROUNDS // 10)]:
        token = bench.new_victim()
        with ThreadPoolExecutor(1) as threads:
            with paused([pid]):
                receipt = threads.submit(bench.revoke_at_last, token.subject)
                with suppress(TimeoutError):
                    receipt.result(LEASE_S / 2)
                assert not receipt.done(), "it has returned without the paused worker"
            workers = receipt.result(DEADLINE_S).json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
        assert set(bench.load.ask_each(token, 2)) == {REFUSED}
    bench.check()


def test_a_listener_is_slow(start_bench: StartBench) -> None:
    bench = start_bench("a listener is slow by 1 s", "0 accepted; the receipt waits for it")
    bench.host.hooks.slow_listener(bench.pids[0], 1.0)
    answers = bench.rounds(ROUNDS if IN_FULL else 4)
    for answer in answers:
        workers = answer.json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
    assert max(answer.json["workers"]["elapsed_ms"] for answer in answers) > 450, "nobody waited for the slow one"
    bench.check()


def test_the_revoking_worker_is_killed_before_the_receipt(start_bench: StartBench) -> None:
    bench = start_bench("killed (-9) between COMMIT and the receipt", "the revocation stands")
    for _ in range(ROUNDS if IN_FULL else 2):
        token = bench.new_victim()
        bench.host.hooks.die_before_the_receipt()
        assert bench.revoke(token.subject) is None, "a receipt came: nobody was killed"
        bench.wait_until_refused(token, 5.0)
        with bench.psql() as psql:
            found = psql.execute(
                "SELECT count(*) FROM revocations WHERE scope = 'user' AND subject = %s",
                (bench.user_ids[token.subject],),
            ).fetchone()
        assert found is not None
        assert found[0] >= 1
        # The row of the killed one is still there: it is waited for until its lease has surely run out, no longer.
        took_s = timed(bench.round)
        assert took_s < LEASE_S + MARGIN_S + 2 * SLACK_S, f"the next one took {took_s:.1f} s"
        bench.follow_the_workers()
    bench.check({ACCEPTED, REFUSED, NOT_NOW, LOST})


def test_workers_start_while_revocations_run(start_bench: StartBench) -> None:
    bench = start_bench(
        "workers start (TTIN, HUP)", "never an acceptance before it has read; no request is lost", workers=(2,)
    )
    server = bench.host.server
    for number, workers in (
        (signal.SIGTTIN, 3),
        (signal.SIGTTIN, 4),
        (signal.SIGHUP, 2),
    ):  # a reload goes back to what is configured
        before = set(bench.pids)
        server.signal(number)
        deadline_s = time.monotonic() + DEADLINE_S
        while len(bench.pids) != workers or (number == signal.SIGHUP and before & set(bench.pids)):
            assert time.monotonic() < deadline_s, "the workers do not come"
            bench.round()
            bench.follow_the_workers()
    bench.rounds(max(3, ROUNDS - bench.history.returned))
    assert {request.worker for request in bench.history.requests} >= set(bench.pids)
    bench.check()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["each-loads", "preload"])
def test_workers_are_replaced_under_load(start_bench: StartBench, options: tuple[str, ...]) -> None:
    bench = start_bench(
        f"--max-requests 300 {' '.join(options)}".strip(),
        "no request lost, no worker deaf",
        workers=(3,),
        options=("--max-requests", "300", "--max-requests-jitter", "100", *options),
    )
    first = set(bench.pids)
    deadline_s = time.monotonic() + DEADLINE_S
    while bench.history.returned < ROUNDS or len({r.worker for r in bench.history.requests} - first) < 2:
        assert time.monotonic() < deadline_s or IN_FULL, "no worker is replaced"
        bench.round()
    bench.check()


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_the_clock_of_a_worker_is_wrong(start_bench: StartBench, hours: int) -> None:
    must = "old out, new in, as ever"
    bench = start_bench(f"a worker's clock is 1 h {'ahead' if hours > 0 else 'behind'}", must)
    bench.rounds(2)
    for pid in bench.pids[:2]:
        bench.host.hooks.shift_clock(pid, hours * 3600)
    bench.rounds()
    for pid in bench.pids[:2]:
        bench.host.hooks.shift_clock(pid, 0)
    bench.rounds(2)
    bench.check()


def test_two_revocations_and_ten_sign_ins_at_once(start_bench: StartBench) -> None:
    bench = start_bench("two revocations and ten sign-ins of one user at once", "old out, new in; no deadlock")
    for number in range(max(3, ROUNDS // 2)):
        at_once(bench, f"user-{number % 4}")
    bench.check()


def at_once(bench: Bench, username: str) -> None:
    before = [bench.sign_in(username) for _ in range(2)]
    gate = Barrier(12)

    def sign_in(_: int) -> None:
        gate.wait()
        bench.sign_in(username)

    def revoke(_: int) -> None:
        gate.wait()
        answer = bench.revoke(username)
        assert answer is not None
        assert answer.status == 200, answer.text

    with ThreadPoolExecutor(12) as threads:
        acts = [threads.submit(sign_in, n) for n in range(10)] + [threads.submit(revoke, n) for n in range(2)]
        for act in acts:
            act.result(DEADLINE_S)
    tokens = [token for token in bench.history.tokens.values() if token.subject == username]
    for token in tokens[-10:]:
        # It may live or die, but all workers must be of one opinion.
        assert len(set(bench.load.ask_each(token))) == 1, f"{token.key}: the workers do not agree"
    for token in before:
        assert set(bench.load.ask_each(token)) == {REFUSED}
    assert bench.revoke_at_last(username).json["already_ended"] in (True, False)
    for token in tokens[-10:]:
        assert set(bench.load.ask_each(token)) == {REFUSED}
