"""In one process: PyJWT alone for each algorithm, the guard with a token it sees for the first time, and with one it
knows, from no cutoffs to a million. All interleaved, several rounds; medians and spread as ratios to PyJWT HS256."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator

import jwt

from bench.goals import Goal, ratios
from bench.plot import Bar, bars
from lastcall.cutoffs import Cutoff, Cutoffs
from lastcall.guard import Guard
from lastcall.tokens import ALGORITHMS, KeyRing, generate_signing_key, issue

CUTOFFS = (0, 1_000, 100_000, 1_000_000)
ROUNDS = 7
FOR_S = 0.15
Case = tuple[str, Callable[[], object]]


def payload() -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": "lastcall",
        "aud": "lastcall",
        "sub": str(uuid.uuid4()),
        "sid": str(uuid.uuid4()),
        "jti": uuid.uuid4().hex,
        "iat": now,
        "exp": now + 600,
        "auth_time": now,
        "client_id": "bench",
        "roles": ["viewer"],
        "user_gen": 1,
        "everyone_gen": 1,
    }


def cutoffs_of(count: int) -> Cutoffs:
    cutoffs = Cutoffs()
    until_us = int((time.time() + 3600) * 1e6)
    for _ in range(count):
        cutoffs.advance(Cutoff("user", str(uuid.uuid4()), 2, until_us - 3_600_000_000, until_us))
    cutoffs.renew_lease(2**63)
    return cutoffs


def cases() -> Iterator[Case]:
    for alg in ALGORITHMS:
        ring = KeyRing.parse(json.dumps(generate_signing_key(alg)))
        raw, key = issue(payload(), ring), ring.keys[0].verifying
        yield (
            f"PyJWT alone, {alg}",
            lambda raw=raw, key=key, alg=alg: jwt.decode(raw, key, [alg], audience="lastcall", issuer="lastcall"),
        )
        cold = Guard(ring, cutoffs_of(0), issuer="lastcall", audience="lastcall")

        def first(guard: Guard = cold, raw: str = raw) -> object:
            guard._memo.clear()
            return guard.check(raw)

        yield f"guard, a token seen for the first time, {alg}", first
    for count in CUTOFFS:
        guard = Guard(ring, cutoffs_of(count), issuer="lastcall", audience="lastcall")
        raw = issue(payload(), ring)
        yield _known(count), lambda guard=guard, raw=raw: guard.check(raw)
    held = dict.fromkeys(str(uuid.uuid4()) for _ in range(1000))
    yield "a bare dict look-up", lambda: held.get("nobody")


def _known(count: int) -> str:
    return f"guard, a token it knows, {count:,} cutoffs"


def measure(advance: Callable[[str], None]) -> dict[str, list[float]]:
    """Microseconds a call, one figure a round, for each case."""
    found: dict[str, list[float]] = {}
    prepared = list(cases())
    for number in range(ROUNDS):
        for name, call in prepared:
            advance(f"round {number + 1} of {ROUNDS}: {name}")
            found.setdefault(name, []).append(microseconds(call))
    return found


def microseconds(call: Callable[[], object]) -> float:
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < FOR_S:
        for _ in range(50):
            call()
        calls += 50
    return took / calls * 1e6


def table(found: dict[str, list[float]]) -> list[str]:
    base = found["PyJWT alone, HS256"]
    lines = ["| what | µs a call, median | of PyJWT HS256, median | least to most |", "| --- | --- | --- | --- |"]
    for name, values in found.items():
        times = ratios(values, base)
        spread = f"{min(times):.3f} to {max(times):.3f}"
        lines.append(f"| {name} | {statistics.median(values):.2f} | {statistics.median(times):.3f} | {spread} |")
    return lines


def plots(found: dict[str, list[float]]) -> dict[str, str]:
    rows = [
        Bar(name, statistics.median(values), min(values), max(values), ours=name.startswith("guard"))
        for name, values in found.items()
    ]
    return {"in-process": bars("One check in one process", "microseconds", rows, logarithmic=True)}


def goals(found: dict[str, list[float]]) -> list[Goal]:
    none, very_many = found[_known(0)], found[_known(max(CUTOFFS))]
    of_pyjwt, growth = ratios(none, found["PyJWT alone, HS256"]), ratios(very_many, none)
    return [
        Goal("a check of a token it knows, µs", 3, {"": statistics.median(none)}),
        Goal("the same, of PyJWT's HS256", 0.05, {"": statistics.median(of_pyjwt)}),
        Goal(f"the same with {max(CUTOFFS):,} cutoffs, of without", 1.1, {"": statistics.median(growth)}),
    ]
