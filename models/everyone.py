"""Everyone's generation: one row."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ScalarSelect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from models.database import Base, changed, db


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
