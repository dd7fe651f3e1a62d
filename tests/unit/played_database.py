"""A database that is played for the listener: it writes down what it is sent, in the model's words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from psycopg.pq import TransactionStatus

from lastcall import listener as listener_module
from lastcall.cutoffs import Cutoff, Cutoffs
from lastcall.listener import CutoffListener
from lastcall.statements import CONFIRM, READ_NEW

SECOND_NS = 1_000_000_000
LOG = list[str]
NOW_US = 1_700_000_000_000_000
ROW = ("user", "u1", 5, 1_000_000, 10**15)

STATEMENTS = {
    "UPDATE workers SET renewals": "renew",
    "INSERT INTO workers": "register",
    "SELECT pg_snapshot_xmax": "xids behind?",
    "LEFT JOIN cutoffs AS c": "read",
    "FROM cutoffs AS c": "load",
    "UPDATE workers SET snapshot": "position",
    "DELETE FROM workers": "delete row",
    "LISTEN lastcall_cutoffs": "listen",
    "ISOLATION LEVEL REPEATABLE READ": "one snapshot",
    "SELECT pg_current_snapshot": "position of the load",
    "pg_advisory_xact_lock": "lock",
    "raise_cutoff": "give back",
    "UPDATE everyone SET gen": "raise everyone",
    "bring_back_cutoffs": "bring back",
    "pg_notify": "notify",
    "pg_postmaster_start_time": "others?",
    "synchronous_commit = on": "durable",
}


class Answer(list[tuple[Any, ...]]):
    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None


class PlayedDatabase:
    """`renewals` and `position` are in the worker's row; None: there is no row, and a new one begins at
    `new_number`."""

    def __init__(
        self,
        log: LOG,
        *,
        renewals: int | None = 10,
        position: str | None = "1:2:",
        xids_behind: bool = False,
        now_us: int = NOW_US,
        purged_us: int = 0,
        heard: bool = True,
        others_may_tell: bool = False,
        new_number: int = 1_000_000,
    ) -> None:
        self.log, self.renewals, self.xids_behind = log, renewals, xids_behind
        self.position = position if renewals is not None else None
        self.now_us, self.purged_us, self.heard, self.hints = now_us, purged_us, heard, 0
        self.others_may_tell, self.new_number = others_may_tell, new_number
        self.rows: list[tuple[Any, ...]] = [ROW]
        self.sent: dict[str, tuple[str, Any]] = {}
        self.listener: CutoffListener | None = None
        self.lease_at: dict[str, int] = {}
        self.prepared = {listener_module._READ_NEW: READ_NEW, listener_module._CONFIRM: CONFIRM}
        self.pgconn = SimpleNamespace(notifies=lambda: None)
        self.info = SimpleNamespace(transaction_status=TransactionStatus.IDLE)

    def execute(self, query: str, parameters: Any = ()) -> Answer:
        step = next((step for part, step in STATEMENTS.items() if part in query), "")
        if step:
            self.log.append(step)
            self.sent[step] = query, parameters
        if self.listener is not None:
            self.lease_at[step] = self.listener.cutoffs.lease_until_ns
        match step:
            case "renew" if self.renewals is None:
                return Answer()
            case "renew" | "register":
                is_new = self.renewals is None
                self.renewals = self.new_number if self.renewals is None else self.renewals + 1
                return Answer([(self.renewals, self.position, is_new)])
            case "position" if parameters[3] != str(self.renewals):
                return Answer()
            case "others?":
                return Answer([(self.others_may_tell,)])
            case "xids behind?":
                return Answer([(self.xids_behind,)])
            case "position of the load":
                return Answer([("5:9:",)])
            case "read":
                return Answer([("10:20:", self.now_us, 0, self.purged_us, *row) for row in self.rows])
            case "load":
                return Answer(self.rows)
            case "raise everyone":
                self.rows = [*self.rows, ("everyone", "", parameters["known"] + 1, NOW_US, 10**17)]
        return Answer([(1, False)])

    def ask(self, name: bytes, *parameters: str) -> Answer:
        """In place of `lastcall.prepared.ask`."""
        return self.execute(self.prepared[name], parameters)

    def prepare(self, name: bytes, query: str) -> None:
        assert self.prepared[name] == query

    @contextmanager
    def cursor(self) -> Iterator[PlayedDatabase]:
        yield self

    def stream(self, query: str, *, size: int) -> Iterator[tuple[Any, ...]]:
        yield from self.execute(query)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.log.append("begin")
        self.info.transaction_status = TransactionStatus.INTRANS
        try:
            yield
        finally:
            self.info.transaction_status = TransactionStatus.IDLE
        self.log.append("commit")

    def notifies(self, *, timeout: float, stop_after: int | None = None) -> Iterator[str]:
        if timeout > 0 and self.listener is not None and "listen" in self.log:
            self.log.append("wait")
            self.listener._stopping.set()
            yield from ["heard"] * self.heard
        else:
            yield "heard"

    def __enter__(self) -> PlayedDatabase:
        self.log.append("another connection")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append("closed")


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


class RecordingClock:
    """Says 1 s, 2 s, 3 s, …, or stands still."""

    def __init__(self, log: LOG) -> None:
        self.log, self.now_ns, self.step_ns = log, 0, SECOND_NS

    def __call__(self) -> int:
        self.log.append("clock")
        self.now_ns += self.step_ns
        return self.now_ns


def only_first_clock(log: LOG) -> LOG:
    """What the listener's clock is asked later is for the watchdog, and for the time of the database."""
    first = log.index("clock")
    return [step for i, step in enumerate(log) if step != "clock" or i == first]


def as_model(log: Iterable[str]) -> LOG:
    """Autocommit: a statement outside a transaction is committed before the next one is sent."""
    return [part for step in log for part in (("renew", "commit") if step == "renew" else (step,))]
