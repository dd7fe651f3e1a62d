"""The proxy does to a connection what its method says, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tools.postgres import EmbeddedPostgres


@pytest.fixture
def proxy(postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    with Proxy(postgres.url) as proxy:
        yield proxy


def connected(proxy: Proxy, application: str = "test") -> psycopg.Connection:
    return psycopg.connect(proxy.url("postgres"), autocommit=True, application_name=application, connect_timeout=2)


def test_it_passes_what_comes(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert connection.execute("SELECT repeat('x', 1000000)").fetchone() == ("x" * 1_000_000,)
        assert [link.application for link in proxy.links()] == ["test"]


def test_it_cuts_connections_and_new_ones_pass(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with connected(proxy) as connection:
        connection.execute("SELECT 1")


def test_it_cuts_only_whom_it_is_told_to(proxy: Proxy) -> None:
    with connected(proxy, "one") as one, connected(proxy, "two") as two:
        assert proxy.cut("one") == 1
        two.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            one.execute("SELECT 1")


def test_it_refuses_new_connections(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        connected(proxy)
    proxy.heal()
    connected(proxy).close()


def test_it_swallows_without_closing_and_healing_helps_only_new_connections(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.swallow()
        connection.pgconn.send_query(b"SELECT 1")
        connection.pgconn.flush()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            connected(proxy)
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        proxy.heal()
        with connected(proxy) as other:
            other.execute("SELECT 1")
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        connection.pgconn.finish()


def test_it_swallows_only_whom_it_is_told_to(proxy: Proxy) -> None:
    proxy.swallow("deaf")
    with connected(proxy, "hearing") as connection:
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connected(proxy, "deaf")


def test_it_delays(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.delay_s = 0.1
        since_s = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - since_s >= 0.2


def test_it_trickles(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.bytes_per_s = 100_000
        since_s = time.monotonic()
        connection.execute("SELECT repeat('x', 20000)")
        assert time.monotonic() - since_s >= 0.2
