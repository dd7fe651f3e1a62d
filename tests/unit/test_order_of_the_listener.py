"""The listener keeps the orders that tests/unit/model.py, crash_model.py and small_models.py prove, statement by
statement."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lastcall import listener as listener_module
from lastcall.cutoffs import Cutoffs
from lastcall.listener import CANARY, ROUND_S, SILENCE_S, CutoffListener
from tests.unit import crash_model, model, small_models
from tests.unit.played_database import (
    LOG,
    ROW,
    SECOND_NS,
    PlayedDatabase,
    RecordingClock,
    as_model,
    only_first_clock,
)

LOAD = ["begin", "one snapshot", "position of the load", "load", "apply", "commit"]


def play_round(listener: CutoffListener, database: PlayedDatabase) -> LOG:
    """The steps of one round, its clock set to 0 before."""
    database.log.clear()
    listener._round(database)  # type: ignore[arg-type]
    return only_first_clock(database.log)


def serve(listener: CutoffListener, database: PlayedDatabase, monkeypatch: pytest.MonkeyPatch) -> LOG:
    """What happens on one connection, until the listener stops while it waits for the first time."""
    database.listener = listener
    monkeypatch.setattr(listener, "_connect", lambda: database)
    listener._serve(database)  # type: ignore[arg-type]
    return database.log


def test_a_round_of_the_listener_is_the_round_of_the_model(listener: CutoffListener, log: LOG) -> None:
    assert as_model(play_round(listener, PlayedDatabase(log))) == list(model.WORKER)
    assert [step for moment in crash_model.ROUND for step in moment] == list(model.WORKER)


def test_a_look_of_the_listener_is_the_look_of_the_model(listener: CutoffListener, log: LOG) -> None:
    listener.cutoffs.loaded = False
    listener._look(PlayedDatabase(log))  # type: ignore[arg-type]
    assert [step for step in log if step != "clock"] == list(model.LOOK)
    assert (listener.cutoffs.lease_until_ns, listener.cutoffs.loaded) == (0, False), "it is no new lease"


def test_busy_threads_let_a_look_have_the_interpreter_back_soon(listener: CutoffListener, log: LOG) -> None:
    during = []

    class Watched(PlayedDatabase):
        def execute(self, query: str, parameters: Any = ()) -> Any:
            during.append(sys.getswitchinterval())
            return super().execute(query, parameters)

    usual_s = sys.getswitchinterval()
    listener._look(Watched(log))  # type: ignore[arg-type]
    assert len(during) == 2
    assert max(during) < usual_s / 10
    assert sys.getswitchinterval() == usual_s


def test_a_look_goes_on_where_the_last_read_ended(listener: CutoffListener, log: LOG) -> None:
    database = PlayedDatabase(log)
    positions = []
    for look in (listener._look, listener._round, listener._look):
        look(database)  # type: ignore[arg-type]
        positions.append(database.sent["read"][1][0])
    assert positions == ["1:2:", "10:20:", "10:20:"]


def test_every_round_reads_what_is_new_since_the_position_before(listener: CutoffListener, log: LOG) -> None:
    database = PlayedDatabase(log)
    positions = []
    for _ in range(3):
        assert as_model(play_round(listener, database)) == list(model.WORKER)
        query, (position,) = database.sent["read"]
        assert "pg_snapshot_xmin" in query
        positions.append(position)
    assert positions == ["1:2:", "10:20:", "10:20:"]


def test_a_later_round_looks_whether_the_database_went_back_before_it_reads(listener: CutoffListener, log: LOG) -> None:
    """The number that its renewal answers with tells."""
    database = PlayedDatabase(log)
    play_round(listener, database)
    assert listener._renewals == database.renewals == 11
    assert as_model(play_round(listener, database)) == list(model.WORKER)
    database.renewals = 7
    steps = play_round(listener, database)
    assert steps.index("renew") < steps.index("fence") < steps.index("read")


def test_the_lease_counts_from_the_clock_before_anything_was_sent(listener: CutoffListener, log: LOG) -> None:
    play_round(listener, PlayedDatabase(log))
    assert listener.cutoffs.lease_until_ns == 1 * SECOND_NS + 2 * SECOND_NS


def test_a_row_that_is_gone_is_registered_and_committed_before_everything_is_read(
    listener: CutoffListener, log: LOG
) -> None:
    steps = play_round(listener, PlayedDatabase(log, renewals=None))
    assert steps == [
        *("clock", "renew", "register", "xids behind?"),
        *LOAD,
        *("read", "apply", "lease", "position"),
    ]


def test_a_load_is_one_snapshot_whose_position_is_read_with_it(listener: CutoffListener, log: LOG) -> None:
    listener._load(PlayedDatabase(log))  # type: ignore[arg-type]
    assert [step for step in log if step != "clock"] == LOAD
    assert listener._position == "5:9:"


def test_a_load_alone_lets_no_lease_count_and_confirms_nothing(listener: CutoffListener, log: LOG) -> None:
    listener.cutoffs.loaded = False
    listener._load(PlayedDatabase(log))  # type: ignore[arg-type]
    assert not {"lease", "position"} & set(log)
    assert (listener.cutoffs.lease_until_ns, listener.cutoffs.loaded, listener.reads_done) == (0, False, 0)


@pytest.mark.parametrize("fails", ["load", "read"])
def test_a_failing_read_neither_extends_the_lease_nor_writes_a_position(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    database = PlayedDatabase(log)
    play_round(listener, database)
    database.renewals = None if fails == "load" else database.renewals
    monkeypatch.setattr(listener.cutoffs, "advance", lambda _: 1 / 0)
    log.clear()
    with pytest.raises(ZeroDivisionError):
        listener._round(database)  # type: ignore[arg-type]
    assert fails in log
    assert "lease" not in log
    assert "position" not in log


def test_every_statement_of_the_listener_is_committed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(listener_module.psycopg, "connect", lambda *_, **options: given.update(options))
    CutoffListener("postgresql://nowhere", Cutoffs())._connect()
    assert given["autocommit"] is True
    assert given["target_session_attrs"] == "read-write"


# ----------------------------------------------------------------------------------------------- a whole connection


@pytest.mark.parametrize("heard", [True, False], ids=["on a hint it looks", "without one it does a round"])
def test_the_listener_registers_then_listens_then_reads_and_takes_its_row_away_last(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    listener_clock.step_ns = 0
    database = PlayedDatabase(log, heard=heard)
    steps = [step for step in serve(listener, database, monkeypatch) if step != "clock"]
    steps = steps[steps.index("register") :]
    first = ["renew", "read", "apply", "lease", "position"]
    then = list(model.LOOK) if heard else first
    assert steps == ["register", "listen", *LOAD, *first, "wait", *then, "delete row"]
    assert small_models.START == ("listen", "read")
    assert crash_model.CONNECT == (("register",), ("load",))
    assert database.lease_at["delete row"] == 0, "a worker without a row must trust nothing"


def test_renewals_are_durable_before_the_first_one_is_sent(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener_clock.step_ns = 0
    steps = serve(listener, PlayedDatabase(log), monkeypatch)
    assert steps.index("durable") < steps.index("register")


def test_a_row_says_which_incarnation_it_was_registered_in_and_forgets_its_position(
    listener: CutoffListener, log: LOG
) -> None:
    database = PlayedDatabase(log)
    listener._register(database)  # type: ignore[arg-type]
    query, _ = database.sent["register"]
    assert "SELECT id FROM incarnation" in query
    assert "incarnation = excluded.incarnation" in query
    assert "snapshot = NULL" in query


def test_the_notify_that_proves_a_connection_comes_from_another_one(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener_clock.step_ns = 0
    steps = serve(listener, PlayedDatabase(log), monkeypatch)
    assert steps[: steps.index("closed") + 1] == ["another connection", "notify", "closed"]


@pytest.mark.parametrize(("lease_s", "longest_s"), [(0.4, 0.1), (2.0, ROUND_S), (60.0, ROUND_S)])
@pytest.mark.parametrize("hints", [0, 3], ids=["in silence", "however many hints come"])
def test_a_round_follows_after_a_quarter_of_a_lease_or_half_a_second(
    listener: CutoffListener, listener_clock: RecordingClock, log: LOG, lease_s: float, longest_s: float, hints: int
) -> None:
    class Waited(PlayedDatabase):
        def notifies(self, *, timeout: float, stop_after: int | None = None) -> Iterator[str]:
            self.hints -= 1
            listener_clock.now_ns += int(timeout * SECOND_NS) // (2 if self.hints >= 0 else 1)
            yield from ["heard"] * (self.hints >= 0)

    listener.lease_s, listener_clock.step_ns = lease_s, 0
    database = Waited(log)
    database.hints = hints
    listener._round(database)  # type: ignore[arg-type]
    while listener._wait_for_a_hint(database):  # type: ignore[arg-type]
        listener._look(database)  # type: ignore[arg-type]
    assert listener_clock.now_ns == pytest.approx(longest_s * SECOND_NS, abs=100)
    assert log.count("renew") == 1 and log.count("position") == 1 + hints


@pytest.mark.parametrize(
    ("hung_s", "pauses_s"), [(0.0, [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]), (0.25, [0.0, 0.0, 0.15, 0.55, 0.55, 0.55])]
)
def test_the_listener_tries_again_within_a_second_however_long_the_database_is_away(
    listener: CutoffListener,
    listener_clock: RecordingClock,
    monkeypatch: pytest.MonkeyPatch,
    hung_s: float,
    pauses_s: list[float],
) -> None:
    waits: list[float] = []

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        if len(waits) == 6:
            listener._stopping.set()

    def away() -> None:
        listener_clock.now_ns += int(hung_s * SECOND_NS)
        raise psycopg.OperationalError("away")

    listener_clock.step_ns = 0

    monkeypatch.setattr(listener, "_connect", away)
    monkeypatch.setattr(listener_module.random, "uniform", lambda _, most: most)
    monkeypatch.setattr(listener._stopping, "wait", wait)
    listener._run()
    assert waits == pytest.approx(pauses_s)
    assert listener.database_is_silent


# ------------------------------------------------------------------------------------------------- what others see


def test_the_database_is_silent_when_a_statement_takes_too_long(
    listener: CutoffListener, listener_clock: RecordingClock
) -> None:
    listener_clock.step_ns = 0
    assert not listener.database_is_silent
    listener._busy_since_ns = 5 * SECOND_NS
    listener_clock.now_ns = int((5 + SILENCE_S) * SECOND_NS)
    assert not listener.database_is_silent
    listener_clock.now_ns += 1
    assert listener.database_is_silent


def test_a_round_ends_the_silence(listener: CutoffListener, listener_clock: RecordingClock, log: LOG) -> None:
    listener_clock.step_ns = 0
    listener._away = True
    assert listener.database_is_silent
    play_round(listener, PlayedDatabase(log))
    assert not listener.database_is_silent


def test_a_change_is_told_once_and_the_canary_is_none(listener: CutoffListener, log: LOG) -> None:
    told: list[str] = []
    listener._on_change = lambda: told.append("position" if "position" in log else "too early")
    database = PlayedDatabase(log)
    database.rows = [(*ROW[:2], 5, ROW[3], 10**17)]
    play_round(listener, database)
    play_round(listener, database)
    assert told == ["position"], "rows are read again and again"
    database.rows = [("user", CANARY, 7, 1, 10**17)]
    play_round(listener, database)
    assert told == ["position"]
    assert database.sent["position"][1][1] == "7", "the canary that this worker refuses"


def test_a_canary_that_this_worker_would_let_through_is_not_told(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener.cutoffs, "refuses", lambda _: None)
    database = PlayedDatabase(log)
    database.rows = [("user", CANARY, 7, 1, 10**17)]
    play_round(listener, database)
    assert database.sent["position"][1][1] == "0"
