"""Where sessions of a state are found: the shelves of `login_sessions.shelf`, each of which an index holds in order.

A log-out of everyone leaves a whole shelf behind, and a user's puts him on `unmarked_ends`: both at once, whatever the
number of rows. The housekeeping takes the rows to their shelves, in batches; here is what holds meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Boolean, ColumnElement, Text, and_, bindparam, cast, func, literal, not_, text
from sqlalchemy.dialects.postgresql import JSONB

from models.database import changed, db
from models.login_session import IS_BEHIND, LoginSession
from models.session_filter import Conditions, is_one_of

ENDED = -1
MOST_USERS = 1000
"""With more users whose ends are not marked (a log-out of all whom a filter found) the planner does what it can."""

# No parameter is sent, so that where it stays prepared its plan does, too. From the newest to the oldest: where the
# cleaning has just taken the oldest rows of a shelf away, its index is full of what is no more.
_READ = text("""
    WITH RECURSIVE shelves AS (
        (SELECT shelf FROM login_sessions ORDER BY shelf DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT s.shelf FROM login_sessions AS s WHERE s.shelf < shelves.shelf ORDER BY s.shelf DESC LIMIT 1)
        FROM shelves WHERE shelf IS NOT NULL
    )
    SELECT
        e.gen, ARRAY(SELECT shelf FROM shelves WHERE shelf IS NOT NULL),
        EXISTS (SELECT FROM login_sessions WHERE shelf = e.gen AND expires_at <= now()),
        (
            SELECT jsonb_object_agg(user_id, gen)
            FROM (SELECT user_id, max(gen) AS gen FROM unmarked_ends GROUP BY user_id LIMIT :most) AS behind
        ),
        (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'login_sessions'::regclass),
        CASE WHEN :for_a_list THEN
            set_config('plan_cache_mode', 'force_custom_plan', TRUE)
            || set_config('max_parallel_workers_per_gather', '0', TRUE)
        END
    FROM everyone AS e
""").bindparams(
    bindparam("most", MOST_USERS + 1, literal_execute=True),
    bindparam("for_a_list", type_=Boolean, literal_execute=True),
)


@dataclass(frozen=True, slots=True)
class Shelves:
    """Which shelves there are in this snapshot, and what is on one that belongs on another."""

    open: int
    all: tuple[int, ...]
    has_expired: bool
    """There are sessions on the open shelf that have expired."""
    behind: tuple[tuple[str, int], ...] | None
    """Users some of whose sessions may have ended and have not been marked, each with the generation that was the first
    to go on; None where they are too many to name."""
    rows: int
    """About how many rows there are on all shelves."""

    def of(self, users: Collection[str] | None) -> Shelves:
        """What there is to know for the sessions of these users; None: of anybody."""
        if users is None or not self.behind:
            return self
        return replace(self, behind=tuple((user, gen) for user, gen in self.behind if user in users))

    @property
    def lapsed(self) -> int:
        return -2 - self.open

    @property
    def left_behind(self) -> list[int]:
        """By log-outs of everyone."""
        return [shelf for shelf in self.all if shelf not in (self.open, self.lapsed, ENDED)]


def read_shelves(*, for_a_list: bool = False) -> Shelves:
    """Within a transaction under way. `for_a_list`: the statements that follow in it are planned for their values each
    time, for a name, a role or a state is common or rare; so would be those of every trigger, where it writes. And
    without parallel workers, who take longer to start than a page takes."""
    gen, shelves, has_expired, behind, rows, _planned = db.session.execute(_READ, {"for_a_list": for_a_list}).one()
    gens = tuple((behind or {}).items())
    return Shelves(gen, tuple(shelves), has_expired, gens if len(gens) <= MOST_USERS else None, rows)


def places_of(state: str, shelves: Shelves) -> list[Conditions]:
    """What holds for the sessions of a state, shelf by shelf: none is in two places."""
    ended, expired = _has_ended(shelves), LoginSession.expires_at <= func.now()
    stands = [not_(ended)] if ended is not None else []
    if state == "active":
        return [[_on(shelves.open), *stands, *([not_(expired)] if shelves.has_expired else [])]]
    if state == "expired":
        waiting = [[_on(shelves.open), expired, *stands]] if shelves.has_expired else []
        return [[_on(shelves.lapsed), *stands], *waiting]
    if state == "ended":
        waiting = [[_on(shelf), ended] for shelf in (shelves.open, shelves.lapsed)] if ended is not None else []
        return [*([_on(shelf)] for shelf in (ENDED, *shelves.left_behind)), *waiting]
    return [[_on(shelf)] for shelf in shelves.all or [shelves.open]]


def sums_of(state: str, shelves: Shelves) -> tuple[list[Conditions], list[Conditions]]:
    """The same for counting: these places, less those. An index alone tells how many stand on a shelf, and who does
    not belong there is few."""
    ended, expired = _has_ended(shelves), LoginSession.expires_at <= func.now()
    if state == "active":
        over = [[_on(shelves.open), expired]] if shelves.has_expired else []
        if ended is not None:
            over.append([_on(shelves.open), ended, not_(expired)])
        return [[_on(shelves.open)]], over
    if state == "expired":
        over = [[_on(shelves.lapsed), ended]] if ended is not None else []
        return [[_on(shelves.lapsed)], *places_of(state, shelves)[1:]], over
    return places_of(state, shelves), []


def _on(shelf: int) -> ColumnElement[bool]:
    return LoginSession.shelf == shelf


def _has_ended(shelves: Shelves) -> ColumnElement[bool] | None:
    """On the open shelf or the lapsed one. By what is known of each user: to look it up in the table for each of his
    rows takes several times as long."""
    if shelves.behind is None:
        return IS_BEHIND
    if not shelves.behind:
        return None
    users, gens = zip(*shelves.behind, strict=True)
    gen: ColumnElement[int] = literal(gens[0])
    if len(gens) > 1:
        of_each = cast(dict(shelves.behind), JSONB)
        gen = cast(of_each[cast(LoginSession.user_id, Text)].astext, BigInteger)
    return and_(is_one_of(users), LoginSession.user_gen < gen)


def read_in_order() -> None:
    """The statements that follow in this transaction read an index, and stop when they have enough. A bitmap would be
    made anew of all that fits with each batch, and a scan of the table would pass what those before have done."""
    off = "SELECT set_config('enable_seqscan', 'off', TRUE), set_config('enable_bitmapscan', 'off', TRUE)"
    db.session.execute(text(off))


def take_the_expired_away(at_most: int) -> int:
    """To the shelf of the lapsed. Returns how many, and is within a transaction under way, as all that follows."""
    read_in_order()
    return changed(
        text("""
            UPDATE login_sessions SET lapsed = TRUE WHERE id IN (
                SELECT id FROM login_sessions
                WHERE shelf = (SELECT gen FROM everyone) AND expires_at <= statement_timestamp()
                LIMIT :at_most FOR UPDATE SKIP LOCKED
            )
        """),
        {"at_most": at_most},
    )


def mark_everyones_ends(at_most: int) -> int:
    """Mark rows that a log-out of everyone has ended: they count as ended already, this says why."""
    read_in_order()
    return changed(
        text("""
            UPDATE login_sessions AS s SET
                ended_at = coalesce(r.created_at, clock_timestamp()), ended_scope = 'everyone',
                ended_by = coalesce(r.actor_name, 'unknown'), end_reason = coalesce(r.reason, r.cause, 'log_out_all')
            FROM (
                SELECT id, everyone_gen FROM login_sessions WHERE shelf = ANY(:shelves)
                LIMIT :at_most FOR UPDATE SKIP LOCKED
            ) AS old LEFT JOIN LATERAL (
                SELECT * FROM revocations
                WHERE scope = 'everyone' AND min_gen > old.everyone_gen ORDER BY min_gen LIMIT 1
            ) AS r ON TRUE
            WHERE s.id = old.id
        """),
        {"shelves": read_shelves().left_behind, "at_most": at_most},
    )


def mark_users_ends(at_most: int) -> int:
    """The same for users; after a minute nobody is left who signed in while it happened. Whoever holds a row is not
    waited for: two who end sessions at once would deadlock."""
    read_in_order()
    marked = changed(
        text("""
            UPDATE login_sessions AS s SET
                ended_at = why.ended_at, ended_scope = 'user', ended_by = why.ended_by, end_reason = why.end_reason
            FROM (
                SELECT found.* FROM unmarked_ends AS e
                CROSS JOIN (VALUES (0, 1::bigint << 62), (-1::bigint << 62, -2)) AS not_marked (first, last)
                CROSS JOIN LATERAL (
                    SELECT id, user_id, user_gen FROM login_sessions
                    WHERE user_id = e.user_id AND shelf BETWEEN first AND last AND user_gen < e.gen
                    LIMIT :at_most FOR UPDATE SKIP LOCKED
                ) AS found LIMIT :at_most
            ) AS old CROSS JOIN LATERAL (
                SELECT * FROM unmarked_ends AS e
                WHERE e.user_id = old.user_id AND e.gen > old.user_gen ORDER BY e.gen LIMIT 1
            ) AS why
            WHERE s.id = old.id
        """),
        {"at_most": at_most},
    )
    db.session.execute(
        text("""
            DELETE FROM unmarked_ends AS e
            WHERE ended_at < statement_timestamp() - interval '1 minute' AND NOT EXISTS (
                SELECT FROM login_sessions AS s WHERE s.user_id = e.user_id AND s.shelf >= 0 AND s.user_gen < e.gen
            ) AND NOT EXISTS (
                SELECT FROM login_sessions AS s WHERE s.user_id = e.user_id AND s.shelf < -1 AND s.user_gen < e.gen
            )
        """)
    )
    return marked
