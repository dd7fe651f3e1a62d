"""Cutoffs: what is revoked, in this process's memory, and the lease that says how long it may be believed.

It knows no database and no tokens: one thread (the listener's) writes, any number read without a lock.
Every level only ever rises, so duplicates, reordering and replays are harmless (tests/unit/test_cutoffs.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple
from weakref import WeakSet

from lastcall.claims import Claims
from lastcall.clock import boottime_ns

Scope = Literal["everyone", "user", "session"]
Stale = Literal["ask", "refuse"]
"""What a process does whose lease is out: ask the database for each request, or refuse."""
LEASE_S = 2.0
"""How long cutoffs are believed after a successful read, where nothing else is asked for (seconds)."""

# A user's cutoff is one integer, so that a million of them stay small: expiry (s) | cutoff time (us) | generation.
_GEN_BITS, _TIME_BITS = 53, 52
_GEN_MASK, _TIME_MASK = (1 << _GEN_BITS) - 1, (1 << _TIME_BITS) - 1
_BUCKET_S = 16


Row = tuple[Scope, str, int, int, int]
"""A `Cutoff` without names for its parts, as the database gives it: to name those of a million takes half a second."""


class Cutoff(NamedTuple):
    """One row of the table `cutoffs`. Times are microseconds since 1970 UTC."""

    scope: Scope
    subject: str
    min_gen: int
    cutoff_at_us: int
    expires_at_us: int


class Cutoffs:
    """Everyone's, users' and sessions' cutoffs, with the lease of the worker that holds them."""

    def __init__(self) -> None:
        _of_this_process.add(self)
        self.everyone_gen = 0
        self.everyone_at_us = 0
        self._users: dict[str, int] = {}
        self._sessions: dict[str, int] = {}
        self._due: dict[int, list[str]] = {}
        self.horizon_us = 0
        """The newest cutoff time that was forgotten: a token without generations from before it must be asked about."""
        self.newest_us = 0
        """The latest time that the database's clock has shown, also before it stepped back."""
        self.lease_until_ns = 0
        """Until when, on `boottime_ns()`, this object may be believed. 0: not at all."""
        self.loaded = False
        """Whether everything has been read once, so that there was a lease."""
        self.fenced = False
        """Whether nothing is believed until everything has been read anew."""
        self.look: threading.Event | None = None
        """While the listener looks at what a NOTIFY is about: set once that is applied. A check that comes meanwhile
        waits for it, so that it already sees the cutoff, and leaves the interpreter to the listener."""
        self.wall_offset_ns = time.time_ns() - boottime_ns()
        """The database's clock minus `boottime_ns()`: all workers judge `exp` by the one clock that they share."""

    def __bool__(self) -> bool:
        return True  # an empty one is one all the same

    def __len__(self) -> int:
        return len(self._users) + len(self._sessions) + (self.everyone_at_us > 0)

    def now_s(self) -> float:
        """The time, by the database's clock as it was read last (seconds since 1970 UTC)."""
        return (boottime_ns() + self.wall_offset_ns) / 1e9

    def lease_is_valid(self) -> bool:
        return boottime_ns() < self.lease_until_ns

    @property
    def state(self) -> str:
        """`starting`, `live`, `stale` or `fenced`."""
        if self.fenced:
            return "fenced"
        if self.lease_is_valid():
            return "live"
        return "stale" if self.loaded else "starting"

    def advance(self, cutoff: Row) -> bool:
        """Take one cutoff in: each of its parts by the maximum of the old and the new. Returns whether any rose."""
        scope, subject, gen, at_us, expires_at_us = cutoff
        if scope == "everyone":
            before = self.everyone_gen, self.everyone_at_us
            self.everyone_gen = max(self.everyone_gen, gen)
            self.everyone_at_us = max(self.everyone_at_us, at_us)
            return before != (self.everyone_gen, self.everyone_at_us)
        old_expires_s, expires_s = -1, -(-expires_at_us // 1_000_000)
        if scope == "session":
            held = self._sessions
            old = held.get(subject)
            if old is not None:
                old_expires_s = old
                expires_s = max(old, expires_s)
            new = expires_s
        else:
            held = self._users
            old = held.get(subject)
            if old is not None:
                gen = max(old & _GEN_MASK, gen)
                at_us = max(old >> _GEN_BITS & _TIME_MASK, at_us)
                old_expires_s = old >> _GEN_BITS + _TIME_BITS
                expires_s = max(old_expires_s, expires_s)
            new = (expires_s << _TIME_BITS | at_us) << _GEN_BITS | gen
        if new == old:
            return False  # rows may be read again and again: noted once
        held[subject] = new
        bucket = expires_s // _BUCKET_S
        if old_expires_s // _BUCKET_S != bucket:
            due = self._due.get(bucket)
            if due is None:
                self._due[bucket] = [subject]
            else:
                due.append(subject)
        return True

    def refuses(self, claims: Claims) -> Scope | None:
        """The level that refuses these claims, or None. All levels count: the first that refuses is enough."""
        user_gen, everyone_gen = claims.user_gen, claims.everyone_gen
        user = self._users.get(claims.sub)
        if user_gen is None or everyone_gen is None:
            # Minted elsewhere: by time, and a whole second that is not after the cutoff is refused. No leeway.
            issued_us = claims.iat * 1_000_000
            if issued_us <= self.everyone_at_us:
                return "everyone"
            if user is not None and issued_us <= user >> _GEN_BITS & _TIME_MASK:
                return "user"
        else:
            if everyone_gen < self.everyone_gen:
                return "everyone"
            if user is not None and user_gen < user & _GEN_MASK:
                return "user"
        return "session" if claims.sid in self._sessions else None

    def must_be_asked(self, claims: Claims) -> bool:
        """Whether these claims might be covered by a cutoff that was forgotten: only tokens without generations,
        whose lifetimes no session row records, and only until the longest lifetime is over."""
        return claims.user_gen is None and claims.iat * 1_000_000 <= self.horizon_us

    def all_held(self) -> Iterator[tuple[Scope, str, int]]:
        """What is held of users and sessions, as (scope, subject, generation): for a database that has lost it."""
        yield from (("user", subject, user & _GEN_MASK) for subject, user in list(self._users.items()))
        yield from (("session", subject, 0) for subject in list(self._sessions))

    def forget(self, now_s: float) -> int:
        """Drop the cutoffs whose last token has expired. Returns how many."""
        dropped = 0
        for bucket in [bucket for bucket in self._due if (bucket + 1) * _BUCKET_S <= now_s]:
            for subject in self._due.pop(bucket):
                user = self._users.get(subject)
                if user is not None and user >> _GEN_BITS + _TIME_BITS <= now_s:
                    self.horizon_us = max(self.horizon_us, user >> _GEN_BITS & _TIME_MASK)
                    del self._users[subject]
                    dropped += 1
                expires_s = self._sessions.get(subject)
                if expires_s is not None and expires_s <= now_s:
                    self.horizon_us = max(self.horizon_us, expires_s * 1_000_000)
                    del self._sessions[subject]
                    dropped += 1
        return dropped

    def renew_lease(self, until_ns: int) -> None:
        """Believe what is here until `until_ns` on `boottime_ns()`. Only after everything read has been applied."""
        self.loaded = True
        self.fenced = False
        self.lease_until_ns = until_ns

    def fence(self) -> None:
        """Believe nothing from here until everything has been read anew."""
        self.lease_until_ns = 0
        self.fenced = True


_of_this_process: WeakSet[Cutoffs] = WeakSet()


def _believe_nothing() -> None:
    """In a fork nobody listens, until a listener starts there: its parent's lease is not its own."""
    for cutoffs in _of_this_process:
        cutoffs.lease_until_ns, cutoffs.look = 0, None


os.register_at_fork(after_in_child=_believe_nothing)
