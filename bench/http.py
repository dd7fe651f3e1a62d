"""Over HTTP, beside what one would pick instead: one endpoint (`GET /me`, a small JSON body), guarded in each of these
ways, under the same gunicorn settings (gthread, 64 threads, a socket for each worker), asked by wrk over 16 kept-alive
connections. All of them get the same HS256 token, but the session in Redis, which has an id. Everything runs on this
machine and is measured in turn, forwards and backwards, what is compared most closely three times a round; ratios are
to bare Flask of the same round. All servers are started anew after every other round: one and the same differs by a
twentieth from start to start. Every revocation store holds a thousand entries, and each way is asked to refuse a
revoked token before it is measured."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from bench import wrk
from bench.goals import Goal, ratios
from bench.peers import environment
from bench.peers.contenders import BARE, COLD, PYJWT_EACH, SESSION, WARM, WITH_REDIS, started
from bench.plot import Bar, bars
from lastcall import turns

WORKERS = (1, 2)
STARTS = int(os.environ.get("BENCH_HTTP_STARTS", "5"))
ROUNDS = 2
"""After each start."""
FOR_S = 1
OFTEN = (PYJWT_EACH, COLD, WITH_REDIS, SESSION, WARM, BARE, BARE, WARM, SESSION, WITH_REDIS, COLD, PYJWT_EACH)
"""Once more each round, there and back: single seconds of one and the same server differ by a tenth here."""
COMPARED = ((WARM, WITH_REDIS), (WARM, SESSION), (COLD, PYJWT_EACH))
TIMES = ("p50_ms", "p99_ms")
Found = dict[str, dict[str, list[dict[str, float]]]]


def measure(advance: Callable[[str], None]) -> Found:
    """By the number of workers, and by what was asked: the loads of each round."""
    for program, package in (("wrk", "wrk"), ("redis-server", "redis-server")):
        wrk.find(program, package)
    advance("the peers' environment (.bench/)")
    python = environment.python()
    found: Found = {}
    for workers in WORKERS:
        loads = found.setdefault(str(workers), {})

        def say(what: str, workers: int = workers) -> None:
            advance(f"{_plural(workers)}: {what}")

        for start in range(1, STARTS + 1):
            with started(python, workers, FOR_S, say) as contenders:
                say("settling")
                time.sleep(turns.FOR_S)  # until the switch interval is the usual one
                for number in range(ROUNDS):
                    names = [*list(contenders)[:: -1 if number % 2 else 1], *OFTEN]
                    which = f"start {start} of {STARTS}, round {number + 1} of {ROUNDS}"
                    for name, means in _one_round(which, contenders, names, say).items():
                        loads.setdefault(name, []).append(means)
    return found


def _one_round(
    which: str, contenders: dict[str, Callable[[], wrk.Load]], names: list[str], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Asks in this order. Returns the means of each."""
    seen: dict[str, list[wrk.Load]] = {}
    for name in names:
        say(f"{which}: {name}")
        seen.setdefault(name, []).append(contenders[name]())
    return {
        name: {what: statistics.mean(getattr(load, what) for load in of) for what in ("rate", *TIMES)}
        for name, of in seen.items()
    }


def _ratios(loads: dict[str, list[dict[str, float]]], name: str, base: str) -> list[float]:
    return ratios([load["rate"] for load in loads[name]], [load["rate"] for load in loads[base]])


def _fastest_first(loads: dict[str, list[dict[str, float]]]) -> list[str]:
    return sorted(loads, key=lambda name: -statistics.median(_ratios(loads, name, BARE)))


def _median_and_spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _median(loads: list[dict[str, float]], what: str) -> float:
    return statistics.median(load[what] for load in loads)


def _plural(workers: int | str) -> str:
    return f"{workers} worker{'s' if int(workers) > 1 else ''}"


def table(found: Found) -> list[str]:
    heads = [f"{_plural(n)}: of bare Flask (spread) | requests/s | p50, p99 ms" for n in found]
    lines = [f"| what | {' | '.join(heads)} |", "| --- |" + " --- | --- | --- |" * len(found)]
    for name in _fastest_first(found[next(iter(found))]):
        cells = [name]
        for of in found.values():
            times = ", ".join(f"{_median(of[name], what):.1f}" for what in TIMES)
            cells += [_median_and_spread(_ratios(of, name, BARE)), f"{_median(of[name], 'rate'):,.0f}", times]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| how many times as fast | {' | '.join(map(_plural, found))} |", "| --- |" + " --- |" * len(found)]
    for name, base in COMPARED:
        cells = [_median_and_spread(_ratios(of, name, base)) for of in found.values()]
        lines.append(f"| {name}: as {base} | {' | '.join(cells)} |")
    return lines


def goals(found: Found) -> list[Goal]:
    limits = (
        ("a guarded request, requests/s of", 0.92, WARM, BARE),
        ("as fast as", 2, WARM, WITH_REDIS),
        ("as fast as", 1.3, WARM, SESSION),
        ("a token seen for the first time, as fast as", 1, COLD, PYJWT_EACH),
    )
    return [
        Goal(
            f"{what} {base}",
            limit,
            {_plural(workers): statistics.median(_ratios(of, name, base)) for workers, of in found.items()},
            at_least=True,
        )
        for what, limit, name, base in limits
    ]


def plots(found: Found) -> dict[str, str]:
    drawn = {}
    for workers, loads in found.items():
        rows = []
        for name in _fastest_first(loads):
            rates = _ratios(loads, name, BARE)
            ours = name.startswith("Lastcall")
            rows.append(Bar(name, statistics.median(rates), min(rates), max(rates), ours=ours))
        title = f"Requests a second, {_plural(workers)}"
        drawn[f"http_{workers}"] = bars(title, "as a part of bare Flask's in the same round", rows)
    return drawn
