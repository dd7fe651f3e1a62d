"""A database that has lost commits, and one whose clock stepped back: what the listener sees it by, and does."""

from __future__ import annotations

import psycopg
import pytest

from lastcall.cutoffs import Cutoff
from lastcall.listener import CANARY, CutoffListener
from tests.unit.played_database import LOG, NOW_US, SECOND_NS, PlayedDatabase, RecordingClock, only_first_clock

LOAD = ["begin", "one snapshot", "position of the load", "load", "apply", "commit"]
GIVE_BACK = ["begin", "lock", "give back", "raise everyone", "commit"]


@pytest.mark.parametrize(
    ("renewals", "xids_behind", "went_back"),
    [
        pytest.param(10, False, False, id="nothing was lost"),
        pytest.param(9, False, True, id="the last renewal was lost"),
        pytest.param(3, False, True, id="many were lost"),
        pytest.param(11, False, False, id="a renewal whose answer did not come"),
        pytest.param(None, False, False, id="the row was taken away"),
        pytest.param(None, True, True, id="the row was lost, and transactions too"),
    ],
)
def test_the_own_row_tells_whether_the_database_went_back(
    listener: CutoffListener, log: LOG, renewals: int | None, xids_behind: bool, went_back: bool
) -> None:
    database = PlayedDatabase(log, renewals=renewals, xids_behind=xids_behind)
    assert listener._register(database) is went_back  # type: ignore[arg-type]
    assert listener._renewals == database.renewals


@pytest.mark.parametrize(
    ("incarnation", "lacks", "went_back"), [("first", True, False), ("second", False, False), ("second", True, True)]
)
def test_after_a_crash_or_a_promotion_the_database_must_know_what_this_process_knows(
    listener: CutoffListener, log: LOG, incarnation: str, lacks: bool, went_back: bool
) -> None:
    """The own row is as it was left: its last renewal came before a revocation that was read in the same round."""
    database = PlayedDatabase(log, incarnation=incarnation, lacks=lacks)
    listener.cutoffs.advance(Cutoff("user", "known", 8, 1, 10**17))
    listener.cutoffs.advance(Cutoff("user", "over", 8, 1, 10**6))
    assert listener._register(database) is went_back  # type: ignore[arg-type]
    assert ("lacks?" in log) is (incarnation == "second"), "it reads everything: only when there is a cause"
    if incarnation == "second":
        *held, canary, everyone = database.sent["lacks?"][1]
        assert held == [["user"], ["known"], [8]], "what is over may have been purged"
        assert (canary, everyone) == (CANARY, 0)
    log.clear()
    database.renewals = 10
    assert listener._register(database) is True, "in any case"  # type: ignore[arg-type]


@pytest.mark.parametrize("renewals", [None, 10])
def test_a_worker_that_has_read_nothing_yet_has_nothing_to_compare(
    listener: CutoffListener, log: LOG, renewals: int | None
) -> None:
    listener._position, listener._renewals = None, 0
    assert listener._register(PlayedDatabase(log, renewals=renewals, xids_behind=True)) is False  # type: ignore[arg-type]


def test_a_database_that_went_back_fences_first_and_everything_is_read(listener: CutoffListener, log: LOG) -> None:
    database = PlayedDatabase(log, renewals=3)
    listener._round(database)  # type: ignore[arg-type]
    assert only_first_clock(log) == [
        *("clock", "renew", "register", "fence"),
        *LOAD,
        *GIVE_BACK,
        *("read", "apply", "lease", "position"),
    ]


def test_a_database_that_went_back_between_two_connections_is_seen_before_the_first_round(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener_clock.step_ns = 0
    database = PlayedDatabase(log, renewals=3)
    database.listener = listener
    monkeypatch.setattr(listener, "_connect", lambda: database)
    listener._serve(database)  # type: ignore[arg-type]
    steps = [step for step in log if step != "clock"]
    begin = steps.index("register")
    assert steps[begin : steps.index("renew")] == ["register", "listen", "fence", *LOAD, *GIVE_BACK]
    assert steps.count("fence") == 1


def test_what_this_process_knows_is_given_back_and_everyones_generation_rises_above_it(
    listener: CutoffListener, log: LOG
) -> None:
    listener.cutoffs.advance(Cutoff("user", "lost", 8, 1, 10**15))
    listener.cutoffs.advance(Cutoff("session", "ended", 0, 1, 10**15))
    listener.cutoffs.advance(Cutoff("everyone", "", 4, 1, 10**15))
    database = PlayedDatabase(log, renewals=3)
    listener._end_what_is_in_doubt(database)  # type: ignore[arg-type]
    scopes, subjects, gens = database.sent["give back"][1]
    assert set(zip(scopes, subjects, gens, strict=True)) == {
        ("user", "lost", 8),
        ("user", "u1", 5),
        ("session", "ended", 0),
    }
    query, parameters = database.sent["raise everyone"]
    assert parameters == {"known": 4}
    assert "greatest(gen, %(known)s) + 1" in query


def test_nothing_to_give_back_is_no_error(listener: CutoffListener, log: LOG) -> None:
    database = PlayedDatabase(log, renewals=3)
    database.rows = []
    listener._end_what_is_in_doubt(database)  # type: ignore[arg-type]
    assert database.sent["give back"][1] == ([], [], [])
    assert "raise everyone" in log


def test_a_service_that_may_not_write_fences_and_reads_all_the_same(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = PlayedDatabase(log, renewals=3)
    real = database.execute

    def execute(query: str, parameters: object = ()) -> object:
        if "raise_cutoff" in query:
            raise psycopg.errors.InsufficientPrivilege
        return real(query, parameters)

    monkeypatch.setattr(database, "execute", execute)
    listener._round(database)  # type: ignore[arg-type]
    assert {"fence", "load", "lease", "position"} <= set(log)


# ------------------------------------------------------------------------------------------------- the clock's steps


@pytest.mark.parametrize(("back_s", "follows"), [(0.0, False), (1.9, False), (2.1, True), (3600.0, True)])
def test_a_clock_that_steps_back_brings_older_cutoffs_back_before_it_counts(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, back_s: float, follows: bool
) -> None:
    listener_clock.step_ns = 0
    database = PlayedDatabase(log)
    listener._round(database)  # type: ignore[arg-type]
    offset_ns = listener.cutoffs.wall_offset_ns
    log.clear()
    database.now_us -= int(back_s * 1_000_000)
    listener._round(database)  # type: ignore[arg-type]
    steps = [step for step in log if step != "clock"]
    if follows:
        assert steps == ["renew", "read", "apply", "bring back", *LOAD, "lease", "position"]
    else:
        assert steps == ["renew", "read", "apply", "lease", "position"]
    assert listener.cutoffs.wall_offset_ns == offset_ns - int(back_s * SECOND_NS)


def test_until_the_cutoffs_are_back_the_time_is_the_older_later_one(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that had expired stay so until what revoked them is known again."""
    listener_clock.step_ns = 0
    database = PlayedDatabase(log)
    listener._round(database)  # type: ignore[arg-type]
    before = listener.cutoffs.wall_offset_ns
    seen: list[int] = []
    monkeypatch.setattr(listener, "_load", lambda _: seen.append(listener.cutoffs.wall_offset_ns))
    database.now_us -= 3600 * 1_000_000
    listener._round(database)  # type: ignore[arg-type]
    assert seen == [before]


def test_a_clock_that_stepped_back_behind_the_last_purge_is_noticed_at_the_start(
    listener: CutoffListener, log: LOG
) -> None:
    """This process has seen no step: the table says when it was purged."""
    database = PlayedDatabase(log, purged_us=NOW_US + 3_600_000_000)
    listener._round(database)  # type: ignore[arg-type]
    assert log.index("bring back") < log.index("load") < log.index("lease")
