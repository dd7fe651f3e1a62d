"""The clock that leases are measured with: it never steps, and it also counts while the machine is suspended."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime_ns() -> int:
    """Nanoseconds since some fixed moment (CLOCK_BOOTTIME, clock_gettime(2); elsewhere CLOCK_MONOTONIC)."""
    return time.clock_gettime_ns(_CLOCK)
