"""The listener's turns with the interpreter, beside threads that compute and do not let go of it.

Such a thread keeps it for a switch interval, 5 ms (`sys.setswitchinterval`, Python manual); a shorter one costs
requests, so it is set only while it is needed (docs/decisions/0014).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUICK_S = 0.00005
"""How long a busy thread may keep the interpreter while an answer of the database is waited for (seconds)."""
SHORT_S = 0.0002
"""And while a NOTIFY is waited for beside busy threads (seconds)."""
LATE = 0.8
"""A wait that ends later than this fraction of a switch interval was held up by a thread that keeps the interpreter.
(It keeps it for a whole one, but libpq's waits end a little early.)"""
OFTEN = 8
"""When late waits outnumber punctual ones by this many, a thread is computing; among requests that hardly happens.
After a trial, one late wait is enough."""
USUAL_WAIT_S, SOON_S = 0.25, 0.002
FOR_S = 10.0
"""After that it is tried whether it is needed (seconds)."""


@contextmanager
def quick_turns() -> Iterator[None]:
    """Beside busy threads, let this one have the interpreter back soon after each wait.

    Where turns are as quick already, this changes nothing: another listener of the process may look just now, and what
    it has set must not be taken for the usual one.
    """
    usual_s = sys.getswitchinterval()
    if usual_s <= QUICK_S:
        yield
        return
    sys.setswitchinterval(QUICK_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


class Turns:
    """Shortens the switch interval at first, and while waits end late. For one thread."""

    def __init__(self) -> None:
        self._late = 0
        self._usual_s: float | None = None
        """The switch interval as it was, while ours is in force (seconds)."""
        self._until_s = 0.0

    def begin(self) -> None:
        """A short one until it is tried whether it is needed; one that is short already stays as it is."""
        self._late, interval_s = 0, sys.getswitchinterval()
        if interval_s > 2 * SHORT_S:
            self._usual_s, self._until_s = interval_s, time.monotonic() + FOR_S
            sys.setswitchinterval(SHORT_S)

    def wait(self, most_s: float, wait: Callable[[float], bool]) -> bool:
        """Call `wait`, which waits as long as it is told (seconds), `most_s` at most, and returns whether something
        has come. Returns the same."""
        wait_s = min(most_s, SOON_S if self._late else USUAL_WAIT_S)
        began_s = time.perf_counter()
        if wait(wait_s):
            return True
        self._judge(time.perf_counter() - began_s - wait_s)
        return False

    def end(self) -> None:
        """Put the switch interval back."""
        if self._usual_s is not None:
            sys.setswitchinterval(self._usual_s)
            self._usual_s = None

    def _judge(self, late_s: float) -> None:
        if self._usual_s is not None:
            if time.monotonic() > self._until_s:
                self.end()
                self._late = OFTEN - 1
            return
        interval_s = sys.getswitchinterval()
        is_late = late_s > LATE * interval_s and interval_s > 2 * SHORT_S
        self._late = self._late + 1 if is_late else max(0, self._late - 1)
        if self._late >= OFTEN:
            self.begin()
