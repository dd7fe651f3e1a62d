"""Invented users and sessions to look at. Nobody can sign in as one of them: their password hashes fit no password."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sqlalchemy import text

from models.database import transaction
from models.device import describe_device
from settings import Settings

BATCH = 1000
FIRST = [
    "ada",
    "alan",
    "barbara",
    "brian",
    "carol",
    "dennis",
    "edsger",
    "frances",
    "grace",
    "guido",
    "hedy",
    "ivan",
    "jean",
    "john",
    "karen",
    "ken",
    "leslie",
    "linus",
]
LAST = [
    "allen",
    "berners",
    "cerf",
    "diffie",
    "engelbart",
    "floyd",
    "goldberg",
    "hopper",
    "iverson",
    "kay",
    "lamport",
    "liskov",
    "moore",
    "perlman",
    "wirth",
]
CLIENTS = ("web", "web", "web", "ios", "android", "cli", "api")
ROLES = ("viewer", "editor", "billing", "support")
USER_AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1"
    " Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1"
    " Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile"
    " Safari/537.36",
    "curl/8.11.0",
)


def invent_sessions(count: int, settings: Settings) -> Iterator[int]:
    """Make `count` sessions, about three a user, in batches; yields how many there are after each batch."""
    made = 0
    while made < count:
        batch = min(BATCH, count - made)
        _invent(batch, settings)
        made += batch
        yield made


def _invent(count: int, settings: Settings) -> None:
    users = max(1, count // 3)
    names = [f"{random.choice(FIRST)}.{random.choice(LAST)}.{random.randrange(16**6):06x}" for _ in range(users)]
    agents = [random.choice(USER_AGENTS) for _ in range(count)]
    with transaction() as session:
        ids = session.scalars(
            text(
                "INSERT INTO users (username, password_hash) SELECT unnest(CAST(:names AS text [])), '!'"
                " ON CONFLICT DO NOTHING RETURNING id"
            ),
            {"names": names},
        ).all()
        session.execute(
            text(
                "INSERT INTO user_roles (user_id, role)"
                " SELECT * FROM unnest(CAST(:ids AS uuid []), CAST(:roles AS text []))"
            ),
            {"ids": list(ids), "roles": [random.choice(ROLES) for _ in ids]},
        )
        session.execute(
            text("""
                INSERT INTO login_sessions (
                    user_id, username, roles, client_id, ip, last_ip, user_agent, device, created_at, last_seen_at,
                    token_expires_at, expires_at, user_gen, everyone_gen, family_hash, refresh_hash
                )
                SELECT
                    u.id, u.username, ARRAY(SELECT r.role FROM user_roles AS r WHERE r.user_id = u.id), v.client,
                    v.ip::inet, v.ip::inet, v.agent, v.device, now() - make_interval(secs => v.age),
                    now() - make_interval(secs => v.age * v.idle), now() + make_interval(secs => :access_ttl),
                    now() + make_interval(secs => :lifetime), u.gen, e.gen,
                    sha256(convert_to(gen_random_uuid()::text, 'UTF8')),
                    sha256(convert_to(gen_random_uuid()::text, 'UTF8'))
                FROM unnest(
                    CAST(:ids AS uuid []), CAST(:clients AS text []), CAST(:ips AS text []), CAST(:agents AS text []),
                    CAST(:devices AS text []), CAST(:ages AS float8 []), CAST(:idles AS float8 [])
                ) AS v (id, client, ip, agent, device, age, idle)
                INNER JOIN users AS u ON u.id = v.id CROSS JOIN everyone AS e
            """),
            {
                "ids": [random.choice(ids) for _ in range(count)],
                "clients": [random.choice(CLIENTS) for _ in range(count)],
                # Addresses of documentation (RFC 5737) and of private networks.
                "ips": [
                    f"{random.choice(('192.0.2', '198.51.100', '10.1.7'))}.{random.randrange(256)}" for _ in agents
                ],
                "agents": agents,
                "devices": [describe_device(agent) for agent in agents],
                "ages": [random.expovariate(1 / 40_000) for _ in range(count)],
                "idles": [random.random() for _ in range(count)],
                "access_ttl": settings.access_ttl,
                "lifetime": min(settings.refresh_ttl, settings.session_max_age),
            },
        )
