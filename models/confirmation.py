"""The confirmation: the wait until every live worker has applied a revocation, or no longer trusts its memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lastcall.clock import boottime_ns
from lastcall.errors import DatabaseAway
from models.database_errors import NotConfirmed
from models.worker import Reading, WorkerWatch, read_workers

PATIENCE_S = 10.0
"""How long a confirmation waits at most; past it the answer is "not in force everywhere yet" (seconds)."""

AT_FIRST_MS = 30
"""How long it holds a connection to be told at once (milliseconds): most confirmations are there by then."""

_AWAY_S = 0.3
"""How long it tries again when the database is away (seconds): a connection that was cut, not a database that is."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Which workers have it in force."""

    live: int = 0
    confirmed: int = 0
    fenced: int = 0
    elapsed_ms: float = 0.0
    unconfirmed: tuple[str, ...] = ()
    settled: bool = True
    """One lease has passed since the database's last crash: no worker can trust a lease that it has forgotten."""

    @property
    def in_force(self) -> bool:
        return self.settled and self.live == self.confirmed


def confirm(
    position: str, watch: WorkerWatch, *, patience_s: float = PATIENCE_S, since_ns: int | None = None
) -> Confirmation:
    """Wait until every worker has applied the transaction `position`, or its lease has run out.

    First the database waits for it, then this asks again after 2, 4, 6, … ms, at most 20, and holds no connection
    meanwhile. Never claims what it has not seen: past `patience_s` the answer names who has not confirmed.

    Raises NotConfirmed when the database goes away: what was done has been written all the same.
    """
    started_ns = boottime_ns()
    since_ns = since_ns if since_ns is not None else started_ns
    within_ms, pause_s = AT_FIRST_MS, 0.002
    while True:
        asked_ns, reading = _read_at_last(position, within_ms)
        rows, fenced = reading.rows, watch.observe(reading, asked_ns, boottime_ns())
        confirmed = [row.id for row in rows if row.confirmed]
        waiting = [row.id for row in rows if not row.confirmed and row.id not in fenced]
        own = watch.own_worker()
        if own is not None and own not in {row.id for row in rows}:  # the table does not tell of all: of another
            waiting.append(own)  # database than the listener's, or somebody has emptied it
        settled = watch.has_settled(asked_ns)
        late = boottime_ns() - started_ns > patience_s * 1e9
        if (settled and not waiting) or late:
            return Confirmation(
                live=len(confirmed) + len(waiting),
                confirmed=len(confirmed),
                fenced=sum(row.id in fenced and not row.confirmed for row in rows),
                elapsed_ms=round((boottime_ns() - since_ns) / 1e6, 1),
                unconfirmed=tuple(waiting),
                settled=settled,
            )
        time.sleep(pause_s)
        within_ms, pause_s = 0, min(pause_s + 0.002, 0.02)


def _read_at_last(position: str, within_ms: int) -> tuple[int, Reading]:
    """The workers' rows, and the clock from before they were asked for, though a connection was cut meanwhile."""
    since_ns = asked_ns = boottime_ns()
    while True:
        try:
            return asked_ns, read_workers(position, within_ms=within_ms)
        except DatabaseAway:
            if boottime_ns() - since_ns > _AWAY_S * 1e9:
                raise NotConfirmed from None
        time.sleep(0.02)
        asked_ns = boottime_ns()
