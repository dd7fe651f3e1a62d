"""What the listener says to the database. Which order these are sent in is the matter of lastcall/listener.py."""

from __future__ import annotations

from typing import LiteralString

from lastcall.rows import columns, microseconds

REGISTER: LiteralString = """
WITH before AS (SELECT snapshot::text FROM workers WHERE id = %(id)s)
INSERT INTO workers (id, service, host, pid, version, lease_s, renewals, incarnation)
VALUES (
    %(id)s, %(service)s, %(host)s, %(pid)s, %(version)s, %(lease_s)s,
    -- A number that no earlier row of this worker can have had: observers judge the lease by its rise.
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, (SELECT id FROM incarnation)
)
ON CONFLICT (id) DO UPDATE SET
    renewals = workers.renewals + 1, renewed_at = clock_timestamp(), snapshot = NULL, incarnation = excluded.incarnation
RETURNING renewals, (SELECT snapshot FROM before), xmax = 0 AS is_new
"""
RENEW: LiteralString = (
    "UPDATE workers SET renewals = renewals + 1, renewed_at = clock_timestamp() WHERE id = %s RETURNING renewals"
)
# Whoever commits late may have let sign-ins under the older generation through meanwhile, after the row's own end was
# written: what is read now is kept as long as a token that is minted now. A session's end waits for its refreshes.
_KEPT_UNTIL: LiteralString = """CASE c.scope WHEN 'session' THEN c.expires_at ELSE greatest(
    c.expires_at, clock_timestamp() + make_interval(secs => everyone.access_ttl_s) + cutoff_leeway()
) END"""
# One statement, so one snapshot: the rows are exactly those that the position speaks of. What the position before has
# in it was read then: while an old transaction stays open, xmin stands still, and a million rows may lie above it.
READ_NEW: LiteralString = f"""
SELECT
    pg_current_snapshot()::text, {microseconds("clock_timestamp()")}, {microseconds("everyone.purged_until")},
    {microseconds("everyone.purged_at")}, {columns(_KEPT_UNTIL)}
FROM everyone LEFT JOIN cutoffs AS c
    ON c.xid >= pg_snapshot_xmin($1::pg_snapshot) AND NOT pg_visible_in_snapshot(c.xid, $1::pg_snapshot)
"""
READ_ALL: LiteralString = f"SELECT {columns(_KEPT_UNTIL)} FROM cutoffs AS c CROSS JOIN everyone"
# No connection outlives a crash, so the position is of the incarnation that is there now. The number: what was sent on
# a connection that was hung up, and comes late, must not replace what a later one has said.
CONFIRM: LiteralString = """
UPDATE workers SET snapshot = $1::pg_snapshot, canary = $2::bigint, incarnation = (SELECT id FROM incarnation)
WHERE id = $3::uuid AND renewals = $4::bigint
RETURNING renewals
"""
WENT_BACK: LiteralString = """
SELECT pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(%s::pg_snapshot)
"""
# Since the server's start or promotion, which may have lost commits: workers of before that are not back yet.
OTHERS_MAY_TELL: LiteralString = """
SELECT EXISTS (
    SELECT FROM incarnation AS i, workers AS w
    WHERE w.id <> %(id)s
        AND greatest(i.since, pg_postmaster_start_time()) > clock_timestamp() - make_interval(secs => %(within_s)s)
        AND (w.snapshot IS NULL OR w.incarnation IS DISTINCT FROM i.id OR w.renewed_at < pg_postmaster_start_time())
)
"""
# Raises what the database has lost; `raise_cutoff` lowers nothing, and its trigger lifts the users' generations.
GIVE_BACK: LiteralString = """
SELECT count(raise_cutoff(held.scope::cutoff_scope, held.subject, held.gen, cutoff_expiry(NULL)))
FROM unnest(%s::text [], %s::text [], %s::bigint []) AS held (scope, subject, gen)
"""
# The first worker that notices does both. A new incarnation: a confirmation waits one lease, because workers that the
# database has forgotten may still trust theirs.
END_WHAT_IS_IN_DOUBT: LiteralString = """
WITH raised AS (
    UPDATE everyone SET gen = greatest(gen, %(known)s) + 1 WHERE NOT EXISTS (
        SELECT FROM revocations
        WHERE scope = 'everyone' AND cause = 'database_went_back' AND min_gen > %(known)s
    ) RETURNING 1
)
UPDATE incarnation SET id = gen_random_uuid(), since = clock_timestamp() WHERE EXISTS (SELECT FROM raised)
"""
