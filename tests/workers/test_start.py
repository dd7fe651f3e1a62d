"""Workers that come and go: none accepts before it has read, none is deaf, none is waited for after it has gone."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from tests.conftest import PASSWORD, StartGunicorn
from tests.gunicorn import Gunicorn, Line
from tests.workers.people import API, Person, force_logout, make_person, sign_in, status_of, statuses_on

ROUNDS = int(os.environ.get("LASTCALL_ROUNDS", "10"))
DEADLINE_S = 30.0


class Crowd:
    """Threads that ask with one token on fresh connections, without a pause, and count the answers."""

    def __init__(self, server: Gunicorn, token: str, threads: int = 3) -> None:
        self.answers: Counter[int | str] = Counter()
        self._server, self._token = server, token
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                answer: int | str = status_of(self._server, self._token)
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
            self.answers[answer] += 1


def pids(server: Gunicorn) -> set[int]:
    return {line.worker_pid() for line in server.lines()}


def wait_for_rows(psql: psycopg.Connection, count: int) -> None:
    """Until the table `workers` has so many rows."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := psql.execute("SELECT pid FROM workers").fetchall()) is not None and len(found) != count:
        assert time.monotonic() < deadline, f"{len(found)} workers are registered, not {count}"


def revoke_one(server: Gunicorn, admin: Person, lines: list[Line], username: str) -> Person:
    """A user signs in, is signed out, and is refused on each of `lines`."""
    person = make_person(server, admin, username)
    answer = force_logout(server, admin, person)
    assert answer.status == 200, answer.text
    assert statuses_on(lines, person.token) == [401] * len(lines)
    return person


def try_to_revoke(server: Gunicorn, admin: Person, username: str) -> Person | None:
    """As `revoke_one`, on any worker, while some of them may not have read yet: None when one of those answered."""
    body = {"username": username, "password": PASSWORD}
    if server.ask("POST", API + "/admin/users", token=admin.token, body=body).status == 503:
        return None
    person = sign_in(server, username)
    answer = force_logout(server, admin, person)
    assert answer.status in (200, 503), answer.text
    if answer.status == 503:
        return None
    assert answer.json["in_force"] is True
    seen = {status_of(server, person.token) for _ in range(10)}
    assert seen <= {401, 503}, "503 is what a worker says that has not read yet"
    return person


def test_a_worker_that_starts_during_revocations_never_accepts(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection
) -> None:
    server = start_gunicorn(2)
    admin = sign_in(server)
    names = (f"user-{number}" for number in itertools.count())
    dead: list[Person] = []
    for workers in (3, 4):
        server.signal(signal.SIGTTIN)
        server.workers = workers
        while not dead or len(psql.execute("SELECT FROM workers WHERE snapshot IS NOT NULL").fetchall()) < workers:
            person = try_to_revoke(server, admin, next(names))
            dead += [person] if person else []
    lines = server.lines()
    assert len(lines) == 4
    for person in dead:
        assert statuses_on(lines, person.token) == [401] * 4
    receipt = force_logout(server, admin, dead[0]).json
    assert (receipt["workers"]["live"], receipt["workers"]["confirmed"]) == (4, 4)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["each-loads", "preload"])
def test_a_reload_under_load_loses_no_request_and_no_revocation(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection, options: tuple[str, ...]
) -> None:
    server = start_gunicorn(2, *options)
    admin = sign_in(server)
    bystander = make_person(server, admin, "bystander")
    before = [revoke_one(server, admin, server.lines(), f"before-{number}") for number in range(3)]
    old = pids(server)
    with Crowd(server, bystander.token) as crowd:
        server.signal(signal.SIGHUP)
        names = (f"during-{number}" for number in itertools.count())
        deadline = time.monotonic() + DEADLINE_S
        during: list[Person] = []
        while {row[0] for row in psql.execute("SELECT pid FROM workers")} & old:
            assert time.monotonic() < deadline, "the old workers do not go"
            person = try_to_revoke(server, admin, next(names))
            during += [person] if person else []
    assert crowd.answers.keys() <= {200, 503}, crowd.answers
    assert crowd.answers[200] > crowd.answers[503]
    server.wait_until_ready()
    lines = server.lines()
    assert pids(server).isdisjoint(old)
    for person in [*before, *during]:
        assert statuses_on(lines, person.token) == [401] * 2
    assert statuses_on(lines, bystander.token) == [200] * 2
    revoke_one(server, admin, lines, "after")


def test_every_preloaded_worker_has_a_listener_of_its_own(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection
) -> None:
    server = start_gunicorn(4, "--preload")
    admin = sign_in(server)
    lines = server.lines()
    assert {row[0] for row in psql.execute("SELECT pid FROM workers")} == {line.worker_pid() for line in lines}
    for number in range(ROUNDS):
        revoke_one(server, admin, lines, f"user-{number}")


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["each-loads", "preload"])
def test_workers_that_are_replaced_all_the_time_lose_no_request_and_none_is_deaf(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection, options: tuple[str, ...]
) -> None:
    server = start_gunicorn(3, "--max-requests", "50", "--max-requests-jitter", "25", *options)
    admin = sign_in(server)
    bystander = make_person(server, admin, "bystander")
    old = {row[0] for row in psql.execute("SELECT pid FROM workers")}
    seen = set(old)
    revoked = 0
    with Crowd(server, bystander.token, threads=1) as crowd:
        deadline = time.monotonic() + 2 * DEADLINE_S
        for number in itertools.count():
            seen |= {row[0] for row in psql.execute("SELECT pid FROM workers")}
            if number >= ROUNDS and len(seen - old) >= 3:
                break
            assert time.monotonic() < deadline, f"only {len(seen - old)} workers were replaced"
            revoked += try_to_revoke(server, admin, f"user-{number}") is not None
    assert revoked
    assert crowd.answers.keys() <= {200, 503}, crowd.answers
    assert crowd.answers[200] > crowd.answers[503], crowd.answers


def test_the_rows_of_workers_that_stopped_in_order_are_gone(
    start_gunicorn: StartGunicorn, psql: psycopg.Connection
) -> None:
    server = start_gunicorn(3)
    wait_for_rows(psql, 3)
    server.signal(signal.SIGTTOU)
    wait_for_rows(psql, 2)
    server.workers = 2
    admin = sign_in(server)
    person = make_person(server, admin, "alice")
    workers = force_logout(server, admin, person).json["workers"]
    assert (workers["live"], workers["confirmed"], workers["fenced"]) == (2, 2, 0)
    assert workers["elapsed_ms"] < 1000, "nobody waits for a worker that has gone"
    server.stop()
    wait_for_rows(psql, 0)


def test_no_control_socket_is_opened_in_the_home_folder(start_gunicorn: StartGunicorn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    server = start_gunicorn(1, HOME=str(home), XDG_RUNTIME_DIR="")
    server.stop()
    assert "ontrol socket" not in server.log.read_text()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("hops", ["0", "1"])
def test_a_header_about_tls_is_believed_only_where_a_proxy_was_named(start_gunicorn: StartGunicorn, hops: str) -> None:
    """gunicorn itself would believe whoever comes from this host."""
    server = start_gunicorn(1, LASTCALL_TRUSTED_PROXIES=hops)
    said = server.ask("GET", "/healthz", headers={"X-Forwarded-Proto": "https", "SCRIPT_NAME": "/elsewhere"})
    assert said.status == 200
    assert ("Strict-Transport-Security" in said.headers) is (hops == "1")
    for name in ("X-Forwarded-Protocol", "X-Forwarded-Ssl"):
        said = server.ask("GET", "/healthz", headers={name: "ssl" if name.endswith("ocol") else "on"})
        assert said.status == 200 and "Strict-Transport-Security" not in said.headers, name
