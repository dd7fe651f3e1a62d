"""How much there is, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from models.database import transaction


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the tables are; `sessions` is the planner's estimate. `canary_age_s` is None before the first one."""

    cutoffs: int
    sessions: int
    canary_age_s: float | None


def read_sizes() -> Sizes:
    query = text("""
        SELECT
            (SELECT count(*) FROM cutoffs),
            (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'login_sessions'::regclass),
            (SELECT extract(epoch FROM clock_timestamp() - canary_at)::float8 FROM everyone)
    """)
    with transaction() as session:
        return Sizes(*session.execute(query).one())
