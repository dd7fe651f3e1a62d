"""A second region: a PostgreSQL of its own, to which the cutoffs come by logical replication (docs/scaling.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from app import create_app
from lastcall.listener import CANARY, CHANNEL
from models.canary import EVERY_S
from models.database import db
from models.purge import purge
from settings import from_environment
from tests.conftest import FAST_ENVIRONMENT
from tests.faults.bench import DEADLINE_S, ROUNDS, SLACK_S
from tests.faults.history import ACCEPTED, REFUSED
from tests.faults.regions import WORKERS, Regions, command_of_the_page, two_regions, wait_until
from tests.faults.report import REPORT
from tests.gunicorn import ROOT, Line
from tests.workers.people import force_logout, make_person, sign_in, statuses_on


def refused_everywhere_after_s(lines: list[Line], token: str, since_s: float) -> float:
    while set(statuses_on(lines, token)) != {REFUSED}:
        assert time.monotonic() - since_s < DEADLINE_S, "a token that was revoked in the other region is still accepted"
    return time.monotonic() - since_s


@pytest.fixture(scope="module")
def regions(signing_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with two_regions(tmp_path_factory.mktemp("regions"), signing_key, fast=True) as both:
        yield both


def test_a_token_that_is_revoked_in_one_region_is_refused_in_the_other(regions: Regions) -> None:
    figures = REPORT.begin(
        "a second region, joined by logical replication of cutoffs", "refused there as well; how long after the receipt"
    )
    admin, lines = sign_in(regions.server), regions.service.lines()
    with regions.far_away() as psql:
        for number in range(ROUNDS):
            person = make_person(regions.server, admin, f"traveller-{number}")
            assert statuses_on(lines, person.token) == [ACCEPTED] * WORKERS
            answer = force_logout(regions.server, admin, person)
            took_s = refused_everywhere_after_s(lines, person.token, time.monotonic())
            assert answer.status == 200, answer.text
            assert answer.json["workers"]["live"] == WORKERS, "the receipt counts the workers of its own region"
            assert statuses_on(lines, sign_in(regions.server, person.username).token) == [ACCEPTED] * WORKERS
            figures.revocations += 1
            figures.stale_s = max(figures.stale_s or 0.0, took_s)
        ours = psql.execute("SELECT bool_and(pg_visible_in_snapshot(xid, pg_current_snapshot())) FROM cutoffs")
        assert ours.fetchone() == (True,), "each row carries a transaction of the server that it has come to"
        age = psql.execute(command_of_the_page("SELECT extract").encode()).fetchone()
        assert age is not None and 0 <= age[0] < EVERY_S + SLACK_S + 1
    assert figures.stale_s is not None
    assert figures.stale_s < SLACK_S, f"it took {figures.stale_s:.2f} s"
    figures.outcome = "held"


def test_what_arrives_is_announced_there_be_it_new_or_raised(regions: Regions) -> None:
    """Both triggers of `cutoffs` are ENABLE ALWAYS: the workers there need not wait for their next round."""
    admin = sign_in(regions.server)
    person = make_person(regions.server, admin, "twice")
    with regions.far_away() as psql:
        psql.execute(f"LISTEN {CHANNEL}".encode())
        for gen in (1, 2):
            assert force_logout(regions.server, admin, person).status == 200
            arrived = "SELECT EXISTS (SELECT FROM cutoffs WHERE subject = %s AND min_gen = %s)"
            wait_until(psql, arrived, person.user_id, gen)
            assert [notify.channel for notify in psql.notifies(timeout=DEADLINE_S, stop_after=1)] == [CHANNEL]
            list(psql.notifies(timeout=0))  # the canary's, which may have come as well


def test_everyone_and_a_session_are_revoked_in_the_other_region_too(regions: Regions) -> None:
    admin, lines = sign_in(regions.server), regions.service.lines()
    person = make_person(regions.server, admin, "guest")
    other = sign_in(regions.server, person.username)
    path = f"/api/v1/admin/sessions/{person.user_id}/{person.session_id}"
    assert regions.server.ask("DELETE", path, token=admin.token).status == 200
    refused_everywhere_after_s(lines, person.token, time.monotonic())
    assert statuses_on(lines, other.token) == [ACCEPTED] * WORKERS
    assert regions.server.ask("DELETE", "/api/v1/admin/sessions", token=admin.token).status == 200
    refused_everywhere_after_s(lines, other.token, time.monotonic())
    assert statuses_on(lines, sign_in(regions.server).token) == [ACCEPTED] * WORKERS


def test_a_receipt_says_nothing_of_a_region_that_is_cut_off(regions: Regions) -> None:
    """That is the limit of it: over there a revoked token is good until the line is back."""
    admin, lines = sign_in(regions.server), regions.service.lines()
    person = make_person(regions.server, admin, "stranded")
    regions.line.refuse()
    try:
        answer = force_logout(regions.server, admin, person)
        assert (answer.status, answer.json["in_force"]) == (200, True), answer.text
        assert statuses_on(lines, person.token) == [ACCEPTED] * WORKERS
    finally:
        regions.line.heal()
    refused_everywhere_after_s(lines, person.token, time.monotonic())


def test_rows_that_meet_are_merged_by_the_maximum_also_when_one_subscribes_anew(regions: Regions) -> None:
    with regions.at_home() as home, regions.far_away() as away:
        insert = "INSERT INTO cutoffs (scope, subject, min_gen) VALUES ('user', %s, %s)"
        away.execute(insert, ("higher there", 9))
        away.execute(insert, ("lower there", 1))
        away.execute("DROP SUBSCRIPTION lastcall")
        for subject in ("higher there", "lower there", "only at home"):
            home.execute(insert, (subject, 5))
        regions.subscribe()
        home.execute(insert, ("the last one", 5))
        wait_until(away, "SELECT EXISTS (SELECT FROM cutoffs WHERE subject = 'the last one')")
        found = away.execute("SELECT subject, min_gen FROM cutoffs WHERE subject LIKE %s", ("% %",)).fetchall()
        assert dict(found) == {"higher there": 9, "lower there": 5, "only at home": 5, "the last one": 5}


def test_cutoffs_are_purged_at_home_and_nowhere_else(regions: Regions, signing_key: str) -> None:
    """A row that only the other region had purged would be missing when it is raised again, and stay so."""
    environment = {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": regions.away.url(),
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(ROOT),
    }
    app = create_app(from_environment(environment))
    with regions.at_home() as home, regions.far_away() as away:
        home.execute(
            "INSERT INTO cutoffs (scope, subject, expires_at) VALUES ('user', 'over', now() + interval '0.3 s')"
        )
        wait_until(away, "SELECT now() > expires_at FROM cutoffs WHERE subject = 'over'")
        away.execute("DELETE FROM cutoffs WHERE subject = %s", (CANARY,))
        with app.app_context():
            assert purge()["cutoffs"] == 0
            app.extensions["lastcall_server"].housekeeper.tick()
            db.engine.dispose()
        assert away.execute("SELECT FROM cutoffs WHERE subject = %s", (CANARY,)).fetchone() is None, (
            "one is sent at home"
        )
        wait_until(home, "SELECT NOT EXISTS (SELECT FROM cutoffs WHERE subject = 'over')")  # its housekeeper does it
        wait_until(away, "SELECT NOT EXISTS (SELECT FROM cutoffs WHERE subject = 'over')")
