"""The confirmation waits until no worker can accept what was revoked, and no longer. The table is played."""

from __future__ import annotations

import pytest

from lastcall.errors import DatabaseAway
from models import confirmation
from models.database_errors import Busy, NotConfirmed
from models.worker import MARGIN_S, Reading, WorkerRow, WorkerWatch
from tests.unit.model import REVOCATION

SECOND_NS = 1_000_000_000


class Table:
    """What `read_workers` finds, reading by reading; time passes in `sleep`, and while it reads."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *readings: list[WorkerRow] | Reading | DatabaseAway, reading_ns: int = 0
    ) -> None:
        self.readings = [Reading(found, "first", True) if isinstance(found, list) else found for found in readings]
        self.reading_ns = reading_ns
        self.now_ns = SECOND_NS
        self.log: list[str] = []
        self.within_ms: list[int] = []
        monkeypatch.setattr(confirmation, "read_workers", self.read)
        monkeypatch.setattr(confirmation, "boottime_ns", self.clock)
        monkeypatch.setattr(confirmation.time, "sleep", self.sleep)

    def read(self, position: str, *, within_ms: int) -> Reading:
        self.log.append("rows")
        self.within_ms.append(within_ms)
        self.now_ns += self.reading_ns
        found = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(found, DatabaseAway):
            raise found
        return found

    def clock(self) -> int:
        self.log.append("clock")
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.log.append("sleep")
        self.now_ns += int(seconds * SECOND_NS)


def test_a_confirmation_judges_each_reading_by_a_clock_from_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, done = WorkerRow("a", 1, 2.0, False), WorkerRow("a", 1, 2.0, True)
    table = Table(monkeypatch, [waiting], [waiting], [done])
    confirmation.confirm("7", WorkerWatch())
    attempts = " ".join(table.log).split("sleep")
    assert len(attempts) == 3
    assert all("clock rows" in attempt for attempt in attempts)
    assert REVOCATION[1:3] == ("confirm: clock", "confirm: rows")


def test_a_confirmation_waits_for_the_last_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    early, late, done = (WorkerRow("a", 1, 2.0, True), WorkerRow("b", 1, 2.0, False), WorkerRow("b", 1, 2.0, True))
    table = Table(monkeypatch, [early, late], [early, late], [early, done])
    found = confirmation.confirm("7", WorkerWatch())
    assert table.log.count("rows") == 3
    assert (found.live, found.confirmed, found.fenced, found.in_force) == (2, 2, 0, True)


def test_a_confirmation_holds_a_connection_to_be_told_at_once_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [WorkerRow("a", 1, 2.0, False)])
    confirmation.confirm("7", WorkerWatch())
    assert 0 < table.within_ms[0] <= 50
    assert set(table.within_ms[1:]) == {0}


def test_a_confirmation_passes_a_silent_worker_only_after_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [WorkerRow("a", 1, 2.0, False)])
    found = confirmation.confirm("7", WorkerWatch())
    assert (found.live, found.fenced, found.in_force) == (0, 1, True)
    assert table.now_ns > SECOND_NS + 2 * SECOND_NS


def test_the_time_that_a_reading_takes_counts_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from 1 to 2 s, first seen by then: only the reading that is asked for after 4.25 s may pass it."""
    table = Table(monkeypatch, [WorkerRow("a", 1, 2.0, False)], reading_ns=SECOND_NS)
    confirmation.confirm("7", WorkerWatch())
    assert table.log.count("rows") == 5


def test_who_confirms_waits_for_his_own_row_while_he_has_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has emptied the table of the workers, or his listener's database is another one."""
    done, own = WorkerRow("a", 1, 2.0, True), WorkerRow("own", 1, 2.0, True)
    Table(monkeypatch, [done], [done, own])
    found = confirmation.confirm("7", WorkerWatch(lambda: "own"))
    assert (found.live, found.confirmed, found.fenced, found.in_force) == (2, 2, 0, True)
    Table(monkeypatch, [])
    found = confirmation.confirm("7", WorkerWatch(lambda: "own"), patience_s=3.0)
    assert (found.live, found.unconfirmed, found.in_force) == (1, ("own",), False)
    assert confirmation.confirm("7", WorkerWatch(lambda: None)).in_force


def test_a_worker_without_leases_is_named_and_never_taken_for_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    Table(monkeypatch, [WorkerRow("old", 1, None, False)])
    found = confirmation.confirm("7", WorkerWatch(), patience_s=3.0)
    assert found.unconfirmed == ("old",)
    assert found.in_force is False


# -------------------------------------------------------------------------------- after a crash, or a promotion

DONE = WorkerRow("a", 1, 2.0, True)


@pytest.mark.parametrize("rows", [[DONE], []], ids=["all rows confirmed", "no row left"])
def test_after_a_crash_a_confirmation_waits_for_one_lease(
    monkeypatch: pytest.MonkeyPatch, rows: list[WorkerRow]
) -> None:
    """A worker may trust a lease that the table does not tell of."""
    table = Table(monkeypatch, Reading(rows, "second", False))
    found = confirmation.confirm("7", WorkerWatch())
    assert (found.confirmed, found.settled, found.in_force) == (len(rows), True, True)
    assert table.now_ns > SECOND_NS + (2 + MARGIN_S) * SECOND_NS


def test_a_crash_during_a_confirmation_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = WorkerRow("a", 1, 2.0, False)
    table = Table(monkeypatch, [waiting], Reading([waiting], "second", True), Reading([DONE], "second", True))
    found = confirmation.confirm("7", WorkerWatch())
    assert (found.confirmed, found.in_force) == (1, True)
    assert table.now_ns > SECOND_NS + (2 + MARGIN_S) * SECOND_NS


def test_a_confirmation_whose_patience_ends_before_that_lease_is_not_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, Reading([DONE], "second", False))
    found = confirmation.confirm("7", WorkerWatch(), patience_s=1.0)
    assert (found.live, found.confirmed, found.unconfirmed) == (1, 1, ())
    assert (found.settled, found.in_force) == (False, False)
    assert table.now_ns < SECOND_NS + 2 * SECOND_NS


def test_the_time_of_a_confirmation_counts_from_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    Table(monkeypatch, [DONE], reading_ns=2_000_000)
    assert confirmation.confirm("7", WorkerWatch()).elapsed_ms == 2.0
    Table(monkeypatch, [DONE], reading_ns=2_000_000)
    assert confirmation.confirm("7", WorkerWatch(), since_ns=SECOND_NS - 4_000_000).elapsed_ms == 6.0


def test_patience_counts_from_the_confirmation_not_from_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = WorkerRow("a", 1, 2.0, False)
    table = Table(monkeypatch, [waiting], [waiting], [DONE])
    assert confirmation.confirm("7", WorkerWatch(), patience_s=1.0, since_ns=-(10**12)).in_force
    assert table.log.count("rows") == 3


@pytest.mark.parametrize("error", [DatabaseAway(), Busy()], ids=["away", "busy"])
def test_a_connection_that_was_cut_costs_no_receipt(monkeypatch: pytest.MonkeyPatch, error: DatabaseAway) -> None:
    table = Table(monkeypatch, [WorkerRow("a", 1, 2.0, False)], error, error, [WorkerRow("a", 1, 2.0, True)])
    assert confirmation.confirm("7", WorkerWatch()).in_force
    assert table.log.count("rows") == 4


@pytest.mark.parametrize("error", [DatabaseAway(), Busy()], ids=["away", "busy"])
@pytest.mark.parametrize("reading_s", [0.0, 0.7])
def test_a_database_that_stays_away_is_not_waited_for_and_nobody_is_told_that_nothing_was_done(
    monkeypatch: pytest.MonkeyPatch, error: DatabaseAway, reading_s: float
) -> None:
    table = Table(monkeypatch, error, reading_ns=int(reading_s * SECOND_NS))
    with pytest.raises(NotConfirmed, match="It is written"):
        confirmation.confirm("7", WorkerWatch())
    assert table.now_ns < 2 * SECOND_NS
