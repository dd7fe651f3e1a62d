"""While the listener looks at what a NOTIFY is about, checks wait for what it finds; but not for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from lastcall import guard as guard_module
from lastcall.cutoffs import Cutoff
from lastcall.errors import Revoked
from lastcall.listener import CutoffListener
from tests.unit.by_hand import good_payload, guard_for, token
from tests.unit.played_database import LOG, PlayedDatabase

FAR_US = 10**16


class Look(threading.Event):
    """A look of the listener that tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = threading.Event()
        self.waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        self.is_waited_for.set()
        return super().wait(timeout)


def test_a_check_that_comes_during_a_look_sees_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LOOK_S", 60)
    guard, _ = guard_for()
    cutoffs = guard.cutoffs
    raw = token()
    guard.check(raw)
    look = cutoffs.look = Look()
    with ThreadPoolExecutor(1) as others:
        answer = others.submit(guard.check, raw)
        assert look.is_waited_for.wait(10)
        cutoffs.advance(Cutoff("session", str(good_payload()["sid"]), 0, 1, FAR_US))
        cutoffs.look = None
        look.set()
        with pytest.raises(Revoked):
            answer.result(10)


def test_a_look_that_does_not_end_holds_up_one_check_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LOOK_S", 0.001)
    guard, _ = guard_for()
    cutoffs = guard.cutoffs
    look = cutoffs.look = Look()
    for _ in range(3):
        assert guard.check(token()).sub
    assert look.waits == 1


def test_a_check_that_gave_up_leaves_the_next_look_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LOOK_S", 0.001)
    guard, _ = guard_for()
    cutoffs = guard.cutoffs
    second = Look()

    class First(Look):
        def wait(self, timeout: float | None = None) -> bool:
            cutoffs.look = second
            return super().wait(timeout)

    cutoffs.look = First()
    guard.check(token())
    assert cutoffs.look is second


def test_checks_wait_while_the_listener_reads_and_no_longer(listener: CutoffListener, log: LOG) -> None:
    looks: dict[str, threading.Event | None] = {}

    class Watched(PlayedDatabase):
        def execute(self, query: str, parameters: Any = ()) -> Any:
            looks["position" if "UPDATE workers" in query else "read"] = listener.cutoffs.look
            return super().execute(query, parameters)

    listener._look(Watched(log))  # type: ignore[arg-type]
    assert looks["position"] is None
    assert looks["read"] is not None and looks["read"].is_set()


def test_a_look_that_fails_lets_the_checks_go_on(listener: CutoffListener, log: LOG) -> None:
    looks = []

    class Cut(PlayedDatabase):
        def execute(self, query: str, parameters: Any = ()) -> Any:
            looks.append(listener.cutoffs.look)
            raise psycopg.OperationalError("the connection is gone")

    with pytest.raises(psycopg.OperationalError):
        listener._look(Cut(log))  # type: ignore[arg-type]
    assert listener.cutoffs.look is None and looks[0] is not None and looks[0].is_set()
