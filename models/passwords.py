"""Passwords: argon2id (RFC 9106), a few at a time, so that sign-ins never starve requests that only need a check."""

from __future__ import annotations

import secrets
import threading
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_at_once = threading.BoundedSemaphore(2)


def configure(*, time_cost: int, memory_kib: int, parallelism: int) -> None:
    """The argon2id parameters in force from now on; older hashes are renewed at the next sign-in.

    Nobody's hash is made here: the first sign-in with a name that nobody has must not take longer than the others.
    """
    global _hasher
    _hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=parallelism)
    _nobodys_hash.cache_clear()
    _nobodys_hash()


def hash_password(password: str) -> str:
    with _at_once:
        return _hasher.hash(password)


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether it is the right password.

    Takes as long for None (nobody has this name) and for a hash that cannot be read ("!") as for a wrong one.
    """
    with _at_once:
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
