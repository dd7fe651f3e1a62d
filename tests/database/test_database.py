"""The application's connections: PostgreSQL ends those that are left behind, and the pool never uses one of them."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from models.database import ENGINE_OPTIONS, db, transaction


@pytest.mark.usefixtures("context")
def test_the_pool_gives_up_a_connection_before_postgresql_does() -> None:
    with transaction():
        ends_after_ms = db.session.scalar(
            text("SELECT setting::int FROM pg_settings WHERE name = 'idle_session_timeout'")
        )
    assert ends_after_ms > ENGINE_OPTIONS["pool_recycle"] * 1000 > 0
