"""One fresh process of bench/cutoffs.py: holds all cutoffs of a database, says what they weigh, and times checks.

python -m bench.holder URL

It prints one line when it is live, and one more, the microseconds that a check takes, for each line that it reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from bench.in_process import microseconds, payload
from lastcall.cutoffs import Cutoffs
from lastcall.guard import Guard
from lastcall.listener import CutoffListener
from lastcall.tokens import KeyRing, generate_signing_key, issue


def main() -> None:
    cutoffs = Cutoffs()
    listener = CutoffListener(sys.argv[1], cutoffs, service="bench")
    ring = KeyRing.parse(json.dumps(generate_signing_key("HS256")))
    before = resident_bytes()
    listener.ensure_running()
    assert listener.wait_until_live(600)
    print(
        json.dumps({"held": len(cutoffs), "resident": resident_bytes() - before, "sizes": sizes_of(cutoffs)}),
        flush=True,
    )
    guard, raw = Guard(ring, cutoffs, issuer="lastcall", audience="lastcall"), issue(payload(), ring)
    for _ in sys.stdin:
        print(microseconds(lambda: guard.check(raw)), flush=True)
    listener.stop()


def resident_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def sizes_of(cutoffs: Cutoffs) -> int:
    """What sys.getsizeof says of all that is held: the dictionaries, their keys and values, and what is due when."""
    return sum(map(sys.getsizeof, everything_in(cutoffs)))


def everything_in(cutoffs: Cutoffs) -> Iterator[object]:
    for held in (cutoffs._users, cutoffs._sessions):
        yield held
        yield from held  # the lists of what is due hold these very strings
        yield from held.values()
    yield cutoffs._due
    yield from cutoffs._due.values()


if __name__ == "__main__":
    main()
