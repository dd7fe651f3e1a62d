"""The rows of the table `cutoffs` as `Cutoff` values: the one place of the core that knows its columns."""

from __future__ import annotations

from typing import Any, LiteralString

from lastcall.cutoffs import Cutoff


def microseconds(column: LiteralString) -> LiteralString:
    """SQL for a timestamp as whole microseconds since 1970 UTC; -infinity and infinity become 1970 and 2100."""
    return f"(extract(epoch FROM least(greatest({column}, 'epoch'), '2100-01-01'::timestamptz)) * 1000000)::bigint"


def columns(expires_at: LiteralString = "c.expires_at") -> LiteralString:
    """The columns of a `Cutoff`, of the table `cutoffs AS c`."""
    return f"c.scope::text, c.subject, c.min_gen, {microseconds('c.cutoff_at')}, {microseconds(expires_at)}"


def cutoff_from_row(row: tuple[Any, ...]) -> Cutoff:
    """A row selected with `columns()`."""
    return Cutoff._make(row)
