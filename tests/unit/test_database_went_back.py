"""A database that has lost commits, and one whose clock stepped back: what the listener sees it by, and does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from lastcall.connection import Unsuitable
from lastcall.cutoffs import Cutoff
from lastcall.listener import CutoffListener
from tests.unit.played_database import LOG, NOW_US, SECOND_NS, PlayedDatabase, RecordingClock, only_first_clock

LOAD = ["begin", "one snapshot", "position of the load", "load", "apply", "commit"]
GIVE_BACK = ["begin", "lock", "give back", "raise everyone", "commit"]


@pytest.mark.parametrize(
    ("renewals", "position", "xids_behind", "went_back"),
    [
        pytest.param(10, "1:2:", False, False, id="nothing was lost"),
        pytest.param(10, "1:3:", False, False, id="a position whose answer did not come"),
        pytest.param(9, "1:2:", False, True, id="the last renewal was lost"),
        pytest.param(3, "1:2:", False, True, id="many were lost"),
        pytest.param(10, "1:1:", False, True, id="the last position was lost, and no renewal"),
        pytest.param(10, None, False, True, id="the only position was lost"),
        pytest.param(11, "1:2:", False, False, id="a renewal whose answer did not come"),
        pytest.param(11, "1:1:", False, True, id="a renewal whose answer did not come, and a position lost"),
        pytest.param(None, None, False, False, id="the row was taken away"),
        pytest.param(None, None, True, True, id="the row was lost, and transactions too"),
    ],
)
def test_the_own_row_tells_whether_the_database_went_back(
    listener: CutoffListener, log: LOG, renewals: int | None, position: str | None, xids_behind: bool, went_back: bool
) -> None:
    database = PlayedDatabase(log, renewals=renewals, position=position, xids_behind=xids_behind)
    listener._said = {"1:2:", "1:3:"}  # the second was sent as the connection was lost
    assert listener._register(database) is went_back  # type: ignore[arg-type]
    assert listener._renewals == database.renewals
    assert listener.cutoffs.fenced is went_back


def test_a_new_row_with_a_lower_number_is_no_loss_the_clock_stepped_back(listener: CutoffListener, log: LOG) -> None:
    assert not listener._register(PlayedDatabase(log, renewals=None, new_number=3))  # type: ignore[arg-type]
    assert listener._renewals == 3
    database = PlayedDatabase(log, renewals=None, new_number=3, xids_behind=True)
    assert listener._register(database)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("renewals", "said"),
    [
        pytest.param(10, {"10:20:"}, id="written"),
        pytest.param(11, {"1:2:", "10:20:"}, id="a renewal that was sent on an earlier connection came late"),
        pytest.param(None, {"1:2:", "10:20:"}, id="the row was taken away"),
    ],
)
def test_only_a_position_that_was_written_can_be_lost(
    listener: CutoffListener, log: LOG, renewals: int | None, said: set[str]
) -> None:
    listener._look(PlayedDatabase(log, renewals=renewals))  # type: ignore[arg-type]
    assert log[-1] == "position" and listener._said == said


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
        *("read", "apply", "apply", "lease", "position"),
    ]


def test_a_new_process_asks_before_it_reads_whether_others_may_tell_and_has_no_lease_until_they_have(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG
) -> None:
    listener.cutoffs.loaded, listener_clock.step_ns = False, 1
    database = PlayedDatabase(log, others_may_tell=True)
    for _ in range(2):
        log.clear()
        listener._round(database)  # type: ignore[arg-type]
        assert only_first_clock(log) == ["clock", "others?", "renew", "read", "apply", "position"]
        assert not listener.cutoffs.loaded and not listener.cutoffs.lease_is_valid()
    database.others_may_tell = False
    listener._round(database)  # type: ignore[arg-type]
    log.clear()
    listener._round(database)  # type: ignore[arg-type]
    assert only_first_clock(log) == ["clock", "renew", "read", "apply", "lease", "position"], "it asks once too often"


def test_a_new_process_waits_for_the_others_a_lease_and_two_seconds_at_most_whatever_the_time_is_there(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG
) -> None:
    """After the database's clock stepped back, its server started in the future."""
    listener.cutoffs.loaded, listener_clock.step_ns = False, 0
    database = PlayedDatabase(log, others_may_tell=True)
    listener_clock.now_ns = 5 * SECOND_NS
    for now_s, trusts in ((5.0, False), (9.0, False), (9.001, True)):
        listener_clock.now_ns = int(now_s * SECOND_NS)
        listener._round(database)  # type: ignore[arg-type]
        assert ("lease" in log) is trusts, now_s


@pytest.mark.parametrize("lost_at", ["load", "lock", "give back", "raise everyone", "commit"])
def test_what_is_in_doubt_stays_so_until_it_is_done_however_often_the_connection_is_lost(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch, lost_at: str
) -> None:
    """The row that told is overwritten by the first look at it."""
    database = PlayedDatabase(log, renewals=3)
    with monkeypatch.context() as patch:
        lose_the_connection_at(lost_at, database, patch)
        with pytest.raises(psycopg.OperationalError):
            listener._round(database)  # type: ignore[arg-type]
    assert "lease" not in log and listener.cutoffs.fenced
    log.clear()
    database.position, database.rows = None, database.rows[:1]
    assert listener._register(database)  # type: ignore[arg-type]
    listener._end_what_is_in_doubt(database)  # type: ignore[arg-type]
    listener._round(database)  # type: ignore[arg-type]
    assert log.index("give back") < log.index("raise everyone") < log.index("lease")
    assert not listener.cutoffs.fenced


def test_the_answer_about_lost_transactions_is_asked_for_again_when_it_did_not_come(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = PlayedDatabase(log, renewals=None, xids_behind=True)
    with monkeypatch.context() as patch:
        lose_the_connection_at("xids behind?", database, patch)
        with pytest.raises(psycopg.OperationalError):
            listener._register(database)  # type: ignore[arg-type]
    database.position = None
    assert listener._register(database)  # type: ignore[arg-type]
    assert log.count("xids behind?") == 2


def take_the_right_away(function: str, database: PlayedDatabase, patch: pytest.MonkeyPatch) -> None:
    play = database.execute

    def execute(query: str, parameters: object = ()) -> object:
        if function in query:
            raise psycopg.errors.InsufficientPrivilege
        return play(query, parameters)

    patch.setattr(database, "execute", execute)


def lose_the_connection_at(step: str, database: PlayedDatabase, patch: pytest.MonkeyPatch) -> None:
    play = PlayedDatabase.execute

    def execute(query: str, parameters: object = ()) -> object:
        answer = play(database, query, parameters)
        if database.log[-1:] == [step]:
            raise psycopg.OperationalError("lost")
        return answer

    @contextmanager
    def transaction() -> Iterator[None]:
        database.log.append("begin")
        yield
        if step == "commit" and "raise everyone" in database.log:
            raise psycopg.OperationalError("lost")
        database.log.append("commit")

    patch.setattr(database, "execute", execute)
    patch.setattr(database, "transaction", transaction)


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
    assert steps[begin : steps.index("renew")] == ["register", "fence", "listen", *LOAD, *GIVE_BACK]
    assert steps.count("fence") == 1


def test_what_this_process_knows_is_given_back_and_everyones_generation_rises_above_it(
    listener: CutoffListener, log: LOG
) -> None:
    listener.cutoffs.advance(Cutoff("user", "lost", 8, 1, 10**15))
    listener.cutoffs.advance(Cutoff("session", "ended", 0, 1, 10**15))
    listener.cutoffs.advance(Cutoff("everyone", "", 4, 1, 10**15))
    database = PlayedDatabase(log, renewals=3)
    assert listener._register(database)  # type: ignore[arg-type]
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
    assert "give back" not in log
    assert "raise everyone" in log


def test_as_much_as_there_is_is_given_back_in_pieces_so_that_nobody_takes_it_for_silence(
    listener: CutoffListener, log: LOG
) -> None:
    database = PlayedDatabase(log, renewals=3)
    for number in range(2_500):
        listener.cutoffs.advance(Cutoff("user", str(number), 8, 1, 10**15))
    listener._end_what_is_in_doubt(database)  # type: ignore[arg-type]
    steps = log[log.index("lock") : log.index("raise everyone")]
    assert steps == ["lock", *["clock", "give back"] * 3]


def test_a_service_that_may_not_write_reads_and_stays_fenced_until_somebody_has_ended_the_doubt(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = PlayedDatabase(log, renewals=3)
    take_the_right_away("raise_cutoff", database, monkeypatch)
    for _ in range(2):
        listener._round(database)  # type: ignore[arg-type]
    assert {"fence", "load", "position"} <= set(log) and "lease" not in log
    assert listener.cutoffs.fenced
    database.rows = [*database.rows, ("everyone", "", 1, NOW_US, 10**17)]
    listener._round(database)  # type: ignore[arg-type]
    assert "lease" in log and not listener.cutoffs.fenced


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
        assert steps == ["renew", "read", "apply", "begin", "bring back", "commit", *LOAD, "lease", "position"]
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


@pytest.mark.parametrize("purged", [False, True])
def test_a_service_trusts_no_clock_that_stepped_back_until_what_was_purged_is_back(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch, purged: bool
) -> None:
    """It may not bring the cutoffs back itself. What was not purged is in the table, and it can read that."""
    listener_clock.step_ns = 0
    database = PlayedDatabase(log)
    listener._round(database)  # type: ignore[arg-type]
    before = listener.cutoffs.wall_offset_ns
    take_the_right_away("bring_back_cutoffs", database, monkeypatch)
    log.clear()
    database.purged_us = database.now_us if purged else 0
    database.now_us -= 3600 * 1_000_000
    if purged:
        with pytest.raises(Unsuitable, match="brought back"):
            listener._round(database)  # type: ignore[arg-type]
        assert "lease" not in log and listener.cutoffs.wall_offset_ns == before
        log.clear()
        database.purged_us = database.now_us  # a worker of the server has done it
    listener._round(database)  # type: ignore[arg-type]
    assert "lease" in log and listener.cutoffs.wall_offset_ns < before
