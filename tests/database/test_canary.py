"""The canary: who does not refuse it is named, once by each process that finds out."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from lastcall.listener import CANARY
from models.canary import ALARM_AFTER_S, EVERY_S, Canary
from models.database import transaction
from tests.database.conftest import one

pytestmark = pytest.mark.usefixtures("context")

DEAF = "11111111-1111-1111-1111-111111111111"


@pytest.fixture
def alarms(psql: psycopg.Connection, caplog: pytest.LogCaptureFixture) -> Callable[[Canary, float], list[str]]:
    """What a canary that was sent so long ago makes a process say, beside a worker that has never refused one."""
    psql.execute(
        "INSERT INTO workers (id, service, host, pid, lease_s, canary, started_at) VALUES (%s, 'x', 'x', 1, 60, 0,"
        " clock_timestamp() - interval '1 hour')",
        (DEAF,),
    )
    psql.execute("SELECT raise_cutoff('user', %s, 1, clock_timestamp() + interval '1 hour')", (CANARY,))
    psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER USER")

    def said(canary: Canary, age_s: float, fenced: set[str] | None = None) -> list[str]:
        psql.execute("UPDATE workers SET renewed_at = clock_timestamp() WHERE id = %s", (DEAF,))
        psql.execute("UPDATE cutoffs SET cutoff_at = clock_timestamp() - make_interval(secs => %s)", (age_s,))
        caplog.clear()
        with transaction():
            canary.send(fenced or set())
        return [record.message for record in caplog.records if record.levelname == "CRITICAL"]

    return said


@pytest.mark.parametrize("age_s", [ALARM_AFTER_S + 0.1, ALARM_AFTER_S + 1.1, EVERY_S - 0.5])
def test_whoever_looks_late_still_names_a_worker_that_accepts_it_and_says_it_once(
    alarms: Callable[..., list[str]], age_s: float
) -> None:
    canary = Canary()
    assert alarms(canary, ALARM_AFTER_S - 1) == []
    assert [DEAF in line for line in alarms(canary, age_s)] == [True]
    assert alarms(canary, age_s) == []


def test_a_fenced_worker_accepts_nothing_and_is_not_named(alarms: Callable[..., list[str]]) -> None:
    assert alarms(Canary(), 3600, {DEAF}) == []


def test_the_next_canary_is_sent_and_the_age_is_of_the_one_that_all_have_refused(
    alarms: Callable[..., list[str]], psql: psycopg.Connection
) -> None:
    assert alarms(Canary(), 3600) != []
    assert one(psql, "SELECT min_gen FROM cutoffs WHERE subject = %s", (CANARY,)) == 2
    assert one(psql, "SELECT canary_at FROM everyone") is None
    psql.execute("UPDATE workers SET canary = 2")
    alarms(Canary(), 1)
    assert one(psql, "SELECT canary_at FROM everyone") is not None
