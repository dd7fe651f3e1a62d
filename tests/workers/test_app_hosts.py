"""App hosts come and go on one database: whoever revokes meanwhile waits for those that are there, and for no other."""

from __future__ import annotations

import threading

from tests.conftest import PASSWORD, StartGunicorn
from tests.gunicorn import Answer, Gunicorn
from tests.workers.people import API, Person, force_logout, make_person, sign_in, statuses_on

HERE, THERE = 2, 1
"""Workers of each host."""
LEASE_MS = 2000


class Revoking:
    """Somebody who signs in and is signed out again, all the time; every receipt is kept."""

    def __init__(self, server: Gunicorn, admin: Person, username: str) -> None:
        self.receipts: list[Answer] = []
        self.outlived: list[int] = []
        self._server, self._admin, self._username = server, admin, username
        self._over, self._one_more = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._revoke)

    def __enter__(self) -> Revoking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _revoke(self) -> None:
        lines = self._server.lines()
        while not self._over.is_set():
            person = sign_in(self._server, self._username, PASSWORD)
            self.receipts.append(force_logout(self._server, self._admin, person))
            self.outlived += [status for status in statuses_on(lines, person.token) if status != 401]
            self._one_more.set()

    def wait_for_the_next(self) -> None:
        """Until a revocation that has not begun yet is over."""
        for _ in range(2):
            self._one_more.clear()
            assert self._one_more.wait(30.0), "nothing is revoked any more"


def test_an_app_host_is_added_and_taken_away_while_people_are_signed_out(start_gunicorn: StartGunicorn) -> None:
    here = start_gunicorn(HERE)
    admin = sign_in(here)
    make_person(here, admin, "busy")
    alice = make_person(here, admin, "alice")
    with Revoking(here, admin, "busy") as revoking:
        revoking.wait_for_the_next()
        there = start_gunicorn(THERE)
        revoking.wait_for_the_next()
        assert revoking.receipts[-1].json["workers"]["live"] == HERE + THERE, "the new host is waited for"
        # A token of the one on the other, and the other way round.
        elsewhere = sign_in(there, alice.username, PASSWORD)
        lines = [*here.lines(), *there.lines()]
        for person, revoked_on in ((alice, there), (elsewhere, here)):
            assert statuses_on(lines, elsewhere.token) == [200] * (HERE + THERE)
            path = f"{API}/admin/sessions/{person.user_id}/{person.session_id}"
            assert revoked_on.ask("DELETE", path, token=admin.token).json["workers"]["confirmed"] == HERE + THERE
            assert statuses_on(lines, person.token) == [401] * (HERE + THERE)
        there.stop()
        revoking.wait_for_the_next()
        assert revoking.receipts[-1].json["workers"]["live"] == HERE, "who has gone in order is not waited for"
    assert revoking.outlived == []
    assert {(answer.status, answer.json.get("in_force")) for answer in revoking.receipts} == {(200, True)}
    slowest_ms = max(answer.json["workers"]["elapsed_ms"] for answer in revoking.receipts)
    assert slowest_ms < LEASE_MS, f"a receipt took {slowest_ms} ms: somebody was waited for who was not there"
