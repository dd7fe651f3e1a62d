"""A server among so many sessions, and all that is asked of it: a slice at a time, so that sites can take turns."""

from __future__ import annotations

import http.client
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg

from bench import crowd
from bench.own_server import new_database
from bench.timed_conf import HEADER
from models.session_list import SORTS
from tests.conftest import PASSWORD
from tests.gunicorn import Answer, Gunicorn, Line
from tools.postgres import EmbeddedPostgres

WORKERS, ROUNDS = 4, 4
FORCE_LOGOUTS, FEW, OF_ONE_USER = 20, 6, 10_000
FAR_IN, PAGE, LONGEST_PAGE = 1000, 50, 200
FOR_S, AT_ONCE, LONG_OVER, PATIENCE = 4.0, 8, 120_000, 10
LIST = "/api/v1/admin/sessions"
Acts = Callable[[Line, str], Iterator[None]]


class Site:
    """Use it as a context manager: it is filled at once, and its server runs from `start` on.

    `took` has what the answers took in the server (milliseconds), or how many there were a second.
    """

    def __init__(self, postgres: EmbeddedPostgres, folder: Path, size: int, times: int) -> None:
        self._postgres, self._folder, self._size, self._each = postgres, folder, size, max(1, times // ROUNDS)
        self._name = f"among_{size}"
        self._stack = ExitStack()
        self.took: dict[str, list[float]] = {}

    def __enter__(self) -> Site:
        self._url = new_database(self._postgres, self._name)
        crowd.fill(self._url, self._size)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._postgres.drop_database(self._name)

    def _gunicorn(self, url: str) -> Gunicorn:
        environment = {
            "SECRET_KEY": secrets.token_hex(16),
            "LASTCALL_ADMIN_PASSWORD": PASSWORD,
            "DATABASE_URL": url,
            "LASTCALL_SIGNING_KEY": secrets.token_hex(32),
            "LASTCALL_DATA_DIR": str(self._folder),
            "LASTCALL_ACCESS_TTL": "3600",
            "LOG_LEVEL": "warning",
        }
        log = self._folder / f"gunicorn-{self._name}.log"
        return Gunicorn(WORKERS, ("--config", "bench/timed_conf.py"), environment, log)

    def log_outs(self, times: int) -> Iterator[str]:
        """Log out everyone, each time in a copy of the database, whose workers have just started."""
        for number in range(times):
            url = self._postgres.create_database("copy", self._name)
            with self._gunicorn(url) as gunicorn:
                self._line, self._token = gunicorn.lines()[0], gunicorn.sign_in("admin", PASSWORD)["access_token"]
                self._line.ask("GET", LIST, token=self._token)
                ended = self._in_force("log-out of everyone", "DELETE", LIST)["sessions_ended"]
                if not 0.9 * self._size < ended < 1.1 * self._size + 2:
                    raise SystemExit(f"bench: {ended} have ended, not {self._size}")
                if number + 1 == times:
                    self._token = gunicorn.sign_in("admin", PASSWORD)["access_token"]
                    for state in ("active", "ended"):
                        for _ in range(ROUNDS * self._each):
                            self._ask(f"right after it: state={state}", "GET", f"{LIST}?state={state}")
            self._postgres.drop_database("copy")
            yield f"log-out of everyone, {number + 1} of {times}"

    def start(self) -> None:
        self.gunicorn = self._stack.enter_context(self._gunicorn(self._url))
        self._psql = self._stack.enter_context(psycopg.connect(self._url, autocommit=True))
        self._line, self._token = self.gunicorn.lines()[0], self.gunicorn.sign_in("admin", PASSWORD)["access_token"]

    def slices(self) -> Iterator[str]:
        """Everything else, in as many slices whatever the size."""
        for what, query in self._queries():
            yield from self._pages(what, f"{LIST}?{query}")
        cookie = enter(self.gunicorn)
        for _ in range(ROUNDS):
            for _ in range(self._each):
                self._ask("the console's first paint", "GET", "/console/", headers={"Cookie": cookie})
            yield "the console"
        names = [f"person-{number}" for number in range(AT_ONCE)]
        self._user_ids = {name: self._make_user(name) for name in names}
        for what, act in (
            ("sign-ins a second", signing_in),
            ("refreshes a second", refreshing),
            ("force logouts a second", self._forcing_out),
        ):
            self._rate(what, act, names)
            yield what
        yield from self._one_user()
        self._end_by_filter()
        yield "what a filter finds"
        while self._psql.execute("SELECT FROM unmarked_ends LIMIT 1").fetchone() is not None:
            time.sleep(0.5)
        yield "until all that has ended is marked"
        self._all_of_it_while_it_purges(names)
        yield "while it purges"

    def _queries(self) -> Iterator[tuple[str, str]]:
        row = self._psql.execute(
            "SELECT username, host(ip), (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY created_at)"
            " FROM login_sessions) FROM login_sessions WHERE shelf = 0 ORDER BY created_at LIMIT 1"
        ).fetchone()
        assert row is not None
        name, address, moment = row[0], row[1], quote(row[2].isoformat())
        yield "no filter", ""
        for sort in SORTS[1:]:
            yield f"sort={sort}", f"sort={sort}"
        for state in ("ended", "expired", "all"):
            yield f"state={state}", f"state={state}"
        yield "user", f"user={name}"
        yield "q: part of a rare name", f"q={crowd.RARE_NAME}"
        yield "q: part of many names", f"q={crowd.COMMON_NAME}"
        yield "q: a client", f"q={crowd.CLIENT}"
        yield "q: how an address begins", "q=10.1.7"
        yield "q: nobody", "q=nobody-at-all"
        yield "role: a rare one", f"role={crowd.RARE_ROLE}"
        yield "role: a common one", f"role={crowd.COMMON_ROLE}"
        yield "client", f"client={crowd.CLIENT}"
        yield "ip: an address", f"ip={address}"
        yield "ip: a network, /24", f"ip={quote(crowd.NETWORK)}"
        yield "ip: a network, /8", f"ip={quote(crowd.HALF)}"
        yield "since", f"since={moment}"
        yield "until", f"until={moment}"

    def _pages(self, what: str, path: str) -> Iterator[str]:
        for _ in range(ROUNDS):
            for _ in range(self._each):
                self._ask(what, "GET", path)
            yield what
        far = self._far_in(path)
        for _ in range(ROUNDS):
            for _ in range(self._each if far else 0):
                self._ask(f"{what}, far in", "GET", f"{path}&cursor={far}")
            yield f"{what}, far in"

    def _far_in(self, path: str) -> str | None:
        """The cursor of page 1,000, or of one near the end; None where there is but one page."""
        cursor, page = None, 1
        while page < FAR_IN:
            more = f"&cursor={cursor}" if cursor else ""
            answer = self._line.ask("GET", f"{path}&limit={LONGEST_PAGE}{more}", token=self._token)
            if answer.json["next"] is None:
                break
            cursor, page = answer.json["next"], page + LONGEST_PAGE // PAGE
        return cursor

    def _one_user(self) -> Iterator[str]:
        """Users with very many sessions each, their lists and their force logouts."""
        many = f"{OF_ONE_USER:,} sessions"
        user_ids = self._make_crowds("crowd", FORCE_LOGOUTS)
        yield from self._pages(f"one user's {many}", f"{LIST}/{user_ids[0]}?")
        for user_id in user_ids:
            self._force_out(f"force logout of a user with {many}", user_id)
            yield f"force logout of a user with {many}"

    def _make_crowds(self, name: str, count: int) -> list[str]:
        user_ids = [self._make_user(f"{name}-{number}") for number in range(count)]
        crowd.add_sessions(self._psql, user_ids, OF_ONE_USER)
        for statement in ("VACUUM ANALYZE login_sessions", "CHECKPOINT"):  # which come by themselves, sooner or later
            self._psql.execute(statement)
        return user_ids

    def _force_out(self, what: str, user_id: str) -> None:
        receipt = self._in_force(what, "DELETE", f"{LIST}/{user_id}")
        left = self._line.ask("GET", f"{LIST}/{user_id}", token=self._token).json["total"]
        if (receipt["sessions_ended"], left) != (OF_ONE_USER, 0):
            raise SystemExit(f"bench: {left} sessions are left: {receipt}")

    def _end_by_filter(self) -> None:
        """One session in 32, but 30,000 at most, in transactions of 12,000."""
        network = f"10.8.0.0/{8 + max(5, math.ceil(math.log2(self._size / 30_000)))}"
        receipt = self._in_force("by a filter", "DELETE", f"{LIST}?ip={quote(network)}")
        (took_ms,) = self.took.pop("by a filter")
        self.took["sessions ended by a filter a second"] = [receipt["sessions_ended"] / took_ms * 1000]

    def _make_user(self, name: str) -> str:
        body = {"username": name, "password": PASSWORD}
        made = self.gunicorn.ask("POST", "/api/v1/admin/users", token=self._token, body=body)
        return str(made.json["user_id"])

    def _all_of_it_while_it_purges(self, names: list[str]) -> None:
        """While the housekeeping deletes sessions that have been over for long, a thousand a second or more."""
        user_ids = self._make_crowds("last crowd", FEW)
        crowd.add_sessions(self._psql, [self._make_user("long ago")], LONG_OVER, begun_days=45)
        for _ in range(ROUNDS * self._each):
            self._ask("no filter, while it purges", "GET", LIST)
        self._rate("sign-ins a second, while it purges", signing_in, names)
        self._rate("refreshes a second, while it purges", refreshing, names)
        self._rate("force logouts a second, while it purges", self._forcing_out, names)
        for user_id in user_ids:
            self._force_out(f"force logout of a user with {OF_ONE_USER:,} sessions, while it purges", user_id)
        for _ in range(FEW):
            self._in_force("log-out of everyone, while it purges", "DELETE", LIST)
            self._token = self.gunicorn.sign_in("admin", PASSWORD)["access_token"]
        if not self._left_to_purge():
            raise SystemExit("bench: the purge was over too soon")
        self.gunicorn.stop()  # the rest of the purge would disturb the other sites

    def _left_to_purge(self) -> bool:
        query = "SELECT FROM login_sessions WHERE expires_at < now() - interval '30 days' LIMIT 1"
        return self._psql.execute(query).fetchone() is not None

    def _rate(self, what: str, act: Acts, names: list[str]) -> None:
        """How often it is done, by each on a connection of his own, as fast as it is answered."""
        acts = [act(Line(self.gunicorn.port), name) for name in names]
        for one in acts:
            next(one)
        done, until = [0] * len(acts), time.perf_counter() + FOR_S

        def run(number: int) -> None:
            while time.perf_counter() < until:
                next(acts[number])
                done[number] += 1

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.took[what] = [sum(done) / FOR_S]

    def _forcing_out(self, line: Line, name: str) -> Iterator[None]:
        while True:
            answer = line.ask("DELETE", f"{LIST}/{self._user_ids[name]}", token=self._token)
            if answer.status != 200 or answer.json["workers"]["confirmed"] != WORKERS:
                raise SystemExit(f"bench: not in force: {answer.text}")
            yield

    def _in_force(self, what: str, method: str, path: str) -> Any:
        receipt = self._ask(what, method, path).json
        if not receipt["in_force"] or receipt["workers"]["confirmed"] != WORKERS:
            raise SystemExit(f"bench: not in force: {receipt}")
        return receipt

    def _ask(self, what: str, method: str, path: str, **more: Any) -> Answer:
        for _ in range(PATIENCE):
            answer = self._line.ask(method, path, token=None if "headers" in more else self._token, **more)
            if answer.status != 503:  # a machine that is busy with something else: the database seemed to be silent
                break
            time.sleep(1)
        if answer.status != 200:
            raise SystemExit(f"bench: {method} {path}: {answer.status} {answer.text}")
        self.took.setdefault(what, []).append(float(answer.headers[HEADER]))
        return answer


def enter(gunicorn: Gunicorn) -> str:
    """Sign in to the console. Returns the cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port)
    form = urlencode({"username": "admin", "password": PASSWORD})
    connection.request("POST", "/console/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
    cookie = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
    connection.close()
    return str(cookie)


def signing_in(line: Line, name: str) -> Iterator[None]:
    while True:
        tokens(line.ask("POST", "/api/v1/auth/login", body={"username": name, "password": PASSWORD}))
        yield


def refreshing(line: Line, name: str) -> Iterator[None]:
    found = tokens(line.ask("POST", "/api/v1/auth/login", body={"username": name, "password": PASSWORD}))
    while True:
        found = tokens(line.ask("POST", "/api/v1/auth/refresh", body={"refresh_token": found["refresh_token"]}))
        yield


def tokens(answer: Answer) -> Any:
    if answer.status != 200:
        raise SystemExit(f"bench: no tokens: {answer.text}")
    return answer.json
