"""Asking the database fails closed: no answer, in whatever way, is never "not revoked"."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from lastcall.ask import AT_ONCE, PATIENCE_S, Asker
from lastcall.claims import Claims
from lastcall.clock import boottime_ns
from lastcall.errors import CutoffsStale

CLAIMS = Claims("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", 1, 1, 0, 1)


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/nothing"


def test_a_database_that_refuses_is_no_answer() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but nobody listens
        asker = Asker(f"postgresql://nobody@127.0.0.1:{probe.getsockname()[1]}/nothing")
        with pytest.raises(CutoffsStale):
            asker.refuses(CLAIMS)
        asker.close()


def test_a_database_that_says_nothing_is_waited_for_a_quarter_of_a_second(silent: str) -> None:
    asker = Asker(silent)
    began_ns = boottime_ns()
    with pytest.raises(CutoffsStale):
        asker.refuses(CLAIMS)
    assert boottime_ns() - began_ns >= PATIENCE_S * 1e9
    asker.close()


def test_a_fifth_question_at_once_waits_for_a_turn_and_is_not_put_where_none_comes(silent: str) -> None:
    asker = Asker(silent)
    refused = threading.Semaphore(0)

    def ask() -> None:
        with pytest.raises(CutoffsStale):
            asker.refuses(CLAIMS)
        refused.release()

    threads = [threading.Thread(target=ask) for _ in range(AT_ONCE + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asker._threads is not None and len(asker._threads._threads) <= AT_ONCE
    asker.close()


def test_closing_without_a_question_is_tolerated() -> None:
    Asker("postgresql://nowhere").close()


def test_two_threads_that_connect_at_once_are_both_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or closing leaves the connection of one of them open."""
    both_are_at_it = threading.Barrier(2)

    class OpenOne:
        @property
        def closed(self) -> bool:
            with suppress(threading.BrokenBarrierError):
                both_are_at_it.wait(0.1)
            return False

    asker = Asker("postgresql://nowhere")
    asker._connections = [OpenOne()]  # type: ignore[list-item]
    monkeypatch.setattr("lastcall.ask.connect_to_primary", lambda *_, **__: SimpleNamespace(closed=False))
    threads = [threading.Thread(target=asker._connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asker._connections) == 3
