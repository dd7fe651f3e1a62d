"""A crowd: users and sessions invented within PostgreSQL, with everything in place (indices, triggers), then analysed.

A third as many users as live sessions. One session in ten is over because it was ended, one because it expired.
"""

from __future__ import annotations

import psycopg

RARE_NAME, COMMON_NAME = "zebulon.quux", "hopper"
RARE_ROLE, COMMON_ROLE, CLIENT = "auditor", "viewer", "ios"
NETWORK, HALF = "10.1.7.0/24", "10.0.0.0/8"

_USERS = """
INSERT INTO users (username, password_hash)
SELECT
    CASE WHEN n %% 50000 = 1 THEN %(rare)s ELSE
        (ARRAY['ada', 'alan', 'barbara', 'brian', 'carol', 'edsger', 'frances', 'grace'])[1 + floor(random() * 8)::int]
        || '.' || (ARRAY['allen', 'cerf', 'diffie', 'floyd', 'hopper', 'kay', 'lamport', 'liskov', 'moore', 'wirth'])[
            1 + floor(random() * 10)::int]
    END || '.' || to_hex(n), '!'
FROM generate_series(1, %(users)s) AS n
"""
_ROLES = """
INSERT INTO user_roles (user_id, role)
SELECT
    id, CASE WHEN n %% 20000 = 1 THEN %(role)s WHEN r < 0.6 THEN 'viewer' WHEN r < 0.9 THEN 'editor' ELSE 'billing' END
FROM (SELECT id, random() AS r, row_number() OVER () AS n FROM users WHERE password_hash = '!' OFFSET 0) AS u
"""
# In the order of their sign-in, as they come in real life. `fate`: 0 lives, 1 was ended, 2 has expired.
_SESSIONS = """
INSERT INTO login_sessions (
    user_id, username, roles, client_id, ip, last_ip, user_agent, device, created_at, last_seen_at, token_expires_at,
    expires_at, user_gen, everyone_gen, family_hash, refresh_hash, ended_at, ended_scope, ended_by, end_reason, lapsed
)
SELECT
    u.id, u.username, u.roles, s.client, s.ip, CASE WHEN random() < 0.15 THEN s.elsewhere ELSE s.ip END,
    'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0', 'Firefox on Windows',
    s.began, s.seen, s.seen + interval '5 min', s.seen + interval '14 days', u.gen, e.gen,
    sha256(convert_to(gen_random_uuid()::text, 'UTF8')), sha256(convert_to(gen_random_uuid()::text, 'UTF8')),
    CASE WHEN s.fate = 1 THEN s.seen + interval '1 min' END, CASE WHEN s.fate = 1 THEN 'user'::cutoff_scope END,
    CASE WHEN s.fate = 1 THEN 'root' END, CASE WHEN s.fate = 1 THEN 'lost laptop' END, s.fate = 2
FROM (
    SELECT
        fate, began, began + (greatest(began, now() - age_limit) - began) * random() AS seen,
        (ARRAY['web', 'web', 'web', 'ios', 'android', 'cli'])[1 + floor(random() * 6)::int] AS client,
        '10.0.0.0'::inet + floor(random() * 16777216)::bigint AS ip,
        '198.51.100.0'::inet + floor(random() * 256)::bigint AS elsewhere, 1 + floor(random() * %(users)s)::int AS who
    FROM (
        SELECT
            CASE n %% 12 WHEN 3 THEN 1 WHEN 7 THEN 2 ELSE 0 END AS fate, n,
            CASE n %% 12 WHEN 7 THEN interval '15 days' ELSE interval '0' END AS age_limit,
            now() - CASE n %% 12 WHEN 7 THEN interval '16 days' ELSE interval '0' END
            - interval '13 days' * (1 - n::float8 / (%(live)s * 1.2)) AS began
        FROM generate_series(1, %(live)s * 12 / 10) AS n
    ) AS made
) AS s INNER JOIN (
    SELECT
        id, username, gen, row_number() OVER () AS n,
        ARRAY(SELECT r.role FROM user_roles AS r WHERE r.user_id = users.id) AS roles
    FROM users WHERE password_hash = '!'
) AS u ON u.n = s.who CROSS JOIN everyone AS e
ORDER BY s.began
"""
_MORE = """
INSERT INTO login_sessions (
    user_id, username, roles, client_id, ip, last_ip, user_agent, created_at, last_seen_at, token_expires_at,
    expires_at, lapsed, user_gen, everyone_gen, family_hash, refresh_hash
)
SELECT
    u.id, u.username, '{viewer}', 'cli', '192.0.2.7', '192.0.2.7', 'curl/8.11.0', n.began, n.began,
    n.began + interval '5 min', n.began + interval '14 days', n.began + interval '14 days' < now(), u.gen, e.gen,
    sha256(convert_to(gen_random_uuid()::text, 'UTF8')), '\\x00'
FROM users AS u CROSS JOIN everyone AS e CROSS JOIN LATERAL (
    SELECT now() - %(begun_days)s * interval '1 day' - interval '13 days' * random() AS began
    FROM generate_series(1, %(count)s) WHERE u.id IS NOT NULL
) AS n
WHERE u.id = ANY(%(user_ids)s::uuid []) ORDER BY n.began
"""


def fill(url: str, live: int) -> None:
    with psycopg.connect(url, autocommit=True) as psql:
        psql.execute("SELECT setseed(0.5)")
        users = max(100, live // 3)
        psql.execute(_USERS, {"users": users, "rare": RARE_NAME})
        psql.execute(_ROLES, {"role": RARE_ROLE})
        psql.execute(_SESSIONS, {"live": live, "users": users})
        psql.execute("VACUUM ANALYZE")


def add_sessions(psql: psycopg.Connection, user_ids: list[str], count: int, *, begun_days: int = 0) -> None:
    """So many more sessions of each of these users, of the days before."""
    psql.execute(_MORE, {"user_ids": user_ids, "count": count, "begun_days": begun_days})
