"""Throttling of sign-ins: failures of a name and of an address, counted in PostgreSQL, for all workers as one."""

from __future__ import annotations

import ipaddress
from typing import Any, LiteralString

from sqlalchemy import Row, text

from models.database import db, transaction
from models.errors import Throttled

FAILURES_ALLOWED, FAILURES_WINDOW_S = 10, 300

# As users are found: by the database's own idea of upper and lower case.
_NAME_KEY: LiteralString = "encode(sha256(convert_to(lower(CAST(:tried_name AS text)), 'UTF8')), 'hex')"
_OF_ONE_KEY: LiteralString = """
    SELECT count(*) AS n, min(tried_at) AS oldest FROM (
        SELECT tried_at FROM sign_in_attempts
        WHERE {} AND tried_at > clock_timestamp() - make_interval(secs => :throttle_window)
        ORDER BY tried_at DESC LIMIT :failures_allowed
    ) AS a
"""
# The failures of the name or of the address in the window, the larger number; and when that ends (seconds).
FAILURES: LiteralString = f"""
SELECT greatest(by_name.n, by_address.n) AS failures, greatest(1, ceil(extract(epoch FROM
    coalesce(CASE WHEN by_name.n > by_address.n THEN by_name.oldest ELSE by_address.oldest END, clock_timestamp())
    + make_interval(secs => :throttle_window) - clock_timestamp()))::int) AS wait_s
FROM
    ({_OF_ONE_KEY.format(f"name_key = {_NAME_KEY}")}) AS by_name,
    ({_OF_ONE_KEY.format("address_key = :tried_address")}) AS by_address
"""
"""A query of one row, for statements that ask it along with something else. Its parameters: `tried`."""

_COUNT_FAILURES = text(FAILURES)
_NOTE_FAILURE = text(f"INSERT INTO sign_in_attempts (name_key, address_key) VALUES ({_NAME_KEY}, :tried_address)")
# In one order, so that two cannot wait for each other.
_KEYS: LiteralString = f"(SELECT unnest(ARRAY[{_NAME_KEY}, :tried_address]) AS key ORDER BY key) AS given"
_LOCK = text(f"SELECT pg_advisory_xact_lock(hashtextextended(key, 7530003)) FROM {_KEYS}")
_LOCK_SHARED = text(f"SELECT pg_advisory_xact_lock_shared(hashtextextended(key, 7530003)) FROM {_KEYS}")


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


def count_failures(username: str, ip: str | None) -> Row[Any]:
    return db.session.execute(_COUNT_FAILURES, tried(username, ip)).one()


def let_no_failure_in_between(username: str, ip: str | None) -> None:
    """From here to the end of the transaction none is counted: the next statement sees all of them.

    The lock is shared, so that people behind one address wait for those who fail, not for each other.
    """
    db.session.execute(_LOCK_SHARED, tried(username, ip))


def note_failure(username: str, ip: str | None) -> None:
    """Count a failure, for all workers as one: whoever makes the tenth is told so. Raises Throttled."""
    with transaction() as session:
        given = tried(username, ip)
        session.execute(_LOCK, given)
        session.execute(_NOTE_FAILURE, given)
        found = count_failures(username, ip)
    refuse_when_throttled(found)
