"""What the database answers of one token, when it is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from lastcall.ask import Asker
from lastcall.claims import Claims
from lastcall.errors import Expired
from models.purge import purge
from tests.database.conftest import add_session, add_user


@pytest.fixture
def asker(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    monkeypatch.setattr("lastcall.ask.PATIENCE_S", 10.0)
    asker = Asker(database_url)
    yield asker
    asker.close()


def foreign(user_id: str, session_id: str) -> Claims:
    """Of a token that was minted elsewhere just now."""
    now_s = int(time.time())
    return Claims(user_id, session_id, None, None, now_s - 1, now_s + 600)


@pytest.mark.usefixtures("context")
def test_a_session_that_psql_has_ended_stays_ended_for_tokens_from_elsewhere(
    psql: psycopg.Connection, asker: Asker
) -> None:
    user_id = add_user(psql, "alice")
    ended, other = add_session(psql, user_id), add_session(psql, user_id)
    psql.execute("UPDATE login_sessions SET ended_at = now() WHERE id = %s", (ended,))
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER USER")
    psql.execute("UPDATE cutoffs SET expires_at = now() - interval '1 min'")
    psql.execute("UPDATE login_sessions SET token_expires_at = now() - interval '1 min'")
    assert purge()["cutoffs"] == 1
    assert asker.refuses(foreign(user_id, ended)) == "session"
    assert asker.refuses(foreign(user_id, other)) is None


def test_a_token_that_has_expired_by_the_databases_clock_is_not_good(asker: Asker) -> None:
    """By that clock its cutoffs are purged, and whoever asks may not have heard yet that it has stepped forward."""
    good = foreign("somebody", "somewhere")
    assert asker.refuses(good) is None
    with pytest.raises(Expired):
        asker.refuses(replace(good, exp=good.iat))
    assert asker.refuses(good) is None and len(asker._connections) == 1, "an answer like any other"
