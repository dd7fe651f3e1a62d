"""How the core reads the rows of `cutoffs`."""

from __future__ import annotations

import psycopg
import pytest

from lastcall.cutoffs import Cutoffs
from lastcall.listener import CutoffListener
from lastcall.rows import microseconds
from tests.database.conftest import one


@pytest.mark.parametrize("year", [1970, 2026, 2038, 2099])
def test_times_are_read_to_the_microsecond(psql: psycopg.Connection, year: int) -> None:
    """The double that `date_part` gives is a little off; `extract` gives a numeric, which is exact."""
    query = f"""
        SELECT count(*) FILTER (WHERE {microseconds("at")} <> (extract(epoch FROM at) * 1000000)::bigint), count(*)
        FROM (
            SELECT make_timestamptz(%s, 1, 1, 0, 0, 0, 'UTC') + floor(random() * 31e12) * interval '1 microsecond' AS at
            FROM generate_series(1, 100000)
        ) AS times
    """
    row = psql.execute(query, (year,)).fetchone()
    assert row == (0, 100_000)


@pytest.mark.parametrize("at_once", [True, False], ids=["in pieces", "one by one"])
def test_everything_is_read_at_a_start_whatever_libpq_there_is(
    psql: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_stream_chunked", lambda check=False: at_once)
    psql.execute(
        "SELECT count(raise_cutoff('user', 'user ' || n, n, now() + interval '1 h')) FROM generate_series(1, 3000) AS n"
    )
    assert one(psql, "SELECT count(*) FROM cutoffs") == 3000
    listener = CutoffListener(database_url, Cutoffs())
    listener.ensure_running()
    try:
        assert listener.wait_until_live()
        held = {subject: gen for _, subject, gen in listener.cutoffs.all_held()}
        assert held == {f"user {number}": number for number in range(1, 3001)}
    finally:
        listener.stop()
