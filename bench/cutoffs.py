"""From no live cutoffs to a million: until a worker is ready, what a cutoff weighs in its memory, and what a check
takes. Ready: from the signal on which gunicorn forks another worker (or two at once) until that has written its first
position, which it does right after it may answer. Weight: of a fresh process of its own, by its resident memory and by
the sizes of its objects. Checks: of a token that the guard knows, the processes in turn, several rounds."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psycopg

from bench.goals import Goal, ratios
from bench.own_server import environment_of, new_database
from bench.plot import Bar, bars
from tests.gunicorn import ROOT, Gunicorn
from tools.postgres import EmbeddedPostgres

COUNTS = [int(count) for count in os.environ.get("BENCH_CUTOFFS", "0 1000 100000 1000000").split()]
STARTS, ROUNDS = 3, 9
PATIENCE_S = 300.0
Found = dict[str, dict[str, Any]]


def measure(advance: Callable[[str], None]) -> Found:
    found: Found = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        postgres = stack.enter_context(EmbeddedPostgres(folder))
        holders = {}
        for count in COUNTS:
            advance(f"{count:,} cutoffs: written")
            url = new_database(postgres, f"bench_{count}")
            write_cutoffs(url, count)
            advance(f"{count:,} cutoffs: workers start")
            ready = time_starts(url, folder)
            advance(f"{count:,} cutoffs: weighed")
            command = [sys.executable, "-m", "bench.holder", url]
            holders[count] = stack.enter_context(Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True))
            found[str(count)] = {**ready, **json.loads(next_line(holders[count])), "check_us": []}
        for number in range(ROUNDS):
            for count, holder in holders.items():
                advance(f"checks, round {number + 1} of {ROUNDS}: {count:,} cutoffs")
                assert holder.stdin is not None
                holder.stdin.write("\n")
                holder.stdin.flush()
                found[str(count)]["check_us"].append(float(next_line(holder)))
        for holder in holders.values():
            holder.communicate()
    return found


def next_line(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def write_cutoffs(url: str, count: int) -> None:
    """Users' cutoffs for the most part, as after many force logouts in the last minutes; each is still live for long.

    Without the triggers, which would announce each of them.
    """
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE cutoffs DISABLE TRIGGER USER")
        connection.execute(
            """
            INSERT INTO cutoffs (scope, subject, min_gen, cutoff_at, expires_at)
            SELECT
                CASE WHEN i %% 4 = 0 THEN 'session' ELSE 'user' END::cutoff_scope, gen_random_uuid()::text,
                CASE WHEN i %% 4 = 0 THEN 0 ELSE 1 + i %% 7 END, now() - random() * interval '10 minutes',
                now() + interval '2 hours' + random() * interval '15 minutes'
            FROM generate_series(1, %s) AS i
            """,
            (count,),
        )
        connection.execute("ALTER TABLE cutoffs ENABLE TRIGGER USER")
        connection.execute("ALTER TABLE cutoffs ENABLE ALWAYS TRIGGER cutoffs_before_write")
        connection.execute("ALTER TABLE cutoffs ENABLE ALWAYS TRIGGER cutoffs_after_write")


def time_starts(url: str, folder: Path) -> dict[str, list[float]]:
    """Seconds until another worker of a gunicorn that runs is ready, and until two at once are."""
    found: dict[str, list[float]] = {"one_s": [], "two_s": []}
    with (
        Gunicorn(1, (), environment_of(url, folder), folder / "gunicorn.log") as gunicorn,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        for _ in range(STARTS):
            for more, name in ((1, "one_s"), (2, "two_s")):
                began = time.perf_counter()
                signal_and_see(gunicorn, signal.SIGTTIN, more)
                wait_for_workers(connection, 1 + more)
                found[name].append(time.perf_counter() - began)
                signal_and_see(gunicorn, signal.SIGTTOU, more)
                wait_for_workers(connection, 1)
    return found


def signal_and_see(gunicorn: Gunicorn, number: int, times: int) -> None:
    """The next signal when gunicorn has done what the one before asked for: two of a kind would become one."""
    for _ in range(times):
        before = children_of(gunicorn.pid)
        gunicorn.signal(number)
        while children_of(gunicorn.pid) == before:
            time.sleep(0.001)


def children_of(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())


def wait_for_workers(connection: psycopg.Connection, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    query = "SELECT count(*), count(snapshot) FROM workers"
    while connection.execute(query).fetchone() != (wanted, wanted):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: there were not {wanted} ready workers within {PATIENCE_S:.0f} s")
        time.sleep(0.005)


def _weight(of: dict[str, Any], first: dict[str, Any], kind: str) -> float:
    """Bytes a cutoff. What a connection and its threads take is in the first row as well."""
    return float((of[kind] - first[kind]) / of["held"])


def table(found: Found) -> list[str]:
    first = next(iter(found.values()))
    base = first["check_us"]
    lines = [
        "| live cutoffs | one worker ready, s (most) | two at once, s (most) | bytes a cutoff, resident |"
        " by its objects | check, µs | of the first row, median | least to most |",
        "|" + " --- |" * 8,
    ]
    for count, of in found.items():
        times = ratios(of["check_us"], base)
        # A few thousand disappear in what a connection and its threads take.
        weights = [f"{_weight(of, first, kind):.0f}" if of["held"] >= 100_000 else "" for kind in ("resident", "sizes")]
        lines.append(
            f"| {int(count):,} | {_median_and_most(of['one_s'])} | {_median_and_most(of['two_s'])} | {weights[0]} |"
            f" {weights[1]} | {statistics.median(of['check_us']):.2f} | {statistics.median(times):.3f} |"
            f" {min(times):.3f} to {max(times):.3f} |"
        )
    return lines


def _median_and_most(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({max(values):.2f})"


def goals(found: Found) -> list[Goal]:
    first, most = next(iter(found.values())), found[max(found, key=int)]
    return [
        Goal(f"a worker is ready with {int(max(found, key=int)):,} cutoffs, s", 4, {"": max(most["one_s"])}),
        Goal("bytes a cutoff", 250, {"": _weight(most, first, "resident")}),
    ]


def plots(found: Found) -> dict[str, str]:
    rows = [
        Bar(f"{int(count):,} cutoffs, {kind}", statistics.median(of[name]), min(of[name]), max(of[name]), ours=True)
        for count, of in found.items()
        for kind, name in (("one worker", "one_s"), ("two at once", "two_s"))
    ]
    return {"cutoffs": bars("From the fork until a worker is ready", "seconds", rows)}
