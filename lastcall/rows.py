"""The rows of the table `cutoffs` as `Cutoffs.advance` takes them: the one place of the core that knows its columns."""

from __future__ import annotations

from typing import LiteralString


def microseconds(column: LiteralString) -> LiteralString:
    """SQL for a timestamp as whole microseconds since 1970 UTC; -infinity and infinity become 1970 and 2100.

    `date_part` is a double: until 2100 the product is less than half a microsecond off, so it is rounded to the right
    one. `extract` is a numeric, which takes twice as long (PostgreSQL manual, "EXTRACT, date_part").
    """
    return f"(date_part('epoch', least(greatest({column}, 'epoch'), '2100-01-01'::timestamptz)) * 1000000)::bigint"


def columns(expires_at: LiteralString = "c.expires_at") -> LiteralString:
    """A `lastcall.cutoffs.Row`, of the table `cutoffs AS c`."""
    return f"c.scope::text, c.subject, c.min_gen, {microseconds('c.cutoff_at')}, {microseconds(expires_at)}"
