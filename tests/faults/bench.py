"""The fault bench: gunicorns behind proxies on one PostgreSQL, under load; the history and the figures of it all."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.conftest import PASSWORD
from tests.faults.history import ACCEPTED, NOT_NOW, REFUSED, History, Revocation, Token
from tests.faults.hooks import Hooks
from tests.faults.load import Load
from tests.faults.proxy import Proxy
from tests.faults.report import REPORT, Figures
from tests.gunicorn import Answer, Gunicorn, Line
from tests.workers.people import API
from tools.postgres import EmbeddedPostgres

ROUNDS = int(os.environ.get("LASTCALL_FAULT_ROUNDS", "7"))
"""Revocations for each fault."""
LEASE_S, MARGIN_S = 2.0, 0.25


def slowness() -> float:
    """How many times as long this machine takes, just now, as those on which a second was slack enough; 1 to 4."""
    took_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        sum(number * number for number in range(300_000))
        took_s.append(time.perf_counter() - began_s)
    return min(4.0, max(1.0, min(took_s) / 0.012))


SLACK_S = 1.0 * slowness()
"""The machine is small and shared: what is promised may take so much longer here."""
IN_FULL = ROUNDS >= 100
PAUSE_S = 0.004 if IN_FULL else 0.025
"""Between two requests of the load's threads: in the short form other tests run beside it."""
LATE_S = 0.0 if IN_FULL else SLACK_S
"""On top of what a row of docs/reliability.md promises in seconds: that table is made on a machine that is idle."""
DEADLINE_S = 40.0


@dataclass
class Host:
    """One gunicorn, and its own way to the database."""

    server: Gunicorn
    proxy: Proxy
    hooks: Hooks
    pids: list[int] = field(default_factory=list)

    def log(self) -> str:
        return self.server.log.read_text()


class Bench:
    """What a test of a fault works with."""

    def __init__(
        self, database: EmbeddedPostgres, name: str, hosts: list[Host], figures: Figures, users: int = 8
    ) -> None:
        self.database, self.name, self.hosts, self.figures = database, name, hosts, figures
        self.history = History()
        self.load = Load(self.history, PAUSE_S)
        self._usernames = itertools.cycle(f"user-{number}" for number in range(users))
        self._keys = itertools.count()
        self._recent: list[Token] = []
        self.last_excuse = ""
        with self.psql() as psql:
            # Everyone has the admin's password: no test needs to wait for more hashes.
            psql.execute(
                "INSERT INTO users (username, password_hash) SELECT unnest(%s::text []), password_hash FROM users"
                " WHERE username = 'admin'",
                ([f"user-{number}" for number in range(users)] + ["bystander"],),
            )
            psql.execute("INSERT INTO user_roles SELECT id, 'viewer' FROM users WHERE username <> 'admin'")
            self.user_ids = dict(psql.execute("SELECT username, id::text FROM users").fetchall())
        self.sign_in_as_admin()
        self.bystander = self.sign_in("bystander")
        self.load.ask_for(self.bystander)
        for host in hosts:
            host.pids = [line.worker_pid() for line in host.server.lines()]
            self.load.start(host.server.port, host.pids)

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def host(self) -> Host:
        """The first host; most tests have one."""
        return self.hosts[0]

    @property
    def admin_token(self) -> str:
        return self._admin.raw

    @property
    def pids(self) -> list[int]:
        return [pid for host in self.hosts for pid in host.pids]

    @contextmanager
    def psql(self) -> Iterator[psycopg.Connection]:
        """A direct connection of somebody who is not the application."""
        with psycopg.connect(self.database.url(self.name), autocommit=True, connect_timeout=5) as connection:
            yield connection

    # ------------------------------------------------------------------------------------------ people's acts

    def try_to_sign_in(self, username: str, host: Host | None = None) -> Token | None:
        """A new token of a user, in the history; None when the server can't at the moment (503)."""
        asked_ns = time.monotonic_ns()
        answer = ask(host or self.host, "POST", "/auth/login", body={"username": username, "password": PASSWORD})
        assert answer.status in (ACCEPTED, NOT_NOW), answer.text
        if answer.status == NOT_NOW:
            self.last_excuse = answer.text
            return None
        raw = answer.json["access_token"]
        token = Token(f"{username}/{next(self._keys)}", username, asked_ns, time.monotonic_ns(), raw)
        self.history.tokens[token.key] = token
        return token

    def sign_in(self, username: str, host: Host | None = None) -> Token:
        token = self.try_to_sign_in(username, host)
        assert token is not None, f"{username} can't sign in: 503 {self.last_excuse}"
        return token

    def sign_in_as_admin(self, host: Host | None = None) -> None:
        """A new token for whoever revokes."""
        self._admin = self.sign_in("admin", host)

    def revoke(self, username: str | None, host: Host | None = None, reason: str = "") -> Answer | None:
        """Force a user's logout (None: everyone's), and write it down. None when no answer came."""
        path = self.path_of(username) if username is not None else "/admin/sessions"
        body = {"reason": reason} if reason else None
        started_ns = time.monotonic_ns()
        try:
            answer = ask(host or self.host, "DELETE", path, token=self._admin.raw, body=body)
        except (OSError, http.client.HTTPException):
            self.history.revocations.append(Revocation(username, started_ns, None))
            return None
        returned_ns = time.monotonic_ns()
        if answer.status == 200:
            revocation = Revocation(username, started_ns, returned_ns, answer.json["revocation_id"])
            assert answer.json["in_force"] is True
        elif answer.json["code"] == "cutoffs_stale" if answer.status == NOT_NOW else False:
            return answer  # the guard has let nobody in: nothing can have happened
        else:
            revocation = Revocation(username, started_ns, None)
        self.history.revocations.append(revocation)
        self.figures.revocations += answer.status == 200
        REPORT.tell(self.figures)
        if username is None:
            self.sign_in_as_admin(host)
            self.bystander = self.sign_in("bystander", host)
        return answer

    def ask(self, method: str, path: str, **kwargs: object) -> Answer:
        """The admin's request, on the first host."""
        return ask(self.host, method, path, token=self.admin_token, **kwargs)

    def path_of(self, username: str) -> str:
        return f"/admin/sessions/{self.user_ids[username]}"

    def note_revocation(self, username: str, started_ns: int, answer: Answer) -> None:
        """Write down a revocation that was made in another way than by `revoke`, and has just returned."""
        returned_ns = time.monotonic_ns() if answer.status == 200 else None
        revocation_id = answer.json.get("revocation_id", "")
        self.history.revocations.append(Revocation(username, started_ns, returned_ns, revocation_id))

    def expect_gone(self, username: str) -> None:
        """From now on this user's tokens may be refused: something has happened to him that was no force logout."""
        self.history.revocations.append(Revocation(username, 0, None))

    def revoke_at_last(self, username: str, host: Host | None = None) -> Answer:
        """Force a user's logout; where a worker answers that is just starting, ask again."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            answer = self.revoke(username, host)
            assert answer is not None, "no answer"
            if answer.status != NOT_NOW or time.monotonic() > deadline_s:
                assert answer.status == 200, answer.text
                return answer

    def revoke_by_psql(self, username: str) -> None:
        """Somebody else raises a user's generation. It promises nothing about when, so it has not "returned"."""
        self.history.revocations.append(Revocation(username, time.monotonic_ns(), None))
        with self.psql() as psql:
            psql.execute("UPDATE users SET gen = gen + 1 WHERE id = %s", (self.user_ids[username],))

    def new_victim(self, host: Host | None = None, without: Collection[int] = ()) -> Token:
        """Somebody signs in, every worker has seen his token, and it stays among those that are asked for."""
        token = self.sign_in(next(self._usernames), host)
        self.load.ask_each(token, without=without)
        self.look_at(token)
        return token

    def look_at(self, token: Token) -> None:
        self._recent = [*self._recent, token][-4:]
        self.load.ask_for(self.bystander, *self._recent)

    def round(
        self, host: Host | None = None, *, without: Collection[int] = ()
    ) -> tuple[Answer, list[Future[list[int]]]]:
        """One whole round: in, seen by every worker, out, asked on every worker at once, in again.

        `without` are workers that can't answer now: they get the dead token too, and the futures tell when they are
        through. Returns the receipt.
        """
        token = self.new_victim(host, without)
        answer = self.revoke_at_last(token.subject, host)
        late = self.load.chase(token, 2)
        again = self.sign_in(token.subject, host)
        self.load.ask_each(again, without=without)
        if not without:
            for future in late:
                future.result(DEADLINE_S)
        return answer, late

    def rounds(self, count: int = ROUNDS, host: Host | None = None) -> list[Answer]:
        return [self.round(host)[0] for _ in range(count)]

    # ------------------------------------------------------------------------------------------------ waiting

    def wait_until_usual(self, since_s: float | None = None, deadline_s: float = DEADLINE_S) -> float:
        """Until every worker is registered, live and answers, and people can sign in. Returns how long it took."""
        since_s = since_s if since_s is not None else time.monotonic()
        while missing := self._what_is_missing():
            late = time.monotonic() - since_s >= deadline_s
            assert not late, f"the workers do not recover: {missing}\n" + self.host.log()[-2000:]
            time.sleep(0.02)  # nothing tells from outside
        took_s = time.monotonic() - since_s
        self.figures.recovered_in(took_s)
        return took_s

    def wait_until_refused(self, token: Token, deadline_s: float = DEADLINE_S) -> float:
        """Until every worker refuses a token. Returns how long it took."""
        since_s = time.monotonic()
        while set(self.load.ask_each(token)) != {REFUSED}:
            assert time.monotonic() - since_s < deadline_s, f"{token.key} is still accepted somewhere"
        return time.monotonic() - since_s

    def follow_the_workers(self) -> None:
        """Workers have come or gone: put the load on all that are registered now."""
        with self.psql() as psql:
            pids = [row[0] for row in psql.execute("SELECT pid FROM workers WHERE snapshot IS NOT NULL")]
        assert len(self.hosts) == 1
        self.load.leave_the_dead()
        self.load.start(self.host.server.port, set(pids) - set(self.load.workers))
        self.host.pids = pids

    def _what_is_missing(self) -> str:
        """Empty when all is as usual."""
        try:
            for host in self.hosts:
                if self.try_to_sign_in("bystander", host) is None:
                    return "a sign-in"
            with self.psql() as psql:
                listening = psql.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lastcall-listener'"
                    " AND datname = current_database()"
                ).fetchone()
                reading = psql.execute(
                    "SELECT count(*) FROM workers WHERE snapshot IS NOT NULL AND pid = ANY(%s)"
                    " AND renewed_at > clock_timestamp() - interval '1 second'",
                    (self.pids,),
                ).fetchone()
            assert listening is not None and reading is not None
            if min(listening[0], reading[0]) < len(self.pids):
                return f"of {len(self.pids)} workers {listening[0]} listen, {reading[0]} read"
            checks = self.load.ask_each(self.bystander), self.load.query_each(self.bystander, API + "/me/sessions")
            return "" if [set(answers) for answers in checks] == [{ACCEPTED}, {200}] else f"answers: {checks}"
        except (psycopg.OperationalError, OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"

    # ----------------------------------------------------------------------------------------------- verdict

    def finish(self) -> None:
        self.load.stop()

    def check(self, allowed: Collection[int] = (ACCEPTED, REFUSED, NOT_NOW)) -> None:
        """Stop the load, judge the history, write down the figures. Fails with each breach."""
        self.load.stop()
        with self.psql() as psql:
            found = {row[0] for row in psql.execute("SELECT id::text FROM revocations")}
        history, figures = self.history, self.figures
        figures.requests = len(history.requests)
        figures.after_return = len(history.accepted_after_return())
        figures.wrong = len(history.refused_without_cause())
        figures.lost = len(history.not_durable(found))
        figures.stale_s, figures.longest_s = history.staleness_s(), history.longest_request_s()
        assert figures.requests, "nothing was asked"
        breaches = list(history.breaches(found, allowed))
        if breaches:
            raise AssertionError("\n".join(breaches))
        figures.outcome = "held"
        REPORT.tell(figures)


def ask(host: Host, method: str, path: str, **kwargs: object) -> Answer:
    """One request on a fresh connection. Raises OSError or HTTPException when no answer comes."""
    line = Line(host.server.port)
    try:
        return line.ask(method, API + path, **kwargs)  # type: ignore[arg-type]
    finally:
        line.close()


@contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """Processes that are stopped for a while (SIGSTOP), and go on (SIGCONT) whatever happens."""
    stopped = []
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


@contextmanager
def frozen(database: EmbeddedPostgres) -> Iterator[None]:
    """Every process of the server is stopped: it neither answers nor refuses."""
    with paused([database.pid]), paused(children(database.pid)):
        yield


def children(pid: int) -> list[int]:
    """The child processes of a process (Linux)."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


def kill_database(database: EmbeddedPostgres) -> None:
    """kill -9 of the whole server at once: nothing is written, nobody says goodbye."""
    pid = database.pid
    os.kill(pid, signal.SIGSTOP)
    for process in [*children(pid), pid]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    database.stop()


def timed(act: Callable[[], object]) -> float:
    """How long it took (seconds)."""
    since_s = time.monotonic()
    act()
    return time.monotonic() - since_s
