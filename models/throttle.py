"""Throttling of sign-ins: failures of a name and of an address, counted in PostgreSQL, for all workers as one."""

from __future__ import annotations

import ipaddress
from typing import Any, LiteralString

from sqlalchemy import Row, text

from models.database import db, one_statement
from models.errors import Throttled

FAILURES_ALLOWED, FAILURES_WINDOW_S = 10, 300

_GIVEN: LiteralString = ":tried_name, :tried_address, :throttle_window, :failures_allowed"
FAILURES: LiteralString = f"SELECT * FROM sign_in_failures({_GIVEN}, FALSE)"
FAILURES_AND_NO_MORE: LiteralString = f"SELECT * FROM sign_in_failures({_GIVEN}, TRUE)"
"""Queries of one row, for statements that ask them along with something else. Their parameters: `tried`. After the
second no failure is noted until the transaction ends."""

_COUNT = text(f"SELECT * FROM sign_in_failures({_GIVEN}, :let_none_in_between)")
_NOTE = text(f"SELECT * FROM note_sign_in_failure({_GIVEN})")


def tried(username: str, ip: str | None) -> dict[str, Any]:
    """What failures are counted by: the name, and the address (of IPv6, its network of 64 bits)."""
    address = ip or "unknown"
    if ":" in address:
        address = str(ipaddress.ip_network((address, 64), strict=False))
    return {
        "tried_name": username,
        "tried_address": address,
        "throttle_window": FAILURES_WINDOW_S,
        "failures_allowed": FAILURES_ALLOWED,
    }


def refuse_when_throttled(found: Row[Any]) -> None:
    """By a row with what FAILURES finds. Raises Throttled."""
    if found.failures >= FAILURES_ALLOWED:
        raise Throttled(found.wait_s)


def count_failures(username: str, ip: str | None, *, let_none_in_between: bool = False) -> Row[Any]:
    """With `let_none_in_between` none is noted from here to the end of the transaction."""
    return db.session.execute(_COUNT, {**tried(username, ip), "let_none_in_between": let_none_in_between}).one()


def note_failure(username: str, ip: str | None) -> None:
    """Count a failure, for all workers as one: whoever makes the tenth is told so. Raises Throttled."""
    with one_statement() as session:
        found = session.execute(_NOTE, tried(username, ip)).one()
    refuse_when_throttled(found)
