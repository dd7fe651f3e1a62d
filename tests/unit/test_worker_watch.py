"""The watch over the workers' leases: it may be late in calling one fenced, and never early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import worker as worker_module
from models.worker import MARGIN_S, Reading, WorkerRow, WorkerWatch

SECOND_NS = 1_000_000_000
LEASE_S = 2.0
OVER_NS = int((LEASE_S + MARGIN_S) * SECOND_NS)


def row(renewals: int, *, worker: str = "a", lease_s: float | None = LEASE_S) -> WorkerRow:
    return WorkerRow(worker, renewals, lease_s, False)


def reading(*rows: WorkerRow, incarnation: str = "first", settled: bool = True) -> Reading:
    return Reading(list(rows), incarnation, settled)


def test_a_row_that_is_seen_for_the_first_time_is_trusted() -> None:
    assert WorkerWatch().observe(reading(row(7)), 10**18, 10**18) == set()


def test_a_row_that_does_not_move_is_fenced_after_its_lease_and_a_margin() -> None:
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 0)
    assert watch.observe(reading(row(7)), OVER_NS, OVER_NS) == set()
    assert watch.observe(reading(row(7)), OVER_NS + 1, OVER_NS + 1) == {"a"}


@pytest.mark.parametrize("renewals", [8, 6, 0], ids=["forwards", "backwards, after a crash", "registered anew"])
def test_a_number_that_moved_counts_from_where_it_was_seen(renewals: int) -> None:
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 0)
    assert watch.observe(reading(row(renewals)), 10 * OVER_NS, 10 * OVER_NS) == set()
    assert watch.observe(reading(row(renewals)), 11 * OVER_NS, 11 * OVER_NS) == set()
    assert watch.observe(reading(row(renewals)), 11 * OVER_NS + 1, 11 * OVER_NS + 1) == {"a"}


def test_a_reading_that_took_long_counts_from_its_end_and_is_judged_by_its_beginning() -> None:
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 5 * SECOND_NS)
    assert watch.observe(reading(row(7)), 5 * SECOND_NS + OVER_NS, 10**15) == set()
    assert watch.observe(reading(row(7)), 5 * SECOND_NS + OVER_NS + 1, 10**15) == {"a"}


def test_a_worker_without_leases_is_never_fenced() -> None:
    watch = WorkerWatch()
    watch.observe(reading(row(0, lease_s=None)), 0, 0)
    assert watch.observe(reading(row(0, lease_s=None)), 10**18, 10**18) == set()


def test_each_worker_has_a_lease_of_its_own() -> None:
    watch = WorkerWatch()
    rows = [row(1, worker="short", lease_s=1.0), row(1, worker="long", lease_s=60.0), row(1, worker="busy")]
    watch.observe(reading(*rows), 0, 0)
    rows[2] = row(2, worker="busy")
    assert watch.observe(reading(*rows), 3 * SECOND_NS, 3 * SECOND_NS) == {"short"}


def test_a_row_that_went_and_came_back_is_new() -> None:
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 0)
    watch.observe(reading(), SECOND_NS, SECOND_NS)
    assert watch.observe(reading(row(7)), 10**15, 10**15) == set()


def test_it_is_known_for_how_long_a_row_has_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "boottime_ns", lambda: 40 * SECOND_NS)
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 10 * SECOND_NS)
    watch.observe(reading(row(7)), 20 * SECOND_NS, 20 * SECOND_NS)
    assert watch.unmoved_for_s("a") == 30
    assert watch.unmoved_for_s("unknown") == 0


# -------------------------------------------------------------------------------- after a crash, or a promotion


def test_after_a_crash_every_row_counts_anew() -> None:
    """What the row said before may have been lost: its number may stand for a renewal that is later than we saw."""
    watch = WorkerWatch()
    watch.observe(reading(row(7)), 0, 0)
    back = reading(row(7), incarnation="second")
    assert watch.observe(back, 10 * OVER_NS, 10 * OVER_NS) == set()
    assert watch.observe(back, 11 * OVER_NS, 11 * OVER_NS) == set()
    assert watch.observe(back, 11 * OVER_NS + 1, 11 * OVER_NS + 1) == {"a"}


def test_a_server_that_has_run_for_long_has_settled_at_the_first_reading() -> None:
    watch = WorkerWatch()
    watch.observe(reading(settled=True), 0, SECOND_NS)
    assert watch.has_settled(SECOND_NS)


def test_a_server_that_has_just_started_has_settled_after_one_lease_and_a_margin() -> None:
    """Counted from the end of the reading that showed it; and the reading that counts on it was asked for after."""
    watch = WorkerWatch()
    watch.observe(reading(settled=False), 0, SECOND_NS)
    assert not watch.has_settled(SECOND_NS + OVER_NS)
    assert watch.has_settled(SECOND_NS + OVER_NS + 1)


@pytest.mark.parametrize("settled", [True, False])
def test_a_crash_that_was_seen_is_waited_for_whatever_the_databases_clock_says(settled: bool) -> None:
    watch = WorkerWatch()
    watch.observe(reading(settled=True), 0, 0)
    watch.observe(reading(incarnation="second", settled=settled), 10 * SECOND_NS, 10 * SECOND_NS)
    assert not watch.has_settled(10 * SECOND_NS + OVER_NS)
    watch.observe(reading(incarnation="second", settled=True), 11 * SECOND_NS, 11 * SECOND_NS)
    assert not watch.has_settled(10 * SECOND_NS + OVER_NS), "the same incarnation, no new crash and no new word"
    assert watch.has_settled(10 * SECOND_NS + OVER_NS + 1)


def test_a_second_crash_begins_the_wait_anew() -> None:
    watch = WorkerWatch()
    for moment, incarnation in enumerate(("first", "second", "third")):
        watch.observe(reading(incarnation=incarnation), moment * SECOND_NS, moment * SECOND_NS)
    assert not watch.has_settled(2 * SECOND_NS + OVER_NS)
    assert watch.has_settled(2 * SECOND_NS + OVER_NS + 1)


def test_the_longest_lease_that_was_ever_seen_is_waited_for() -> None:
    """Its worker's row may be among what the crash has lost."""
    watch = WorkerWatch()
    watch.observe(reading(row(1, lease_s=60.0), row(1, worker="b", lease_s=None)), 0, 0)
    watch.observe(reading(incarnation="second"), SECOND_NS, SECOND_NS)
    assert not watch.has_settled(SECOND_NS + int((60 + MARGIN_S) * SECOND_NS))
    assert watch.has_settled(SECOND_NS + int((60 + MARGIN_S) * SECOND_NS) + 1)


waits = st.integers(0, 4)


@given(st.lists(st.tuples(waits, st.sampled_from(["worker: clock", "worker: renew", "watch: ask", "watch: answer"]))))
def test_no_worker_whose_lease_is_valid_is_ever_fenced(events: list[tuple[int, str]]) -> None:
    """A worker counts its lease from a clock before it renews, the watch sees the row some time after; any speeds.

    This is what lets tests/unit/model.py judge by the row's own stamp: the watch is never more eager.
    """
    watch, now_s = WorkerWatch(), 0
    clock_s = lease_until_s = asked_s = renewals = 0
    sent: int | None = None
    for wait_s, event in events:
        now_s += wait_s
        match event:
            case "worker: clock":
                clock_s, sent = now_s, renewals + 1
            case "worker: renew" if sent is not None:
                renewals, sent = sent, None
                lease_until_s = clock_s + LEASE_S
            case "watch: ask":
                asked_s = now_s
            case "watch: answer":
                fenced = watch.observe(reading(row(renewals)), asked_s * SECOND_NS, now_s * SECOND_NS)
                assert not fenced or lease_until_s <= now_s
