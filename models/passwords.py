"""Passwords: argon2id (RFC 9106), one at a time in a thread that steps back behind all others, so that sign-ins never
starve requests that only need a check (bench/sign_ins.py)."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from models.errors import TooManySignIns

WAITING = 32
"""How many may wait for argon2 in one process: some 0.8 s. Each holds a thread, and half of them are for others."""
_NICE = 10
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def _step_back() -> None:
    """On Linux each thread has a priority of its own: argon2 gets what the others leave."""
    if sys.platform == "linux":
        with suppress(OSError):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + _NICE))


class _Worker:
    """The thread of this process, which begins with its first task, and the places of those who wait for it."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "lastcall-argon2", _step_back)
        self.places = threading.BoundedSemaphore(WAITING)


_worker = _Worker()


def _start_anew() -> None:
    """A thread does not survive a fork."""
    global _worker
    _worker = _Worker()


os.register_at_fork(after_in_child=_start_anew)


def configure(*, time_cost: int, memory_kib: int, parallelism: int) -> None:
    """The argon2id parameters in force from now on; older hashes are renewed at the next sign-in.

    Nobody's hash is made here: the first sign-in with a name that nobody has must not take longer than the others.
    """
    global _hasher
    _hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=parallelism)
    _nobodys_hash.cache_clear()
    _nobodys_hash()


def hash_password(password: str) -> str:
    return _worker.thread.submit(_hasher.hash, password).result()


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether it is the right password. Raises TooManySignIns when too many wait already.

    Takes as long for None (nobody has this name) and for a hash that cannot be read ("!") as for a wrong one.
    """
    if not _worker.places.acquire(blocking=False):
        raise TooManySignIns
    try:
        return _worker.thread.submit(_verify, password_hash, password).result()
    finally:
        _worker.places.release()


def _verify(password_hash: str | None, password: str) -> bool:
    try:
        return _hasher.verify(password_hash or _nobodys_hash(), password) and password_hash is not None
    except VerifyMismatchError:
        return False
    except (VerificationError, InvalidHashError):
        pass
    try:
        _hasher.verify(_nobodys_hash(), password)
    except VerificationError:
        pass
    return False


def needs_rehash(password_hash: str) -> bool:
    return _hasher.check_needs_rehash(password_hash)


def invent_password() -> str:
    return secrets.token_urlsafe(15)


@cache
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_hex())
