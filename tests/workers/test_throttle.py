"""Wrong sign-ins are counted once, for all workers as if there were one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.conftest import PASSWORD, StartGunicorn
from tests.gunicorn import Answer, Gunicorn, Line
from tests.workers.people import API, make_person, sign_in

WRONG = "a wrong guess"
ALLOWED = 9
"""The tenth failure within five minutes is throttled."""


def guess(server: Gunicorn | Line, username: str, password: str = WRONG, address: str = "") -> Answer:
    headers = {"X-Forwarded-For": address} if address else {}
    body = {"username": username, "password": password}
    return server.ask("POST", API + "/auth/login", body=body, headers=headers)


def test_twenty_wrong_sign_ins_of_one_address_over_four_workers_are_throttled_as_one(
    start_gunicorn: StartGunicorn,
) -> None:
    server = start_gunicorn(4)
    lines = server.lines()
    answers = [guess(lines[number % 4], f"nobody-{number}") for number in range(20)]
    assert [answer.status for answer in answers] == [401] * ALLOWED + [429] * (20 - ALLOWED)
    assert all(1 <= int(answer.headers["Retry-After"]) <= 300 for answer in answers[ALLOWED:])
    assert guess(server, "admin", PASSWORD).status == 429


def test_twenty_wrong_sign_ins_at_once_get_no_more_guesses_than_one_by_one(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(4)
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: guess(server, f"nobody-{number}").status, range(20)))
    assert sorted(answers) == [401] * ALLOWED + [429] * (20 - ALLOWED)


def test_wrong_sign_ins_of_one_name_are_throttled_from_whatever_address(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(4, LASTCALL_TRUSTED_PROXIES="1")
    make_person(server, sign_in(server), "alice")
    lines = server.lines()
    answers = [guess(lines[number % 4], "ALICE", address=f"192.0.2.{number}").status for number in range(20)]
    assert answers == [401] * ALLOWED + [429] * (20 - ALLOWED)
    assert guess(server, "alice", PASSWORD, "198.51.100.1").status == 429
    assert guess(server, "admin", PASSWORD, "198.51.100.2").status == 200, "another name from another address"
