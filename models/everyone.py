"""Everyone's generation: one row."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ScalarSelect, select, text
from sqlalchemy.orm import Mapped, mapped_column

from models.database import Base, db


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
    """Let cutoffs know how long a token may live that is being minted at this moment (schema.sql: `cutoff_expiry`).

    A process that starts only raises it: hosts may differ, and the longest counts. Who prepares the database sets it.
    """
    allowed = "<>" if exactly else "<"
    db.session.execute(
        text(f"UPDATE everyone SET access_ttl_s = :ttl WHERE access_ttl_s {allowed} :ttl"),
        {"ttl": seconds},
    )
