"""The clock that leases are measured with: it never steps, and it also counts while the machine is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

boottime_ns: Callable[[], int] = partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Nanoseconds since some fixed moment (CLOCK_BOOTTIME, clock_gettime(2); elsewhere CLOCK_MONOTONIC)."""
