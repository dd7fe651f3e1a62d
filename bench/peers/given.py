"""What all contenders are given: the key, the names that tokens are meant for, and where Redis and PostgreSQL are."""

from __future__ import annotations

import os

ALGORITHM = "HS256"
ISSUER = AUDIENCE = "lastcall"
LIFETIME_S = 3600
SECRET = os.environ.get("BENCH_SECRET", "")
USER = os.environ.get("BENCH_USER", "")
REDIS = os.environ.get("BENCH_REDIS", "")
"""The path of its Unix socket."""
DATABASE_URL = os.environ.get("BENCH_DATABASE_URL", "")
INTROSPECTION_URL = os.environ.get("BENCH_INTROSPECTION_URL", "")
REVOKED = os.environ.get("BENCH_REVOKED", "")
"""The `jti` of a token that everybody has to refuse."""
EVER_REVOKED = 1000
"""How many more every store of revocations holds."""


def bearer_token(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    return token if scheme.lower() == "bearer" else ""
