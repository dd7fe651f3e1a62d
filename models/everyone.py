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


def note_access_ttl(seconds: int) -> None:
    """Let cutoffs know how long a token may live that is being minted at this moment (schema.sql: `cutoff_expiry`).

    It only rises: hosts may differ, and the longest counts.
    """
    db.session.execute(text("UPDATE everyone SET access_ttl_s = :ttl WHERE access_ttl_s < :ttl"), {"ttl": seconds})
