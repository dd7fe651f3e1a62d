"""One worker process of bench/propagation.py: notes when a cutoff has reached it, by each way.

python -m bench.follower URL REDIS_SOCKET NOTES NUMBER OF_HOW_MANY TRIALS SHARE_OF_TIME_THAT_IT_CHECKS
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench import pubsub
from bench.in_process import payload
from lastcall.cutoffs import Cutoffs, Row
from lastcall.guard import LOOK_S, Guard
from lastcall.listener import CutoffListener
from lastcall.tokens import KeyRing, generate_signing_key, issue

WAYS = ("Lastcall", "applied", "Redis", "polling")
"""By Lastcall twice: since when no check accepts, and since when the cutoff is in memory."""
POLL_S = 1.0
CHECKS_FOR_S = 0.001
"""At a time, about as long as a request takes (seconds)."""


class Notes:
    """Moments on CLOCK_MONOTONIC, which all processes share, in a file that they share: by way, worker and trial."""

    def __init__(self, path: Path, workers: int, trials: int) -> None:
        self._workers, self._trials = workers, trials
        size = len(WAYS) * workers * trials * 8
        with path.open("a+b") as file:
            file.truncate(size)
            self._moments = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def _place(self, way: str, worker: int, trial: int) -> int:
        return (WAYS.index(way) * self._workers + worker) * self._trials + trial

    def note(self, way: str, worker: int, trial: int, moment_ns: int | None = None) -> None:
        self._moments[self._place(way, worker, trial)] = moment_ns or time.monotonic_ns()

    def of(self, way: str, trial: int) -> list[int]:
        """One moment for each worker; 0 where it has not come."""
        return [self._moments[self._place(way, worker, trial)] for worker in range(self._workers)]


class NotingCutoffs(Cutoffs):
    """Cutoffs that note since when no check accepts what a trial's refuses: since the look that has applied it began,
    if no check has given it up, or since it was applied."""

    _looking_since_ns = 0
    _look: threading.Event | None = None

    def __init__(self, notes: Notes, worker: int) -> None:
        super().__init__()
        self._notes, self._worker = notes, worker

    @property
    def look(self) -> threading.Event | None:
        return self._look

    @look.setter
    def look(self, look: threading.Event | None) -> None:
        self._look = look
        self._looking_since_ns = time.monotonic_ns()

    def advance(self, cutoff: Row) -> bool:
        risen, subject = super().advance(cutoff), cutoff[1]
        if risen and subject.isdigit():
            since_ns, now_ns = self._looking_since_ns, time.monotonic_ns()
            waited = self._look is not None and now_ns - since_ns < LOOK_S * 1e9
            trial = int(subject)
            self._notes.note("Lastcall", self._worker, trial, since_ns if waited else now_ns)
            self._notes.note("applied", self._worker, trial, now_ns)
        return risen


def main() -> None:
    url, redis_socket, path = sys.argv[1:4]
    worker, workers, trials = (int(word) for word in sys.argv[4:7])
    share = float(sys.argv[7])
    notes = Notes(Path(path), workers, trials)
    cutoffs = NotingCutoffs(notes, worker)
    listener = CutoffListener(url, cutoffs, service="bench")
    listener.ensure_running()
    assert listener.wait_until_live(60)
    messages = pubsub.subscribe(pubsub.connect(Path(redis_socket)))
    threading.Thread(target=listen_to_redis, args=(messages, notes, worker), daemon=True).start()
    threading.Thread(target=poll, args=(url, notes, worker), daemon=True).start()
    over = threading.Event()
    if share:
        threading.Thread(target=check_tokens, args=(cutoffs, share, over), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    listener.stop()


def listen_to_redis(messages: Iterator[bytes], notes: Notes, worker: int) -> None:
    held: dict[str, int] = {}
    for message in messages:
        cutoff = json.loads(message)
        held[cutoff["subject"]] = cutoff["min_gen"]
        notes.note("Redis", worker, int(cutoff["subject"]))


def poll(url: str, notes: Notes, worker: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        since = connection.execute("SELECT clock_timestamp()").fetchall()[0][0]
        while True:
            query = "SELECT subject, cutoff_at FROM cutoffs WHERE cutoff_at > %s ORDER BY cutoff_at"
            for subject, cutoff_at in connection.execute(query, (since,)):
                notes.note("polling", worker, int(subject))
                since = cutoff_at
            time.sleep(POLL_S)


def check_tokens(cutoffs: Cutoffs, share: float, over: threading.Event) -> None:
    """What a request's guard does, for a share of the time; 1: without a pause."""
    ring = KeyRing.parse(json.dumps(generate_signing_key("HS256")))
    guard = Guard(ring, cutoffs, issuer="lastcall", audience="lastcall")
    raw = issue(payload(), ring)
    while not over.is_set():
        until = time.monotonic() + CHECKS_FOR_S
        while time.monotonic() < until:
            guard.check(raw)
        if share < 1:
            time.sleep(CHECKS_FOR_S / share - CHECKS_FOR_S)


if __name__ == "__main__":
    main()
