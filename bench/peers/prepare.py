"""Fills the peers' stores before they are measured: the revoked token and a thousand more, and the session in Redis."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

import redis

from bench.peers.given import EVER_REVOKED, LIFETIME_S, REDIS, REVOKED, USER

IDS = [REVOKED, *map(str, range(EVER_REVOKED))]


def fill_redis() -> None:
    pipeline = redis.Redis(unix_socket_path=REDIS).pipeline()
    for jti in IDS:
        pipeline.set(jti, "", ex=LIFETIME_S)
    session = json.dumps({"sub": USER, "roles": ["viewer"]})
    pipeline.set("session:" + os.environ["BENCH_SESSION"], session, ex=LIFETIME_S)
    pipeline.execute()


def fill_extended() -> None:
    from bench.peers.extended import TokenBlocklist, create_app, db

    with create_app("sql").app_context():
        db.create_all()
        db.session.add_all(TokenBlocklist(jti=jti, created_at=datetime.now(UTC)) for jti in IDS)
        db.session.commit()


def fill_simplejwt() -> None:
    import bench.peers.simplejwt  # noqa: F401, I001 (it comes first: it sets Django up)
    from django.core.management import call_command
    from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken

    call_command("migrate", verbosity=0)
    now = datetime.now(UTC)
    tokens = OutstandingToken.objects.bulk_create(
        OutstandingToken(jti=jti, token=jti, created_at=now, expires_at=now) for jti in IDS
    )
    BlacklistedToken.objects.bulk_create(BlacklistedToken(token=token) for token in tokens)


if __name__ == "__main__":
    {"redis": fill_redis, "extended": fill_extended, "simplejwt": fill_simplejwt}[sys.argv[1]]()
