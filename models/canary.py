"""The canary: every 10 s an invented user is signed out, and every live worker must refuse him."""

from __future__ import annotations

import logging

from sqlalchemy import text

from lastcall.listener import CANARY
from models.database import db
from models.purge import FROM_ANOTHER_REGION

log = logging.getLogger("lastcall")

EVERY_S = 10
ALARM_AFTER_S = 5
"""Longer than a lease, so that a worker which stopped or was paused has been fenced by then (seconds)."""


class Canary:
    """Sends it and judges it; one process at a time does. Each that finds out that one lives on says so once."""

    def __init__(self) -> None:
        self._alarmed_gen = 0

    def send(self, fenced: set[str]) -> None:
        """Within a transaction under way. The one of the last time is judged first: its age is a metric."""
        row = db.session.execute(
            text(f"""
                SELECT c.min_gen, c.cutoff_at, extract(epoch FROM clock_timestamp() - c.cutoff_at) AS age_s,
                    {FROM_ANOTHER_REGION} AS is_theirs,
                    (SELECT array_agg(w.id::text) FROM workers AS w WHERE w.canary < c.min_gen
                     AND w.lease_s IS NOT NULL AND w.started_at < c.cutoff_at AND w.renewed_at > c.cutoff_at) AS deaf,
                    e.canary_at
                FROM everyone AS e LEFT JOIN cutoffs AS c ON c.scope = 'user' AND c.subject = :canary
            """),
            {"canary": CANARY},
        ).one()
        if row.min_gen is not None:
            deaf = [worker_id for worker_id in row.deaf or () if worker_id not in fenced]
            if not deaf and row.canary_at != row.cutoff_at:
                db.session.execute(text("UPDATE everyone SET canary_at = :at"), {"at": row.cutoff_at})
            elif deaf and row.age_s > ALARM_AFTER_S and row.min_gen != self._alarmed_gen:
                self._alarmed_gen = row.min_gen
                log.critical("lastcall: the canary lives: workers %s have not refused it", ", ".join(deaf))
        if not row.is_theirs and (row.min_gen is None or row.age_s >= EVERY_S):
            db.session.execute(
                text("SELECT raise_cutoff('user', :canary, :gen, clock_timestamp() + interval '1 hour')"),
                {"canary": CANARY, "gen": (row.min_gen or 0) + 1},
            )
