"""The listener keeps the orders that tests/unit/model.py and small_models.py prove, statement by statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lastcall import listener as listener_module
from lastcall.cutoffs import Cutoff, Cutoffs
from lastcall.listener import CutoffListener
from tests.unit import model, small_models

SECOND_NS = 1_000_000_000
LOG = list[str]

STATEMENTS = {
    "UPDATE workers SET renewals": "renew",
    "INSERT INTO workers": "register",
    "SELECT pg_snapshot_xmax": "went back?",
    "cutoffs AS c": "read",
    "UPDATE workers SET snapshot": "position",
    "DELETE FROM workers": "delete row",
    "LISTEN lastcall_cutoffs": "listen",
}


class FakeCursor(list[tuple[Any, ...]]):
    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None


class FakeConnection:
    """Writes down what is sent. `went_back` and `row_exists` decide what the database answers."""

    def __init__(self, log: LOG, *, row_exists: bool = True, went_back: bool = False) -> None:
        self.log, self.row_exists, self.went_back = log, row_exists, went_back
        self.listener: CutoffListener | None = None
        self.reads: list[str] = []
        self.lease_at_delete: int | None = None

    def execute(self, query: str, parameters: Any = ()) -> FakeCursor:
        step = next((step for start, step in STATEMENTS.items() if start in query), "")
        if step:
            self.log.append(step)
        if step == "delete row" and self.listener is not None:
            self.lease_at_delete = self.listener.cutoffs.lease_until_ns
        if step == "renew":
            return FakeCursor([(1,)] if self.row_exists else [])
        if step == "went back?":
            return FakeCursor([(self.went_back,)])
        if step == "read":
            self.reads.append(query)
            row = ("user", "u1", 5, 1_000_000, 10**15)
            return FakeCursor([("10:20:", 1_700_000_000_000_000, 0, *row)])
        return FakeCursor([(1, False)])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.log.append("begin")
        yield
        self.log.append("commit")

    def notifies(self, *, timeout: float, stop_after: int | None = None) -> Iterator[str]:
        if timeout > 0 and self.listener is not None and "listen" in self.log:
            self.log.append("wait")
            self.listener._stopping.set()
        yield "heard"


class RecordingCutoffs(Cutoffs):
    def __init__(self, log: LOG) -> None:
        super().__init__()
        self.log = log

    def advance(self, cutoff: Cutoff) -> bool:
        self.log.append("apply")
        return super().advance(cutoff)

    def renew_lease(self, until_ns: int) -> None:
        self.log.append("lease")
        super().renew_lease(until_ns)

    def fence(self) -> None:
        self.log.append("fence")
        super().fence()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LOG:
    """The steps in their order; the listener's clock says 1 s, 2 s, 3 s, …"""
    written: LOG = []

    def clock() -> int:
        written.append("clock")
        return written.count("clock") * SECOND_NS

    monkeypatch.setattr(listener_module, "boottime_ns", clock)
    return written


@pytest.fixture
def listener(log: LOG) -> CutoffListener:
    return CutoffListener("postgresql://nowhere", RecordingCutoffs(log), lease_s=2.0)


def play_round(listener: CutoffListener, **answers: bool) -> tuple[LOG, FakeConnection]:
    log = listener.cutoffs.log  # type: ignore[attr-defined]
    log.clear()
    connection = FakeConnection(log, **answers)
    listener._round(connection)  # type: ignore[arg-type]
    first_clock = log.index("clock")
    return [step for i, step in enumerate(log) if step != "clock" or i == first_clock], connection


def as_model(log: LOG) -> LOG:
    """Autocommit: a statement outside a transaction is committed before the next one is sent."""
    return [part for step in log for part in (("renew", "commit") if step == "renew" else (step,))]


def test_a_round_of_the_listener_is_the_round_of_the_model(listener: CutoffListener) -> None:
    first, _ = play_round(listener)
    assert as_model(first) == list(model.WORKER)


def test_a_later_round_looks_whether_the_database_went_back_before_it_reads(listener: CutoffListener) -> None:
    play_round(listener)
    second, connection = play_round(listener)
    assert second.index("renew") < second.index("went back?") < second.index("read")
    assert as_model([step for step in second if step != "went back?"]) == list(model.WORKER)
    assert "pg_snapshot_xmin" in connection.reads[0], "only what is new"


def test_the_lease_counts_from_the_clock_before_anything_was_sent(listener: CutoffListener) -> None:
    play_round(listener)
    assert listener.cutoffs.lease_until_ns == 1 * SECOND_NS + 2 * SECOND_NS


def test_a_row_that_is_gone_is_registered_and_committed_before_reading(listener: CutoffListener) -> None:
    steps, _ = play_round(listener, row_exists=False)
    assert steps[:6] == ["clock", "renew", "begin", "register", "commit", "read"]


def test_a_database_that_went_back_fences_first_and_everything_is_read(listener: CutoffListener) -> None:
    play_round(listener)
    steps, connection = play_round(listener, went_back=True)
    assert steps == ["clock", "renew", "went back?", "fence", "read", "apply", "lease", "position"]
    assert "pg_snapshot_xmin" not in connection.reads[0]


def test_a_failing_read_neither_extends_the_lease_nor_writes_a_position(
    listener: CutoffListener, log: LOG, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_round(listener)
    monkeypatch.setattr(listener.cutoffs, "advance", lambda _: 1 / 0)
    log.clear()
    with pytest.raises(ZeroDivisionError):
        listener._round(FakeConnection(log))  # type: ignore[arg-type]
    assert "lease" not in log
    assert "position" not in log


def test_every_statement_of_the_listener_is_committed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(listener_module.psycopg, "connect", lambda *_, **options: given.update(options))
    CutoffListener("postgresql://nowhere", Cutoffs())._connect()
    assert given["autocommit"] is True
    assert given["target_session_attrs"] == "read-write"


def test_the_listener_registers_then_listens_then_reads_and_takes_its_row_away_last(
    listener: CutoffListener, log: LOG
) -> None:
    connection = FakeConnection(log)
    connection.listener = listener
    listener._serve(connection)  # type: ignore[arg-type]
    steps = [step for step in log if step in ("register", "commit", "listen", "read", "wait", "delete row")]
    assert steps[:4] == ["register", "commit", *small_models.START]
    assert steps[-1] == "delete row"
    assert connection.lease_at_delete == 0, "a worker without a row must trust nothing"
