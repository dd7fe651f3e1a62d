"""Any number of threads check while one applies: no lock, with the GIL or without it (PEP 703)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from lastcall.cutoffs import Cutoff
from lastcall.errors import Revoked
from lastcall.guard import Guard
from tests.unit.by_hand import good_payload, guard_for, token

THREADS, USERS = 4, 60


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Where there is a GIL, it changes hands all the time."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(0.000_01)
    yield
    sys.setswitchinterval(usual_s)


class Checker(threading.Thread):
    """Checks the present token without a pause. `checks` counts those that are over, `refused` what they found."""

    def __init__(self, guard: Guard, raw: str) -> None:
        super().__init__()
        self.raw, self.refused, self.checks = raw, False, 0
        self.over, self.odd = threading.Event(), []
        self._guard = guard

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self._guard.check(self.raw)
                self.refused = False
            except Revoked:
                self.refused = True
            except Exception as error:
                self.odd.append(error)
            self.checks += 1

    def wait_for_a_whole_check(self) -> None:
        """One may be under way."""
        since = self.checks
        while self.checks < since + 2 and self.is_alive():
            pass


def test_no_check_that_starts_after_a_cutoff_was_applied_accepts_the_token() -> None:
    guard, _ = guard_for()
    subjects = [f"00000000-0000-4000-8000-{number:012}" for number in range(1, USERS + 1)]
    assert good_payload(sub=subjects[0])["sub"] == subjects[0]
    raws = [token(sub=subject) for subject in subjects]
    gen = int(guard.check(raws[0]).user_gen or 0) + 1
    checkers = [Checker(guard, raws[0]) for _ in range(THREADS)]
    for checker in checkers:
        checker.start()
    try:
        for subject, raw in zip(subjects, raws, strict=True):
            for checker in checkers:
                checker.raw = raw
            for checker in checkers:
                checker.wait_for_a_whole_check()
            assert not any(checker.refused for checker in checkers)
            guard.cutoffs.advance(Cutoff("user", subject, gen, 1, 10**17))
            for checker in checkers:
                checker.wait_for_a_whole_check()
            assert all(checker.refused for checker in checkers)
    finally:
        for checker in checkers:
            checker.over.set()
            checker.join()
    assert [checker.odd for checker in checkers] == [[]] * THREADS
