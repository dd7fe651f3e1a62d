"""From the DELETE in one region until the service of another one refuses the token. Its own PostgreSQL gets the cutoffs
by logical replication (docs/scaling.md), through a proxy; both servers are durable. Two workers at home, and two of the
service there, which are asked without a pause. "After the receipt" is 0 where it was refused there first."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.plot import Bar, bars
from bench.receipts import LOGOUTS, spread_of
from lastcall.tokens import generate_signing_key
from tests.faults.regions import two_regions
from tests.gunicorn import Line
from tests.workers.people import force_logout, make_person, sign_in, status_of

RECEIPT, REFUSED, AFTER = "the receipt at home", "refused there", "refused there, after the receipt"


def measure(advance: Callable[[str], None]) -> dict[str, list[float]]:
    """Milliseconds of each force logout."""
    found: dict[str, list[float]] = {RECEIPT: [], REFUSED: [], AFTER: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        two_regions(Path(folder), json.dumps(generate_signing_key("EdDSA")), fast=False) as regions,
    ):
        admin, lines = sign_in(regions.server), regions.service.lines()
        person = make_person(regions.server, admin, "traveller")
        with ThreadPoolExecutor(len(lines)) as threads:
            for number in range(LOGOUTS):
                advance(f"force logout {number + 1} of {LOGOUTS}")
                person = sign_in(regions.server, person.username)
                refusals = [threads.submit(refused_ms, line, person.token) for line in lines]
                time.sleep(0.05)
                began_ms = time.perf_counter() * 1000
                answer = force_logout(regions.server, admin, person)
                receipt_ms = time.perf_counter() * 1000
                if not answer.json["in_force"]:
                    raise SystemExit(f"bench: not in force: {answer.text}")
                there_ms = max(refusal.result(60) for refusal in refusals)
                found[RECEIPT].append(receipt_ms - began_ms)
                found[REFUSED].append(there_ms - began_ms)
                found[AFTER].append(max(0.0, there_ms - receipt_ms))
    return found


def refused_ms(line: Line, token: str) -> float:
    """When this worker has refused the token."""
    while (status := status_of(line, token)) == 200:
        pass
    if status != 401:
        raise SystemExit(f"bench: {status} instead of 401")
    return time.perf_counter() * 1000


def table(found: dict[str, list[float]]) -> list[str]:
    return spread_of("from the DELETE", found)


def plots(found: dict[str, list[float]]) -> dict[str, str]:
    rows = [Bar(what, statistics.median(values), min(values), max(values), ours=True) for what, values in found.items()]
    return {"regions": bars("From the DELETE in one region", "milliseconds", rows)}
