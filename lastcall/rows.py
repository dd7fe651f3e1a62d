"""The rows of the table `cutoffs` as `Cutoff` values: the one place of the core that knows its columns."""

from __future__ import annotations

from typing import Any, LiteralString

from lastcall.cutoffs import Cutoff


def microseconds(column: LiteralString) -> LiteralString:
    """SQL for a timestamp as whole microseconds since 1970 UTC; -infinity and infinity become 1970 and 2100."""
    return f"(extract(epoch FROM least(greatest({column}, 'epoch'), '2100-01-01'::timestamptz)) * 1000000)::bigint"


COLUMNS: LiteralString = (
    f"c.scope::text, c.subject, c.min_gen, {microseconds('c.cutoff_at')}, {microseconds('c.expires_at')}"
)


def cutoff_from_row(row: tuple[Any, ...]) -> Cutoff:
    """A row selected with COLUMNS."""
    return Cutoff._make(row)
