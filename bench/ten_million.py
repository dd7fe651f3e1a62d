"""The same with ten million live sessions: 12 million rows and 3.3 million users, 13 GB, on the same 512 MB of
shared_buffers; 5 log-outs of everyone, for each needs a copy. To invent them takes an hour, so `make bench` leaves it
out: `python -m bench ten_million`."""

from __future__ import annotations

from collections.abc import Callable

from bench import sessions
from bench.goals import Goal
from bench.sessions import Found, table

__all__ = ["goals", "measure", "table"]

SIZES = (1_000, 1_000_000, 10_000_000)


def measure(advance: Callable[[str], None]) -> Found:
    return sessions.measure(advance, SIZES, log_outs=5)


def goals(found: Found) -> list[Goal]:
    """All but the time of a page, which is a million's."""
    return sessions.goals(found)[1:]
