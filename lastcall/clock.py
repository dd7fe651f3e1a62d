"""The clock that leases are measured with: it never steps, and it also counts while the machine is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from functools import partial
from typing import TypeVar

T = TypeVar("T")

STOOD_STILL_S = 0.25
"""A thread that wakes so much too late (seconds): its process stood still, or the whole machine did."""
_LOOK_EVERY_S = 0.05

boottime_ns: Callable[[], int] = partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Nanoseconds since some fixed moment (CLOCK_BOOTTIME, clock_gettime(2); elsewhere CLOCK_MONOTONIC)."""


def result_in_time(future: Future[T], within_s: float) -> T:
    """`future.result(within_s)`, in seconds in which this process was running: whoever wakes after having stood still
    finds all clocks gone on, and the answer has had no time to come. Raises TimeoutError, or what the future does."""
    left_s = within_s
    while True:
        wait_s, began_ns = min(left_s, _LOOK_EVERY_S), boottime_ns()
        try:
            return future.result(wait_s)
        except TimeoutError:
            if future.done():
                return future.result()
            took_s = (boottime_ns() - began_ns) / 1e9
            left_s -= took_s if took_s < wait_s + STOOD_STILL_S else wait_s
            if left_s <= 0:
                raise
