"""What a person types into a search box: which users, clients and addresses may be meant. Knows nothing of lists.

Sessions are then found by these, which are indexed: an index of parts of words on the sessions themselves would cost
each sign-in and refresh.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Engine, text

from lastcall.clock import boottime_ns
from models.database import db

MOST_USERS, MOST_CLIENTS = 1000, 200
"""Who finds more has found what is common: then it is quicker to read the list and to look at each row."""
COMMON_S = 5
"""How long a text counts as common in the names of users, once it was (seconds)."""


@dataclass(frozen=True, slots=True)
class Named:
    """The ids of users by what they are called now, and by what they were called while they had sessions. As text: a
    thousand of them are on their way from the database to the database."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


NOBODY = Named()


@dataclass(frozen=True, slots=True)
class Meant:
    """What a search text may mean. `users` or `clients` is None when there are too many to name."""

    users: Named | None = NOBODY
    clients: tuple[str, ...] | None = ()
    addresses: tuple[tuple[str, str], ...] = ()


NOTHING = Meant()


def named(name: str) -> Named:
    """Who is, or was, called this, in any case. Within a transaction under way."""
    query = text("""
        SELECT TRUE AS now, id::text FROM users WHERE lower(username) = lower(:name)
        UNION ALL SELECT FALSE, user_id::text FROM former_names WHERE lower(username) = lower(:name)
    """)
    rows = db.session.execute(query, {"name": name}).all()
    return Named(tuple(user_id for now, user_id in rows if now), tuple(user_id for now, user_id in rows if not now))


class _Common:
    """Until when a text counts as one that too many users have in their names: its pages come one after the other."""

    def __init__(self) -> None:
        self.until_ns = 0


@lru_cache(maxsize=64)
def _common(_database: Engine, _searched: str) -> _Common:
    return _Common()


def meant_by(searched: str, *, for_a_list: bool = False) -> Meant:
    """Users and clients with this in their name, addresses that begin with it. Within a transaction under way.
    `for_a_list`: that too many users have it may be known from the page before."""
    common, now_ns = _common(db.engine, searched), boottime_ns()
    is_common = for_a_list and now_ns < common.until_ns
    query = text("""
        WITH RECURSIVE clients AS (
            (SELECT client_id FROM login_sessions ORDER BY client_id LIMIT 1)
            UNION ALL
            SELECT (SELECT s.client_id FROM login_sessions AS s WHERE s.client_id > c.client_id
                    ORDER BY s.client_id LIMIT 1)
            FROM clients AS c WHERE c.client_id IS NOT NULL
        ),
        known AS (SELECT client_id FROM clients WHERE client_id IS NOT NULL LIMIT :most_clients)
        SELECT
            ARRAY(SELECT id::text FROM users WHERE :users AND username ILIKE :pattern LIMIT :most_users),
            ARRAY(SELECT user_id::text FROM former_names WHERE :users AND username ILIKE :pattern LIMIT :most_users),
            ARRAY(SELECT client_id FROM known WHERE client_id ILIKE :pattern),
            (SELECT count(*) FROM known)
    """)
    values = {
        "pattern": f"%{escaped(searched)}%",
        "users": not is_common,
        "most_users": MOST_USERS + 1,
        "most_clients": MOST_CLIENTS + 1,
    }
    now, before, clients, known = db.session.execute(query, values).one()
    if max(len(now), len(before)) > MOST_USERS:
        is_common, common.until_ns = True, now_ns + COMMON_S * 1_000_000_000
    return Meant(
        None if is_common else Named(tuple(now), tuple(before)),
        tuple(clients) if known <= MOST_CLIENTS else None,
        tuple(address_ranges(searched)),
    )


def escaped(searched: str) -> str:
    """For LIKE: %, _ and \\ stand for themselves."""
    return searched.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def address_ranges(beginning: str) -> Iterator[tuple[str, str]]:
    """The first and the last address of each range whose addresses begin like this: `10.1` is 10.1.0.0 to
    10.1.255.255, 10.10.0.0 to 10.19.255.255, and 10.100.0.0 to 10.199.255.255."""
    try:
        if ":" not in beginning:
            yield from _ranges(beginning, ".", 10, 8, 4)
        elif "::" not in beginning.removesuffix("::"):
            yield from _ranges(beginning.replace("::", ":0:"), ":", 16, 16, 8)
        else:
            whole = str(ipaddress.IPv6Address(beginning))
            yield whole, whole
    except ValueError:
        return  # it is a name


def _ranges(beginning: str, separator: str, base: int, bits: int, groups: int) -> Iterator[tuple[str, str]]:
    *whole, last = beginning.split(separator)
    if len(whole) >= groups or not (whole or last):
        return
    prefix = 0
    for group in whole:
        prefix = prefix << bits | _number(group, base, bits)
    rest = bits * (groups - len(whole) - 1)
    address = ipaddress.IPv4Address if separator == "." else ipaddress.IPv6Address
    spans = _numbers_like(_number(last, base, bits), base, 2**bits) if last else [(0, 2**bits - 1)]
    for low, high in spans:
        first, after = (prefix << bits | low) << rest, ((prefix << bits | high) + 1) << rest
        yield str(address(first)), str(address(after - 1))


def _numbers_like(number: int, base: int, end: int) -> Iterator[tuple[int, int]]:
    """The numbers below `end` whose digits begin with those of `number`, as ranges."""
    low, high = number, number
    while low < end:
        yield low, min(high, end - 1)
        if number == 0:
            return
        low, high = low * base, high * base + base - 1


def _number(group: str, base: int, bits: int) -> int:
    """Raises ValueError for what is no part of an address."""
    if not (group.isascii() and group.isalnum()) or (number := int(group, base)) >= 2**bits:
        raise ValueError(group)
    return number
