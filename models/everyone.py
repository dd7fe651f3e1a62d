"""Everyone's generation: one row."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from sqlalchemy import ScalarSelect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from lastcall.clock import boottime_ns
from models.database import Base, changed, db, transaction
from models.database_errors import Busy

_TRY_AGAIN_S = 5
_try_after_ns = 0
"""When this process may try again to raise the lifetime, on `boottime_ns()`."""


class Everyone(Base):
    __tablename__ = "everyone"

    one: Mapped[bool] = mapped_column(primary_key=True)
    gen: Mapped[int]
    access_ttl_s: Mapped[int]
    purged_until: Mapped[datetime]


def everyone_gen() -> ScalarSelect[int]:
    """Everyone's generation now, for use within another query."""
    return select(Everyone.gen).scalar_subquery()


def note_access_ttl(seconds: int, *, exactly: bool = False) -> None:
    """Let cutoffs know how long a token may live that is being minted at this moment (schema.sql: `cutoff_expiry`); no
    token lives longer (models/minting.py). Within a transaction under way; raises Busy.

    A process only raises it: hosts may differ, and the longest counts. Who prepares the database sets it. When this
    commits, nobody is minting or revoking who has read another number.
    """
    allowed = "<>" if exactly else "<"
    noted = text(f"UPDATE everyone SET access_ttl_s = :ttl WHERE access_ttl_s {allowed} :ttl")
    if changed(noted, {"ttl": seconds}):
        db.session.execute(text("LOCK TABLE login_sessions, cutoffs IN EXCLUSIVE MODE"))


def raise_access_ttl(seconds: int) -> None:
    """The same for a sign-in, in a transaction of its own, which waits briefly: behind its lock all others wait. Where
    somebody holds one (a forgotten BEGIN), this process leaves it for some seconds; the mint keeps to what is noted."""
    global _try_after_ns
    now_ns = boottime_ns()
    if now_ns < _try_after_ns:
        return
    _try_after_ns = now_ns + _TRY_AGAIN_S * 1_000_000_000  # the other threads do not try meanwhile
    with suppress(Busy):
        with transaction() as session:
            session.execute(text("SET LOCAL lock_timeout = '100ms'"))
            note_access_ttl(seconds)
        _try_after_ns = 0
