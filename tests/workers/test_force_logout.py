"""Once a force logout has returned, no worker accepts a token that it was about; and nobody else notices."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE
from tests.gunicorn import Gunicorn, Line
from tests.workers.people import API, Person, force_logout, make_person, sign_in, status_of, statuses_on
from tools.postgres import EmbeddedPostgres

ROUNDS = int(os.environ.get("LASTCALL_ROUNDS", "40"))
FRESH = 40
"""Requests on fresh connections after each force logout."""
WORKERS = 4


_names = (f"user-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    yield postgres.create_database("test_force_logout", TEMPLATE)
    postgres.drop_database("test_force_logout")


@pytest.fixture(scope="module")
def server(database_url: str, signing_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """Four workers for the whole file: no test leaves anything behind but users of its own."""
    folder = tmp_path_factory.mktemp("force_logout")
    environment = {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": database_url,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(folder / "instance"),
    }
    with Gunicorn(WORKERS, (), environment, folder / "gunicorn.log") as server:
        yield server


@pytest.fixture
def lines(server: Gunicorn) -> list[Line]:
    """One connection to each worker."""
    return server.lines()


@pytest.fixture
def admin(server: Gunicorn) -> Person:
    return sign_in(server)


@pytest.fixture
def alice(server: Gunicorn, admin: Person) -> Person:
    """A user of this test alone."""
    return make_person(server, admin, next(_names), "viewer")


def refused_everywhere_after_s(lines: list[Line], token: str, since_s: float) -> float:
    """How long after `since_s` the last worker refused the token; fails after a second."""
    waiting = list(lines)
    while waiting:
        waiting = [line for line in waiting if status_of(line, token) != 401]
        elapsed_s = time.monotonic() - since_s
        assert not waiting or elapsed_s < 1.0, f"{len(waiting)} workers accept a revoked token after a second"
    return time.monotonic() - since_s


def test_a_dead_token_is_refused_and_a_new_one_accepted_on_every_worker(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    other = make_person(server, admin, next(_names))
    for _ in range(ROUNDS):
        assert statuses_on(lines, alice.token) == [200] * WORKERS
        receipt = force_logout(server, admin, alice)
        assert statuses_on(lines, alice.token) == [401] * WORKERS
        assert {status_of(server, alice.token) for _ in range(FRESH)} == {401}
        assert statuses_on(lines, other.token) == [200] * WORKERS
        alice = sign_in(server, alice.username)
        assert receipt.status == 200, receipt.text
        assert receipt.json["in_force"] is True
        assert receipt.json["sessions_ended"] == 1
        workers = receipt.json["workers"]
        assert (workers["live"], workers["confirmed"], workers["fenced"]) == (WORKERS, WORKERS, 0)
    assert statuses_on(lines, alice.token) == [200] * WORKERS


def test_each_worker_may_be_the_one_that_revokes(server: Gunicorn, lines: list[Line], admin: Person) -> None:
    for revoking in lines:
        person = make_person(server, admin, next(_names))
        assert force_logout(revoking, admin, person).status == 200
        assert statuses_on(lines, person.token) == [401] * WORKERS


def test_a_revoked_token_is_told_so_with_the_reason(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    path = f"{API}/admin/sessions/{alice.user_id}"
    assert server.ask("DELETE", path, token=admin.token, body={"reason": "Lost laptop"}).status == 200
    for line in lines:
        answer = line.ask("GET", f"{API}/auth/me", token=alice.token)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (answer.json["code"], answer.json["reason"]) == ("token_revoked", "Lost laptop")


def test_old_out_and_new_in_within_the_same_second(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    pairs = 0
    for _ in range(20):
        old, receipt, alice = alice, force_logout(server, admin, alice), sign_in(server, alice.username)
        assert receipt.status == 200
        assert statuses_on(lines, old.token) == [401] * WORKERS
        assert statuses_on(lines, alice.token) == [200] * WORKERS
        pairs += old.issued_s == alice.issued_s
    assert pairs, "no two sign-ins fell into the same second: nothing was tested"


def test_repeating_a_force_logout_is_harmless_and_says_so(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    assert force_logout(server, admin, alice).json["already_ended"] is False
    again = force_logout(server, admin, alice)
    assert (again.status, again.json["already_ended"], again.json["sessions_ended"]) == (200, True, 0)
    assert statuses_on(lines, alice.token) == [401] * WORKERS


def test_one_session_ends_everywhere_and_the_users_other_one_goes_on(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    laptop, phone = alice, sign_in(server, alice.username)
    path = f"{API}/admin/sessions/{laptop.user_id}/{laptop.session_id}"
    assert server.ask("DELETE", path, token=admin.token).status == 200
    assert statuses_on(lines, laptop.token) == [401] * WORKERS
    assert statuses_on(lines, phone.token) == [200] * WORKERS


def test_signing_out_is_in_force_everywhere_once_it_has_returned(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    assert server.ask("POST", f"{API}/auth/logout", token=alice.token).status == 204
    assert statuses_on(lines, alice.token) == [401] * WORKERS


def test_everyone_is_out_everywhere_but_the_admin_who_keeps_himself(
    server: Gunicorn, lines: list[Line], admin: Person
) -> None:
    people = [make_person(server, admin, next(_names)) for _ in range(5)]
    answer = server.ask("DELETE", f"{API}/admin/sessions?keep_current=true", token=admin.token)
    assert answer.status == 200, answer.text
    for person in [*people, admin]:
        assert statuses_on(lines, person.token) == [401] * WORKERS
    assert statuses_on(lines, answer.json["tokens"]["access_token"]) == [200] * WORKERS
    assert statuses_on(lines, sign_in(server, people[0].username).token) == [200] * WORKERS


def test_a_new_password_ends_every_other_session_everywhere(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person
) -> None:
    laptop, phone = alice, sign_in(server, alice.username)
    body = {"current": PASSWORD, "new": "another good passphrase"}
    answer = server.ask("POST", f"{API}/auth/password", token=phone.token, body=body)
    assert answer.status == 200, answer.text
    assert statuses_on(lines, laptop.token) == [401] * WORKERS
    assert statuses_on(lines, phone.token) == [401] * WORKERS
    assert statuses_on(lines, answer.json["access_token"]) == [200] * WORKERS


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM users WHERE id = %s",
        "DELETE FROM user_roles WHERE user_id = %s",
        "UPDATE users SET disabled_at = now() WHERE id = %s",
        "UPDATE users SET password_hash = '!' WHERE id = %s",
        "UPDATE users SET gen = gen + 1 WHERE id = %s",
    ],
)
def test_a_statement_of_a_stranger_is_in_force_everywhere_at_once(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person, database_url: str, statement: str
) -> None:
    slowest_s = 0.0
    for _ in range(5):
        person = make_person(server, admin, next(_names), "viewer")
        assert statuses_on(lines, person.token) == [200] * WORKERS
        with psycopg.connect(database_url, autocommit=True) as psql:
            psql.execute(statement, (person.user_id,))
            slowest_s = max(slowest_s, refused_everywhere_after_s(lines, person.token, time.monotonic()))
    assert statuses_on(lines, alice.token) == [200] * WORKERS
    assert slowest_s < 0.5, f"the promise is 100 ms; it took {slowest_s * 1000:.0f} ms"


def test_a_lost_role_that_is_not_to_revoke_leaves_the_sessions_alone(
    server: Gunicorn, lines: list[Line], admin: Person, alice: Person, database_url: str
) -> None:
    with psycopg.connect(database_url) as psql:
        psql.execute("SET LOCAL lastcall.revoke_on_role_removal = off")
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
    bob = make_person(server, admin, next(_names))
    assert force_logout(server, admin, bob).status == 200  # every worker has read what came before this
    assert statuses_on(lines, alice.token) == [200] * WORKERS
