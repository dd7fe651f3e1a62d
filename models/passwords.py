"""Passwords: argon2id (RFC 9106) by libsodium, one at a time in a thread that steps back behind all others, so that
sign-ins never starve requests that only need a check (docs/decisions/0013-libsodium.md, 0022-argon2-when-idle.md,
bench/sign_ins.py)."""

from __future__ import annotations

import os
import re
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from typing import TypeVar

from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from models.errors import TooManySignIns
from settings import ARGON2_MEMORY_KIB, ARGON2_TIME_COST

WAITING = 32
"""How many may wait for argon2 in one process: some 0.4 s. Each holds a thread, and half of them are for others."""
PATIENCE_S = 0.3
"""How long a password waits for a processor that nobody else wants. Alone it takes 0.01."""
_NICE = 10
_READABLE = re.compile(r"\$argon2id?\$v=19\$m=\d{1,7},t=\d{1,3},p=\d{1,2}\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+", re.ASCII)
_LONGEST = 127
"""Of a hash that libsodium reads (characters)."""
Found = TypeVar("Found")


class Argon2id:
    """Hashes in the PHC string format, with these parameters; libsodium knows one lane."""

    def __init__(self, time_cost: int, memory_kib: int) -> None:
        self.time_cost, self.memory_kib = time_cost, memory_kib
        self._begins = f"$argon2id$v=19$m={memory_kib},t={time_cost},p=1$"

    def hash(self, password: str) -> str:
        made = argon2id.str(password.encode(), opslimit=self.time_cost, memlimit=self.memory_kib * 1024)
        return made.decode("ascii")

    def verify(self, password_hash: str, password: str) -> bool:
        """False also for a hash that cannot be read, at once."""
        try:
            return argon2id.verify(password_hash.encode("ascii"), password.encode())
        except InvalidkeyError:
            return False

    def needs_rehash(self, password_hash: str) -> bool:
        return not password_hash.startswith(self._begins)


_hasher = Argon2id(ARGON2_TIME_COST, ARGON2_MEMORY_KIB)


def _step_back() -> None:
    """On Linux each thread has a priority of its own: argon2 gets little of what the others want."""
    if sys.platform == "linux":
        with suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + _NICE))


def _step_aside() -> None:
    """The same, and nothing of it while the kernel lets it be so: sched(7), SCHED_IDLE."""
    _step_back()
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0: this thread


class _Worker:
    """The threads of this process, which begin with their first task, and the places of those who wait for them."""

    def __init__(self) -> None:
        self.aside = ThreadPoolExecutor(1, "lastcall-argon2", _step_aside)
        self.late = ThreadPoolExecutor(1, "lastcall-argon2-late", _step_back)
        self.places = threading.BoundedSemaphore(WAITING)

    def run(self, work: Callable[..., Found], *given: str | None) -> Found:
        """Aside of all others, where it may get no processor for ever; so after PATIENCE_S also by the other thread."""
        begun = [self.aside.submit(work, *given)]
        if not wait(begun, PATIENCE_S).done:
            if begun[0].cancel():
                begun.clear()
            begun.append(self.late.submit(work, *given))
        return wait(begun, return_when=FIRST_COMPLETED).done.pop().result()


_worker = _Worker()


def _start_anew() -> None:
    """Threads do not survive a fork."""
    global _worker
    _worker = _Worker()


os.register_at_fork(after_in_child=_start_anew)


def configure(*, time_cost: int, memory_kib: int) -> None:
    """The argon2id parameters in force from now on; older hashes are renewed at the next sign-in.

    This also makes the hash that stands in for unknown names, so that the first sign-in with one takes no longer than
    the rest.
    """
    global _hasher
    _hasher = Argon2id(time_cost, memory_kib)
    _nobodys_hash.cache_clear()
    _nobodys_hash()


def hash_password(password: str) -> str:
    return _worker.run(_hasher.hash, password)


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether it is the right password. Raises TooManySignIns when too many wait already.

    Takes as long for None (nobody has this name) and for a hash that cannot be read ("!") as for a wrong one.
    """
    if not _worker.places.acquire(blocking=False):
        raise TooManySignIns
    try:
        return _worker.run(_verify, password_hash, password)
    finally:
        _worker.places.release()


def _verify(password_hash: str | None, password: str) -> bool:
    known = password_hash or ""
    readable = len(known) <= _LONGEST and _READABLE.fullmatch(known) is not None
    return _hasher.verify(known if readable else _nobodys_hash(), password) and readable


def needs_rehash(password_hash: str) -> bool:
    return _hasher.needs_rehash(password_hash)


def invent_password() -> str:
    return secrets.token_urlsafe(15)


@cache
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_hex())
