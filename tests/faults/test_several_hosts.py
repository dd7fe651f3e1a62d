"""Several app hosts, each in a network of its own: one is cut off from the database, the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest

from app import prepare_database
from settings import from_environment
from tests.conftest import FAST_ENVIRONMENT, TEMPLATE
from tests.faults.bench import DEADLINE_S, LATE_S, LEASE_S, MARGIN_S, ROUNDS, SLACK_S, Bench, Host
from tests.faults.history import NOT_NOW, REFUSED
from tests.faults.hooks import FOLDER, Hooks
from tests.faults.networks import NAMESPACE, Forbidden, Gate, Networks
from tests.faults.report import REPORT
from tests.gunicorn import Gunicorn
from tools.postgres import EmbeddedPostgres

DATABASE = "several_hosts"


class NetworkedGunicorn(Gunicorn):
    """Its database is where only its workers can reach it."""

    def prepare(self) -> None:
        pass


@pytest.fixture
def networks() -> Iterator[Networks]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(Networks("a", "b"))
        except Forbidden as reason:
            pytest.skip(f"several hosts need network namespaces: {reason}")


@pytest.fixture
def bench(postgres: EmbeddedPostgres, networks: Networks, signing_key: str, tmp_path: Path) -> Iterator[Bench]:
    """Two hosts of two workers each."""
    url = postgres.create_database(DATABASE, TEMPLATE)
    common = {
        **FAST_ENVIRONMENT,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path / "instance"),
        "LASTCALL_ACCESS_TTL": "86400",  # longer than any run
    }
    prepare_database(from_environment({**common, "DATABASE_URL": url}))
    figures = REPORT.begin(
        "the cable of one of two hosts is pulled, each in a network namespace of its own",
        "it trusts its memory for a lease at most, then 503; the others go on; back within 2 s",
    )
    with ExitStack() as stack:
        stack.callback(postgres.drop_database, DATABASE)
        hosts = []
        for name in ("a", "b"):
            gate = stack.enter_context(Gate(postgres.url, networks, name))
            hooks = Hooks(tmp_path / f"hooks-{name}")
            where = {
                "DATABASE_URL": gate.url(DATABASE),
                NAMESPACE: networks.namespace(name),
                FOLDER: str(hooks.folder),
            }
            options = ("--config", "tests/faults/networked_conf.py")
            server = NetworkedGunicorn(2, options, {**common, **where}, tmp_path / f"gunicorn-{name}.log")
            hosts.append(Host(stack.enter_context(server), gate, hooks))
        bench = Bench(postgres, DATABASE, hosts, figures)
        stack.callback(bench.finish)
        yield bench


def statuses(futures: Iterable[Future[list[int]]]) -> set[int]:
    return {status for future in futures for status in future.result(DEADLINE_S)}


def test_a_host_that_is_cut_off_fences_itself_and_the_others_go_on(bench: Bench, networks: Networks) -> None:
    cut_off, healthy = bench.hosts
    inhabited = {os.readlink(f"/proc/{pid}/ns/net") for pid in [*bench.pids, os.getpid()]}
    assert len(inhabited) == 3, "a host is not where it should be"
    for host in bench.hosts:
        workers = bench.round(host)[0].json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
    for _ in range(max(1, ROUNDS // 20)):
        token = bench.new_victim(healthy)
        networks.unplug("a")
        try:
            since_s = time.monotonic()
            workers = bench.revoke_at_last(token.subject, healthy).json["workers"]
            took_s = time.monotonic() - since_s
            assert (workers["live"], workers["confirmed"], workers["fenced"]) == (2, 2, 2)
            assert took_s < LEASE_S + MARGIN_S + SLACK_S, f"it took {took_s:.1f} s"
            late = bench.load.chase(token, 3)
            while time.monotonic() - since_s < 2 * LEASE_S:
                late += bench.round(healthy, without=cut_off.pids)[1]
            assert statuses(bench.load.chase(bench.bystander, 1, healthy.pids)) == {NOT_NOW}
            assert statuses(late) <= {NOT_NOW, REFUSED}
        finally:
            networks.plug_in("a")
        took_s = bench.wait_until_usual()
        assert took_s < 2.0 + LATE_S, f"it took {took_s:.1f} s to recover"
        assert set(bench.load.ask_each(token)) == {REFUSED}
        for host in bench.hosts:
            workers = bench.round(host)[0].json["workers"]
            assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
    for host in bench.hosts:
        assert set(host.pids) == {line.worker_pid() for line in host.server.lines()}, "a worker was started anew"
    bench.check()
