"""Throttling of sign-ins: failures of a name and of an address, counted in PostgreSQL, for all workers as one."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

from sqlalchemy import text

from models.database import db, transaction
from models.errors import Throttled

FAILURES_ALLOWED, FAILURES_WINDOW_S = 10, 300


def _keys(username: str, ip: str | None) -> Sequence[str]:
    """What failures are counted by: the name, and the address (of IPv6, its network of 64 bits)."""
    address = ip or "unknown"
    if ":" in address:
        address = str(ipaddress.ip_network((address, 64), strict=False))
    return hashlib.sha256(username.lower().encode()).hexdigest(), address


def _failures(username: str, ip: str | None) -> tuple[int, int]:
    """The failures of the name or of the address in the window, the larger number; and when that ends (seconds)."""
    name_key, address_key = _keys(username, ip)
    row = db.session.execute(
        text("""
            SELECT greatest(by_name.n, by_address.n) AS n, ceil(extract(epoch FROM
                coalesce(CASE WHEN by_name.n > by_address.n THEN by_name.oldest ELSE by_address.oldest END,
                    clock_timestamp()) + make_interval(secs => :window) - clock_timestamp()))::int AS wait_s
            FROM
                (SELECT count(*) AS n, min(tried_at) AS oldest FROM (
                    SELECT tried_at FROM sign_in_attempts WHERE name_key = :name_key
                    AND tried_at > clock_timestamp() - make_interval(secs => :window)
                    ORDER BY tried_at DESC LIMIT :allowed) AS a) AS by_name,
                (SELECT count(*) AS n, min(tried_at) AS oldest FROM (
                    SELECT tried_at FROM sign_in_attempts WHERE address_key = :address_key
                    AND tried_at > clock_timestamp() - make_interval(secs => :window)
                    ORDER BY tried_at DESC LIMIT :allowed) AS a) AS by_address
        """),
        {
            "name_key": name_key,
            "address_key": address_key,
            "window": FAILURES_WINDOW_S,
            "allowed": FAILURES_ALLOWED,
        },
    ).one()
    return row.n, max(1, row.wait_s)


def refuse_when_throttled(username: str, ip: str | None) -> None:
    failures, wait_s = _failures(username, ip)
    if failures >= FAILURES_ALLOWED:
        raise Throttled(wait_s)


def refuse_when_throttled_by_now(username: str, ip: str | None) -> None:
    """The same, in the transaction that depends on it: no failure is counted between this look and its end.

    The lock is shared, so that people behind one address wait for those who fail, not for each other.
    """
    _lock_keys(username, ip, "pg_advisory_xact_lock_shared")
    refuse_when_throttled(username, ip)


def _lock_keys(username: str, ip: str | None, lock: str) -> None:
    keys = sorted(_keys(username, ip))  # in one order, so that two cannot wait for each other
    query = f"SELECT {lock}(hashtextextended(key, 7530003)) FROM unnest(CAST(:keys AS text [])) AS key"
    db.session.execute(text(query), {"keys": keys})


def note_failure(username: str, ip: str | None) -> None:
    """Count a failure, for all workers as one: whoever makes the tenth is told so. Raises Throttled."""
    name_key, address_key = _keys(username, ip)
    with transaction() as session:
        _lock_keys(username, ip, "pg_advisory_xact_lock")
        session.execute(
            text("INSERT INTO sign_in_attempts (name_key, address_key) VALUES (:name_key, :address_key)"),
            {"name_key": name_key, "address_key": address_key},
        )
        failures, wait_s = _failures(username, ip)
    if failures >= FAILURES_ALLOWED:
        raise Throttled(wait_s)
