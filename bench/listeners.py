"""What COMMIT costs by the number of connections that listen: of a revocation, whose trigger notifies them all, and of
a sign-in, which notifies nobody. Each number has a database of its own on one durable PostgreSQL; the commits take
turns."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import psycopg

from bench.plot import Bar, bars
from models.database import apply_schema
from tests.gunicorn import ROOT
from tools.postgres import EmbeddedPostgres

COUNTS = (0, 1, 16, 64, 256)
COMMITS = int(os.environ.get("BENCH_COMMITS", "200"))
REVOCATION = "SELECT raise_cutoff('user', %s, 1, now() + interval '1 h')"
SIGN_IN = """
INSERT INTO login_sessions (
    user_id, username, roles, client_id, token_expires_at, expires_at, user_gen, everyone_gen, family_hash, refresh_hash
)
VALUES (gen_random_uuid(), 'bench', '{}', 'bench', now(), now() + interval '1 h', 1, 1, sha256(%s), sha256('bench'))
"""
Found = dict[str, dict[str, list[float]]]


def measure(advance: Callable[[str], None]) -> Found:
    """Milliseconds of each COMMIT, by the number of listeners and what was committed."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(Path(folder), connections=sum(COUNTS) + 40))
        writers = {}
        for count in COUNTS:
            advance(f"{count} listeners connect")
            url = postgres.create_database(f"bench_{count}")
            apply_schema(url)
            command = [sys.executable, "-m", "bench.ears", str(count), url]
            ears = stack.enter_context(Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True))
            stack.callback(ears.communicate)
            assert ears.stdout is not None
            ears.stdout.readline()
            writers[count] = stack.enter_context(psycopg.connect(url))
        for number in range(COMMITS):
            for count, writer in writers.items():
                advance(f"commit {number + 1} of {COMMITS}: {count} listeners")
                of = found.setdefault(str(count), {"revocation": [], "sign-in": []})
                of["revocation"].append(commit(writer, REVOCATION, str(uuid.uuid4())))
                of["sign-in"].append(commit(writer, SIGN_IN, uuid.uuid4().bytes))
    return found


def commit(writer: psycopg.Connection, query: str, parameter: object) -> float:
    writer.execute(query, (parameter,))
    began = time.perf_counter()
    writer.commit()
    took_ms = (time.perf_counter() - began) * 1000
    time.sleep(0.02)  # the listeners of this one have heard it before the next is measured
    return took_ms


def table(found: Found) -> list[str]:
    lines = ["| listeners | a revocation, ms: median / p99 | a sign-in |", "| --- | --- | --- |"]
    for count, of in found.items():
        cells = [
            f"{statistics.median(values):.2f} / {statistics.quantiles(values, n=100)[98]:.2f}" for values in of.values()
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return lines


def plots(found: Found) -> dict[str, str]:
    rows = [
        Bar(f"{kind}, {count} listeners", statistics.median(values), min(values), max(values), ours=kind == "sign-in")
        for count, of in found.items()
        for kind, values in of.items()
    ]
    return {"listeners": bars("What COMMIT takes", "milliseconds", rows, logarithmic=True)}
