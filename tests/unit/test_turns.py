"""The listener shortens the switch interval while busy threads keep it from its turns, and puts it back."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lastcall import turns as turns_module
from lastcall.turns import FOR_S, OFTEN, SHORT_S, SOON_S, USUAL_WAIT_S, Turns, quick_turns

USUAL_S = 0.005
BUSY_S = 0.0042
"""How late a wait ends beside a thread that computes, as seen."""


class PlayedTime:
    """In place of the module `time`, and of what waits: each wait ends so much late."""

    def __init__(self) -> None:
        self.now_s, self.late_s = 1000.0, 0.0
        self.told: list[float] = []

    def perf_counter(self) -> float:
        return self.now_s

    monotonic = perf_counter

    def wait(self, most_s: float) -> bool:
        self.told.append(most_s)
        self.now_s += most_s + self.late_s
        return False


@pytest.fixture(autouse=True)
def usual_interval() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(USUAL_S)
    yield
    sys.setswitchinterval(before_s)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedTime:
    found = PlayedTime()
    monkeypatch.setattr(turns_module, "time", found)
    return found


def waits(turns: Turns, played: PlayedTime, late_s: float, times: int, most_s: float = 1.0) -> None:
    played.late_s = late_s
    for _ in range(times):
        assert turns.wait(most_s, played.wait) is False


def interval_s() -> object:
    return pytest.approx(sys.getswitchinterval())


def test_many_late_turns_shorten_the_interval_and_fewer_do_not(played: PlayedTime) -> None:
    turns = Turns()
    waits(turns, played, BUSY_S, OFTEN - 1)
    assert interval_s() == USUAL_S
    waits(turns, played, BUSY_S, 1)
    assert interval_s() == SHORT_S
    turns.end()
    assert interval_s() == USUAL_S


def test_one_late_turn_makes_the_next_waits_short_so_that_it_is_known_soon(played: PlayedTime) -> None:
    turns = Turns()
    waits(turns, played, 0.0, 1)
    waits(turns, played, BUSY_S, 2)
    waits(turns, played, 0.0, 2)
    waits(turns, played, 0.0, 1, most_s=0.05)
    assert played.told == [USUAL_WAIT_S, USUAL_WAIT_S, SOON_S, SOON_S, SOON_S, 0.05]


def test_among_requests_that_let_go_of_the_interpreter_soon_nothing_is_shortened(played: PlayedTime) -> None:
    turns = Turns()
    for _ in range(200):
        waits(turns, played, 0.0041, 2)  # four of ten, as seen with more workers than processors
        waits(turns, played, 0.0009, 3)
    assert interval_s() == USUAL_S


def test_it_begins_short_and_is_tried_now_and_then_and_put_back_only_when_nobody_is_busy(played: PlayedTime) -> None:
    turns = Turns()
    turns.begin()
    assert interval_s() == SHORT_S
    for somebody_is_busy in (True, True, False):
        waits(turns, played, 0.0002, int(FOR_S / USUAL_WAIT_S) - 5)
        assert interval_s() == SHORT_S
        played.now_s += 1
        waits(turns, played, 0.0002, 1)
        assert interval_s() == USUAL_S, "it is tried"
        waits(turns, played, BUSY_S if somebody_is_busy else 0.0002, 1)
        assert interval_s() == (SHORT_S if somebody_is_busy else USUAL_S)
    waits(turns, played, 0.0002, OFTEN)
    waits(turns, played, BUSY_S, OFTEN - 1)
    assert interval_s() == USUAL_S, "what was before is forgotten"


def test_an_interval_that_somebody_has_made_short_stays_as_it_is(played: PlayedTime) -> None:
    sys.setswitchinterval(SHORT_S)
    turns = Turns()
    turns.begin()
    waits(turns, played, BUSY_S, 3 * OFTEN)
    turns.end()
    assert interval_s() == SHORT_S
    assert set(played.told) == {USUAL_WAIT_S}


def test_what_has_come_ends_the_wait() -> None:
    assert Turns().wait(1.0, lambda most_s: True) is True


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="nobody waits for the interpreter")
def test_beside_a_thread_that_computes_the_interval_is_shortened() -> None:
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    def wait(most_s: float) -> bool:
        time.sleep(most_s)
        return False

    turns, busy = Turns(), threading.Thread(target=compute)
    busy.start()
    try:
        _repeat(lambda: turns.wait(1.0, wait), until=lambda: sys.getswitchinterval() < USUAL_S / 2)
    finally:
        over.set()
        busy.join()
        turns.end()
    assert interval_s() == USUAL_S


def _repeat(act: Callable[[], object], *, until: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline_s
        act()


def test_two_listeners_that_look_at_once_leave_the_usual_turns_behind() -> None:
    one, other = quick_turns(), quick_turns()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert interval_s() == USUAL_S
