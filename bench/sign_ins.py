"""Guarded requests beside sign-ins (argon2id with the parameters of production): how long the guarded ones take with 50
sign-ins a second and without, in turn, several rounds. Both come at a fixed rate on kept-alive connections to all
workers, from processes of their own, and count from when they were due."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from bench.goals import Goal, ratios
from bench.load import guarded, load, sign_in
from bench.own_server import environment_of, new_database
from bench.plot import Bar, bars
from tests.conftest import PASSWORD
from tests.gunicorn import Gunicorn
from tools.postgres import EmbeddedPostgres

WORKERS = (2, 4)
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
FOR_S = 8.0
SIGN_INS, GUARDED = 50, 100
"""A second."""
Found = dict[str, dict[str, list[float]]]


def measure(advance: Callable[[str], None]) -> Found:
    """Milliseconds, one figure a round."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        for count in WORKERS:
            quick = environment_of(new_database(postgres, f"bench_{count}"), Path(folder))
            environment = {name: value for name, value in quick.items() if "ARGON2" not in name}
            with Gunicorn(count, (), environment, Path(folder) / f"gunicorn-{count}.log") as gunicorn:
                for number in range(ROUNDS):
                    for beside in (False, True):
                        advance(f"{count} workers, round {number + 1} of {ROUNDS}{', beside sign-ins' * beside}")
                        once(gunicorn, beside, found.setdefault(f"{count} workers", {}))
    return found


def once(gunicorn: Gunicorn, beside: bool, found: dict[str, list[float]]) -> None:
    token = gunicorn.sign_in("admin", PASSWORD)["access_token"]
    signing_in = load(gunicorn, sign_in("admin", PASSWORD), connections=16, rate=SIGN_INS) if beside else nullcontext()
    with signing_in as sign_ins:
        time.sleep(1.0)
        with load(gunicorn, guarded(token), connections=4, rate=GUARDED) as requests:
            time.sleep(FOR_S)
    if requests.refused:
        raise SystemExit(f"bench: {requests.refused} guarded requests were refused")
    note(found, "beside" if beside else "alone", requests.took_ms)
    if sign_ins is not None:
        note(found, "sign-ins", sign_ins.took_ms)
        found.setdefault("sign-ins a second", []).append(len(sign_ins.took_ms) / sign_ins.lasted_s)
        found.setdefault("sign-ins refused", []).append(sign_ins.refused)


def note(found: dict[str, list[float]], kind: str, took_ms: list[float]) -> None:
    found.setdefault(f"{kind}: median", []).append(statistics.median(took_ms))
    found.setdefault(f"{kind}: p99", []).append(statistics.quantiles(took_ms, n=100)[98])


def _p99_of_alone(of: dict[str, list[float]]) -> list[float]:
    return ratios(of["beside: p99"], of["alone: p99"])


def table(found: Found) -> list[str]:
    lines = [
        "| | guarded alone, ms: median / p99 | beside sign-ins | p99 of alone, median | least to most | sign-ins a"
        " second | refused | a sign-in, ms: median / p99 |",
        "|" + " --- |" * 8,
    ]
    for case, of in found.items():
        middle = {name: statistics.median(values) for name, values in of.items()}
        times = _p99_of_alone(of)
        alone, beside, signing_in = (
            f"{middle[f'{kind}: median']:.1f} / {middle[f'{kind}: p99']:.1f}"
            for kind in ("alone", "beside", "sign-ins")
        )
        lines.append(
            f"| {case} | {alone} | {beside} | {statistics.median(times):.2f} | {min(times):.2f} to"
            f" {max(times):.2f} | {middle['sign-ins a second']:.1f} | {sum(of['sign-ins refused']):.0f} |"
            f" {signing_in} |"
        )
    return lines


def goals(found: Found) -> list[Goal]:
    times = {case: statistics.median(_p99_of_alone(of)) for case, of in found.items()}
    return [Goal(f"p99 of guarded requests beside {SIGN_INS} sign-ins a second, of theirs alone", 2, times)]


def plots(found: Found) -> dict[str, str]:
    rows = [
        Bar(f"{case}, {label}", statistics.median(values), min(values), max(values), ours=kind == "beside")
        for case, of in found.items()
        for kind, label in (("alone", "guarded requests alone"), ("beside", "beside sign-ins"))
        for values in (of[f"{kind}: p99"],)
    ]
    return {"sign-ins": bars("The 99th of a hundred guarded requests", "milliseconds", rows)}
