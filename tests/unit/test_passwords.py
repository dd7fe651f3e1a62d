"""Passwords: argon2id with OWASP's parameters, and the same work for a name that nobody has."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import passwords
from models.errors import TooManySignIns
from settings import from_environment
from tests.unit.by_hand import SECRET

OWASP = {(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)}
"""Memory (KiB) and passes that OWASP's Password Storage Cheat Sheet calls an equal defence, with one lane."""

MADE_ELSEWHERE = [  # of "correct horse", by argon2-cffi
    "$argon2id$v=19$m=19456,t=2,p=1$Inf085tbtqnwPEgTeBXAYQ$6nfZgoQ70PHOK5R1raqBURkGt974Mo/XSr1b7ZMl4YU",
    "$argon2id$v=19$m=64,t=1,p=4$hv+lDFeLZkZJM+/4Pvd1XQ$dor+CYi8traGUQVEHDn7YIgcg7upoGJ6bAznxthhTxc",
    "$argon2i$v=19$m=64,t=3,p=1$jAnWj7tFhmYllcKsWe4hHg$RBh3qZt2uy4JsfRLYe18kM7WP01wQvPaI3tTnUhrcrE",
]


@pytest.fixture
def cheap() -> Iterator[None]:
    before = passwords._hasher
    passwords.configure(time_cost=1, memory_kib=8)
    yield
    passwords.configure(time_cost=before.time_cost, memory_kib=before.memory_kib)


def test_the_right_password_is_right_and_any_other_is_wrong(cheap: None) -> None:
    kept = passwords.hash_password("correct horse")
    assert passwords.verify_password(kept, "correct horse")
    for wrong in ("", "correct", "Correct horse", "correct horse ", "correct horse\x00"):
        assert not passwords.verify_password(kept, wrong)


def test_a_hash_is_argon2id_salted_and_does_not_hold_the_password(cheap: None) -> None:
    one, two = passwords.hash_password("correct horse"), passwords.hash_password("correct horse")
    assert one.startswith("$argon2id$")
    assert one != two
    assert "horse" not in one


def test_the_parameters_are_among_owasps_unless_they_are_set(tmp_path: Path) -> None:
    usual = from_environment({"LASTCALL_DATA_DIR": str(tmp_path), "LASTCALL_SIGNING_KEY": SECRET})
    assert (usual.argon2_memory_kib, usual.argon2_time_cost) in OWASP
    made = passwords.Argon2id(usual.argon2_time_cost, usual.argon2_memory_kib).hash("correct horse")
    assert "m=7168,t=5,p=1" in made


@pytest.mark.parametrize("kept", MADE_ELSEWHERE)
def test_hashes_of_the_reference_implementation_go_on_being_good_and_are_renewed(cheap: None, kept: str) -> None:
    assert passwords.verify_password(kept, "correct horse")
    assert not passwords.verify_password(kept, "wrong horse")
    assert passwords.needs_rehash(kept)


def test_a_name_that_nobody_has_costs_as_much_work_as_a_wrong_password(
    cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes: list[str] = []

    class Hasher:
        def verify(self, kept: str, _: str) -> bool:
            hashes.append(kept)
            return True

    nobodys = passwords._nobodys_hash()
    monkeypatch.setattr(passwords, "_hasher", Hasher())
    assert not passwords.verify_password(None, "anything"), "even where the invented hash would fit"
    assert hashes == [nobodys]
    assert nobodys.split("$")[3] == "m=8,t=1,p=1"


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "x",
        "!",
        "$argon2id$",
        "$2b$12$abcdefghijklmnopqrstuv",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$" + "A" * 200,
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$ä",
        "$argon2id$v=19$m=8,t=1,p=1$A$A",
        MADE_ELSEWHERE[1] + "\n",
        MADE_ELSEWHERE[1] + "\x00",
    ],
)
def test_a_hash_that_cannot_be_read_lets_nobody_in(cheap: None, kept: str) -> None:
    assert not passwords.verify_password(kept, "x")
    assert not passwords.verify_password(kept, "correct horse")


def test_a_hash_of_other_parameters_is_renewed(cheap: None) -> None:
    kept = passwords.hash_password("correct horse")
    assert not passwords.needs_rehash(kept)
    passwords.configure(time_cost=2, memory_kib=16)
    assert passwords.needs_rehash(kept)
    assert passwords.verify_password(kept, "correct horse")


def priority_of_this_thread() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has one priority")
def test_argon2_steps_back_behind_all_other_threads() -> None:
    before, policy = priority_of_this_thread(), os.sched_getscheduler(0)
    assert passwords._worker.aside.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE
    assert passwords._worker.late.submit(os.sched_getscheduler, 0).result() == policy
    assert passwords._worker.late.submit(priority_of_this_thread).result() == min(19, before + 10)
    assert (priority_of_this_thread(), os.sched_getscheduler(0)) == (before, policy)


@pytest.mark.parametrize("begun", [True, False], ids=["has begun", "has not begun"])
def test_a_password_that_gets_no_processor_aside_is_checked_by_the_other_thread(
    cheap: None, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Where others use up all processors, the kernel gives a thread of SCHED_IDLE next to nothing."""
    kept, over, verify = passwords.hash_password("correct horse"), threading.Event(), passwords._verify
    checked_by: list[str] = []

    def verify_unless_aside(*given: str) -> bool:
        checked_by.append(threading.current_thread().name.rpartition("_")[0])
        if checked_by[-1] == "lastcall-argon2":
            over.wait(30)
        return verify(*given)

    monkeypatch.setattr(passwords, "_verify", verify_unless_aside)
    if not begun:
        passwords._worker.aside.submit(over.wait, 30)
    try:
        assert passwords.verify_password(kept, "correct horse")
        assert checked_by == ["lastcall-argon2"] * begun + ["lastcall-argon2-late"]
    finally:
        over.set()


def test_those_who_would_wait_for_long_are_told_so(cheap: None) -> None:
    """Each who waits holds a thread that a guarded request may need."""
    kept, over = passwords.hash_password("correct horse"), threading.Event()
    passwords._worker.aside.submit(over.wait, 30)
    passwords._worker.late.submit(over.wait, 30)
    with ThreadPoolExecutor(passwords.WAITING + 1) as people:
        answers = [people.submit(passwords.verify_password, kept, "correct horse") for _ in range(passwords.WAITING)]
        while passwords._worker.places._value:  # until the last of them waits
            over.wait(0.001)
        with pytest.raises(TooManySignIns):
            passwords.verify_password(kept, "correct horse")
        over.set()
        assert all(answer.result(30) for answer in answers)
    assert passwords.verify_password(kept, "correct horse")


def test_a_fork_gets_a_thread_of_its_own(cheap: None) -> None:
    kept = passwords.hash_password("correct horse")
    before = passwords._worker
    passwords._start_anew()
    try:
        assert passwords._worker is not before
        assert passwords.verify_password(kept, "correct horse")
    finally:
        passwords._worker.aside.shutdown()
        passwords._worker = before


def test_an_invented_password_is_long_and_new() -> None:
    found = {passwords.invent_password() for _ in range(100)}
    assert len(found) == 100
    assert min(map(len, found)) >= 20
