"""From the return of COMMIT until no check of a worker process accepts the token any more, by the number of workers:
Lastcall, Redis pub/sub published right after the same COMMIT, and polling the table each second, all in the same
processes at the same time. With Lastcall that is so once a worker has been told and looks: checks that come from
then on wait for what it finds (docs/listener.md); "applied": until that is in its memory. With the others it is so
once the cutoff is in the worker's memory. "Alone": Lastcall without the PUBLISH; Redis after a COMMIT of the same
size that no listener hears of; the kinds take turns within a case. The goals compare what the same COMMIT has begun,
where each slows the other. A worker that is told before COMMIT has returned counts as 0. Loaded: each worker also runs
a thread that does nothing but check tokens, which uses up all processors (one, for one worker). Half loaded: it does so
half as much, a millisecond at a time. The figures are of every worker and every cutoff; "slowest" is the median of the
worker that has it last."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from bench.follower import POLL_S, WAYS, Notes
from bench.goals import Goal
from bench.plot import Bar, bars
from bench.pubsub import connect, publish, redis_server
from models.database import apply_schema
from tests.gunicorn import ROOT
from tools.postgres import EmbeddedPostgres

WORKERS = (1, 2, 4, 8, 16)
TRIALS = int(os.environ.get("BENCH_TRIALS", "300"))
PATIENCE_S = 10.0
EIGHT = ("8 idle", "8 half loaded", "8 loaded")
SHORTEST_MS = 0.01
"""What a logarithmic plot draws of a worker that was told before COMMIT had returned."""
KINDS = ("the same COMMIT", "Lastcall alone", "Redis alone")
LOADS = {"idle": 0.0, "half loaded": 0.5, "loaded": 1.0}
"""How much of the processors is used up."""
Found = dict[str, dict[str, float]]


def cases() -> Iterator[tuple[str, int, float]]:
    """With the share of its time that each worker is busy."""
    processors = len(os.sched_getaffinity(0))
    for load, used in LOADS.items():
        for count in WORKERS:
            yield f"{count} {load}", count, used if used == 1 else used * min(1, processors / count)


def measure(advance: Callable[[str], None]) -> dict[str, Found]:
    """Milliseconds, by case and way: the median, the 99th of a hundred, and the median of the slowest worker."""
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        postgres = stack.enter_context(EmbeddedPostgres(folder))
        redis = stack.enter_context(redis_server(folder))
        for number, (case, count, share) in enumerate(cases()):
            url, elsewhere = (postgres.create_database(f"{kind}_{number}") for kind in ("bench", "elsewhere"))
            apply_schema(url)
            apply_schema(elsewhere)
            notes = Notes(folder / f"notes-{number}", count, TRIALS)
            given = [url, str(redis), str(folder / f"notes-{number}")]
            with following(count, given, share):
                committed = revoke(url, elsewhere, redis, notes, lambda trial, case=case: advance(f"{case}: {trial}"))
            found[case] = figures(notes, committed)
    return found


@contextmanager
def following(count: int, given: list[str], share: float) -> Iterator[None]:
    """`count` worker processes, once they all follow."""
    command = [sys.executable, "-m", "bench.follower", *given]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [*command, str(number), str(count), str(TRIALS), str(share)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        for number in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit("bench: a worker process did not get ready")
        yield
    finally:
        for process in processes:
            process.communicate()


def revoke(url: str, elsewhere: str, redis: Path, notes: Notes, advance: Callable[[int], None]) -> list[int]:
    """Make one cutoff after the other, the kinds in turn. Returns the moments when COMMIT had returned."""
    committed = []
    publisher = connect(redis)
    with psycopg.connect(url) as here, psycopg.connect(elsewhere) as there:
        for trial in range(TRIALS):
            advance(trial)
            kind = KINDS[trial % 3]
            connection = there if kind == "Redis alone" else here
            message = json.dumps({"subject": str(trial), "min_gen": 1}, separators=(",", ":")).encode()
            connection.execute("SELECT raise_cutoff('user', %s, 1, now() + '1 h')", (str(trial),))
            connection.commit()
            committed.append(time.monotonic_ns())
            if kind != "Lastcall alone":
                publish(publisher, message)
            wait_for(notes, trial, kind)
            time.sleep(random.uniform(0.01, 0.05))
    time.sleep(2 * POLL_S)
    publisher.close()
    return committed


def wait_for(notes: Notes, trial: int, kind: str) -> None:
    ways = [way for way in ("Lastcall", "Redis") if kind in ("the same COMMIT", f"{way} alone")]
    deadline = time.monotonic() + PATIENCE_S
    while not all(all(notes.of(way, trial)) for way in ways):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {' or '.join(ways)} did not reach every worker within {PATIENCE_S:.0f} s")
        time.sleep(0.005)


def figures(notes: Notes, committed: list[int]) -> Found:
    found: Found = {}
    for way, kind in [
        ("Lastcall", "the same COMMIT"),
        ("applied", "the same COMMIT"),
        ("Redis", "the same COMMIT"),
        ("polling", "the same COMMIT"),
        ("Lastcall", "Lastcall alone"),
        ("applied", "Lastcall alone"),
        ("Redis", "Redis alone"),
    ]:
        trials = [trial for trial in range(TRIALS) if KINDS[trial % 3] == kind and all(notes.of(way, trial))]
        # A listener can be told before COMMIT has returned to the writer: that is no time at all.
        delays = [[max(0, moment - committed[trial]) / 1e6 for moment in notes.of(way, trial)] for trial in trials]
        every = sorted(delay for of_trial in delays for delay in of_trial)
        found[way if kind == KINDS[0] else f"{way} alone"] = {
            "median": statistics.median(every),
            "p99": statistics.quantiles(every, n=100)[98],
            "slowest": statistics.median(max(of_trial) for of_trial in delays),
        }
    return found


def _of_redis(ways: Found, way: str = "Lastcall") -> float:
    return ways[way]["median"] / ways["Redis"]["median"]


def table(found: dict[str, Found]) -> list[str]:
    ways = ("Lastcall", "applied", "Redis", "polling", "Lastcall alone", "applied alone", "Redis alone")
    figures = " | ".join(f"{way}, ms: median / p99 (slowest)" for way in ways)
    lines = [f"| workers | {figures} | Lastcall of Redis | applied of Redis |", "|" + " --- |" * (len(ways) + 3)]
    for case, ways_found in found.items():
        cells = ["{median:.2f} / {p99:.1f} ({slowest:.1f})".format(**ways_found[way]) for way in ways]
        ratios = f"{_of_redis(ways_found):.2f} | {_of_redis(ways_found, 'applied'):.2f}"
        lines.append(f"| {case} | {' | '.join(cells)} | {ratios} |")
    return lines


def goals(found: dict[str, Found]) -> list[Goal]:
    goals = []
    for what, way in (("COMMIT until no check accepts", "Lastcall"), ("COMMIT to applied", "applied")):
        eight = {case: _of_redis(found[case], way) for case in EIGHT}
        goals.append(Goal(f"{what}, of Redis pub/sub", 1, eight))
        goals.append(Goal("the same, p99 beside a busy thread, ms", 2, {"1 loaded": found["1 loaded"][way]["p99"]}))
    return goals


def plots(found: dict[str, Found]) -> dict[str, str]:
    rows = [
        Bar(f"{way}, {case} workers", median, median, figure["p99"], ours=way in ("Lastcall", "applied"))
        for case in EIGHT
        for way, figure in found[case].items()
        if way in WAYS
        for median in (max(figure["median"], SHORTEST_MS),)
    ]
    return {"propagation": bars("COMMIT to refused: median, and to p99", "milliseconds", rows, logarithmic=True)}
