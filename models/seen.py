"""When sessions were last seen: gathered in memory, written in one statement, at most once a minute a session and
process. Whom the last minute saw is what it holds, twice as many at most."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from lastcall.claims import is_uuid
from lastcall.clock import boottime_ns

QUIET_NS = 60 * 1_000_000_000
_MANY = 100_000


class Seen:
    """`note` is a dict look-up on most requests; `take` empties what is waiting to be written."""

    def __init__(self) -> None:
        self._quiet_until_ns: dict[str, int] = {}
        self._waiting: dict[str, tuple[str, str | None, datetime]] = {}
        self._many = _MANY

    def note(self, session_id: str, ip: Callable[[], str | None]) -> None:
        """`ip` tells where from, and is asked only when it is to be written."""
        now_ns = boottime_ns()
        # What is no id of a session (a token that was minted elsewhere) would spoil the statement for all others.
        if self._quiet_until_ns.get(session_id, 0) <= now_ns and is_uuid(session_id):
            self._quiet_until_ns[session_id] = now_ns + QUIET_NS
            self._waiting[session_id] = (session_id, ip(), datetime.now(UTC))

    def take(self) -> list[tuple[str, str | None, datetime]]:
        waiting, self._waiting = self._waiting, {}
        if len(self._quiet_until_ns) > self._many:
            now_ns = boottime_ns()
            # A session that is noted meanwhile may be forgotten: it is written once more.
            self._quiet_until_ns = {id_: until for id_, until in list(self._quiet_until_ns.items()) if until > now_ns}
            self._many = max(_MANY, 2 * len(self._quiet_until_ns))
        return list(waiting.values())
