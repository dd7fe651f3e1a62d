"""From the DELETE to its receipt: force logouts on real gunicorn workers and a real, durable PostgreSQL. Loaded: each
worker also answers guarded requests on a kept-alive connection, one after the other as fast as they are answered, which
uses up both processors. Half loaded: half as many a second. One case after the other, from 1 worker to 16."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from bench.goals import Goal
from bench.load import guarded, load
from bench.own_server import environment_of, new_database
from bench.plot import Bar, bars
from tests.conftest import PASSWORD
from tests.gunicorn import Gunicorn, Line
from tools.postgres import EmbeddedPostgres

WORKERS = (1, 2, 4, 8, 16)
KINDS = ("idle", "loaded", "half loaded")
LOGOUTS = int(os.environ.get("BENCH_LOGOUTS", "100"))


def measure(advance: Callable[[str], None]) -> dict[str, list[float]]:
    """Milliseconds from DELETE to receipt, by the number of workers and what they do meanwhile."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        for count in WORKERS:
            environment = environment_of(new_database(postgres, f"bench_{count}"), Path(folder))
            with Gunicorn(count, (), environment, Path(folder) / f"gunicorn-{count}.log") as gunicorn:
                admin = gunicorn.sign_in("admin", PASSWORD)["access_token"]
                body = {"username": "bench", "password": PASSWORD}
                made = gunicorn.ask("POST", "/api/v1/admin/users", token=admin, body=body)
                path = f"/api/v1/admin/sessions/{made.json['user_id']}"
                rate = 0.0
                for kind in KINDS:
                    with nullcontext() if kind == "idle" else load(gunicorn, guarded(admin), rate=rate) as requests:
                        line = Line(gunicorn.port)
                        for number in range(LOGOUTS):
                            advance(f"{count} workers, {kind}: force logout {number + 1} of {LOGOUTS}")
                            gunicorn.sign_in("bench", PASSWORD)
                            began = time.perf_counter()
                            answer = line.ask("DELETE", path, token=admin)
                            found.setdefault(f"{count} {kind}", []).append((time.perf_counter() - began) * 1000)
                            if answer.json["workers"] | {"elapsed_ms": 0} != _all_of(count):
                                raise SystemExit(f"bench: not in force: {answer.text}")
                    rate = len(requests.took_ms) / requests.lasted_s / 2 if requests else 0.0
    return found


def _all_of(count: int) -> dict[str, object]:
    return {"live": count, "confirmed": count, "fenced": 0, "elapsed_ms": 0, "unconfirmed": []}


def table(found: dict[str, list[float]]) -> list[str]:
    return spread_of("workers", found)


def spread_of(of: str, found: dict[str, list[float]]) -> list[str]:
    """A table of milliseconds, by what they are `of`."""
    lines = [f"| {of} | ms, median | p99 | most |", "| --- | --- | --- | --- |"]
    for case, values in found.items():
        p99 = statistics.quantiles(values, n=100)[98]
        lines.append(f"| {case} | {statistics.median(values):.1f} | {p99:.1f} | {max(values):.1f} |")
    return lines


def goals(found: dict[str, list[float]]) -> list[Goal]:
    return [
        Goal(
            f"DELETE to receipt, {kind}, median, ms",
            25,
            {str(count): statistics.median(found[f"{count} {kind}"]) for count in WORKERS},
        )
        for kind in KINDS
    ]


def plots(found: dict[str, list[float]]) -> dict[str, str]:
    rows = [
        Bar(f"{case} workers", statistics.median(values), min(values), max(values), ours=case.endswith("idle"))
        for case, values in found.items()
    ]
    return {"receipts": bars("DELETE to receipt", "milliseconds", rows)}
