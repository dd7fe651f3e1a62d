"""The server with a thousand live sessions, and with a million: each filter and each order of the list, its first page
and page 1,000 (or one near the end, reached by its cursor), the console, log-outs, sign-ins, refreshes, and a purge of
some thousand sessions a second meanwhile. Over HTTP, in four gunicorn workers for each size on a real, durable
PostgreSQL with 512 MB of shared_buffers; the sizes take turns. The time is what the answer took in the server: median /
95th of a hundred, in milliseconds, of 40 pages, 20 force logouts, 20 log-outs of everyone; a rate is that of 4 s with
8 who ask at once. A receipt is in force on all workers. Most of a sign-in is argon2.
LASTCALL_BENCH_SESSIONS asks for other sizes."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from bench.goals import Goal
from bench.plot import Bar, bars
from bench.site import Site
from tools.postgres import EmbeddedPostgres

SIZES = [int(size) for size in os.environ.get("LASTCALL_BENCH_SESSIONS", "1000,100000,1000000").split(",")]
TIMES = int(os.environ.get("BENCH_TIMES", "40"))
RATE = "a second"
Found = dict[str, dict[str, list[float]]]


def measure(advance: Callable[[str], None], sizes: Sequence[int] = SIZES, log_outs: int = 20) -> Found:
    """By the number of live sessions and what was asked: milliseconds, or one rate."""
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedPostgres(Path(name), shared_buffers="512MB") as postgres,
        ExitStack() as stack,
    ):
        sites = []
        for size in sizes:
            advance(f"{size:,} sessions are invented")
            sites.append(stack.enter_context(Site(postgres, Path(name), size, TIMES)))
        for what in chain.from_iterable(zip(*(site.log_outs(log_outs) for site in sites), strict=True)):
            advance(what)
        for site in sites:
            site.start()
        for what in chain.from_iterable(zip(*(site.slices() for site in sites), strict=True)):
            advance(what)
        return {str(size): site.took for size, site in zip(sizes, sites, strict=True)}


def summary(values: list[float]) -> list[float]:
    """The median, and the 95th of a hundred; or the rate alone."""
    if len(values) < 2:
        return values
    return [statistics.median(values), statistics.quantiles(values, n=20, method="inclusive")[18]]


def _growth(found: Found, what: str) -> float:
    """Of the median, from the least size to the most."""
    least, most = min(found, key=int), max(found, key=int)
    return statistics.median(found[most][what]) / statistics.median(found[least][what])


def table(found: Found) -> list[str]:
    least, most = min(found, key=int), max(found, key=int)
    lines = ["| what | " + " | ".join(f"{int(size):,}" for size in found) + " | growth of the median |"]
    lines.append("| --- |" + " --- |" * (len(found) + 1))
    for what in sorted(found[most], key=lambda what: RATE in what):
        cells = (" / ".join(f"{value:.1f}" for value in summary(found[size].get(what, []))) for size in found)
        growth = f"{_growth(found, what):.2f}" if what in found[least] else ""
        lines.append(f"| {what} | {' | '.join(cells)} | {growth} |")
    return lines


def goals(found: Found) -> list[Goal]:
    least, most = min(found, key=int), max(found, key=int)
    acts = {what: found[most][what] for what in found[most] if what.startswith(("log-out of", "force logout of"))}
    pages = {what: of for what, of in found[most].items() if RATE not in what and what not in acts}
    growth = {what: _growth(found, what) for what in pages | acts if what in found[least]}
    return [
        Goal(
            f"{int(most):,} sessions: each page of the list, p95, ms",
            15,
            {what: summary(of)[1] for what, of in pages.items()},
            worst_only=True,
        ),
        Goal(
            f"{int(most):,} sessions: to the receipt, p95, ms", 50, {what: summary(of)[1] for what, of in acts.items()}
        ),
        Goal(f"growth of the median from {int(least):,} to {int(most):,}", 2, growth, worst_only=True),
    ]


def plots(found: Found) -> dict[str, str]:
    most = max(found, key=int)
    rows = []
    for what, values in found[most].items():
        if RATE not in what:
            median, late = summary(values)
            rows.append(Bar(what, median, min(values), late, ours=True))
    return {"sessions": bars(f"In the server, with {int(most):,} live sessions", "milliseconds", rows)}
