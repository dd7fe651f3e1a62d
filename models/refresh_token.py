"""Refresh tokens: 128 bits that name the session's family and 256 that are used once; only hashes of them are kept."""

from __future__ import annotations

import hashlib
import hmac

from lastcall.errors import Malformed
from lastcall.strict import read_base64url

FAMILY_BYTES, SECRET_BYTES = 16, 32
_LENGTH = 64


def read_refresh_token(raw: str) -> bytes:
    """Family (which session) and secret (which of its tokens): 128 and 256 random bits."""
    try:
        if len(raw) != _LENGTH:
            raise ValueError
        return read_base64url(raw)
    except ValueError:
        raise Malformed("This is not a refresh token: send it just as it was issued.") from None


def digest(part: bytes) -> bytes:
    return hashlib.sha256(part).digest()


def sealed(predecessor: bytes, successor: bytes) -> bytes:
    """The successor, readable only with its predecessor: a one-time pad from 256 random bits that are used once.

    The database keeps it for the grace, so that racing tabs get the same successor; it alone opens nothing. Applied
    twice, it is open again.
    """
    pad = hmac.digest(predecessor, b"lastcall successor", "sha256")
    return bytes(a ^ b for a, b in zip(pad, successor, strict=True))
