"""The server with a thousand live sessions, and with a million: each filter and each order of the list, its first page
and one far in (reached by its cursor), the console, force logouts and the rest. Over HTTP, in four gunicorn workers on
a real, durable PostgreSQL; the time is what the answer took in the server, median and 95th of a hundred, in
milliseconds. A receipt is in force on all workers. Sign-ins cost argon2, and little else."""

from __future__ import annotations

import http.client
import os
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg

from bench import crowd
from bench.plot import Bar, bars
from bench.timed_conf import HEADER
from models.database import apply_schema
from models.session_list import SORTS
from tests.conftest import PASSWORD
from tests.gunicorn import Answer, Gunicorn, Line
from tools.postgres import APP, EmbeddedPostgres

SIZES = [int(size) for size in os.environ.get("LASTCALL_BENCH_SESSIONS", "1000,100000,1000000").split(",")]
TIMES, WORKERS = int(os.environ.get("BENCH_TIMES", "40")), 4
LOG_OUTS, FORCE_LOGOUTS, OF_ONE_USER = 5, 10, 10_000
FAR_IN, PAGE, LONGEST_PAGE = 1000, 50, 200
FOR_S, AT_ONCE, LONG_OVER, PATIENCE = 4.0, 8, 20_000, 10
LIST = "/api/v1/admin/sessions"
Found = dict[str, dict[str, list[float]]]


def measure(advance: Callable[[str], None]) -> dict[str, Found]:
    """By the number of live sessions and what was asked: median, 95th of a hundred; or a rate."""
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as name, EmbeddedPostgres(Path(name)) as postgres:
        for size in SIZES:
            about = f"{size:,} sessions: "
            bench = Bench(postgres, Path(name), size, lambda text, about=about: advance(about + text))
            found[str(size)] = bench.run()
    return found


class Bench:
    """One size."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path, size: int, advance: Callable[[str], None]) -> None:
        self.postgres, self.folder, self.size, self.advance = postgres, folder, size, advance
        self.name = f"crowd_{size}"
        self.found: Found = {}

    def run(self) -> Found:
        self.advance("invented")
        url = self.postgres.create_database(self.name)
        apply_schema(url)
        self.postgres.let_in(APP)
        crowd.fill(url, self.size)
        for number in range(LOG_OUTS):
            self.advance(f"log-out of everyone {number + 1} of {LOG_OUTS}, in a copy of the database")
            self.log_out_all(is_last=number + 1 == LOG_OUTS)
        with self.gunicorn(url) as gunicorn, psycopg.connect(url, autocommit=True) as psql:
            self.ask_all(gunicorn, psql)
        self.postgres.drop_database(self.name)
        return self.found

    def gunicorn(self, url: str) -> Gunicorn:
        environment = {
            "SECRET_KEY": secrets.token_hex(16),
            "LASTCALL_ADMIN_PASSWORD": PASSWORD,
            "DATABASE_URL": url,
            "LASTCALL_SIGNING_KEY": secrets.token_hex(32),
            "LASTCALL_DATA_DIR": str(self.folder),
            "LASTCALL_ACCESS_TTL": "900",
        }
        return Gunicorn(WORKERS, ("--config", "bench/timed_conf.py"), environment, self.folder / "gunicorn.log")

    def log_out_all(self, *, is_last: bool) -> None:
        url = self.postgres.create_database("copy", self.name)
        with self.gunicorn(url) as gunicorn:
            line, token = gunicorn.lines()[0], gunicorn.sign_in("admin", PASSWORD)["access_token"]
            line.ask("GET", LIST, token=token)
            receipt = self.timed("log-out of everyone", line, "DELETE", LIST, token)
            in_force(receipt)
            if not 0.9 * self.size < receipt.json["sessions_ended"] < 1.1 * self.size + 2:
                raise SystemExit(f"bench: not so many have ended: {receipt.text}")
            if is_last:
                token = gunicorn.sign_in("admin", PASSWORD)["access_token"]
                for state in ("active", "ended"):
                    for _ in range(TIMES):
                        self.timed(f"right after it: state={state}", line, "GET", f"{LIST}?state={state}", token)
        self.postgres.drop_database("copy")

    def ask_all(self, gunicorn: Gunicorn, psql: psycopg.Connection) -> None:
        line, token = gunicorn.lines()[0], gunicorn.sign_in("admin", PASSWORD)["access_token"]
        for what, query in self.queries(psql):
            self.pages(what, line, f"{LIST}?{query}", token)
        cookie = enter(gunicorn)
        for _ in range(TIMES):
            self.timed("console, first paint", line, "GET", "/console/", headers={"Cookie": cookie})
        self.one_user(gunicorn, line, token, psql)
        names = self.people(gunicorn, token)
        self.rate("sign-ins a second", gunicorn, names, signing_in)
        self.rate("refreshes a second", gunicorn, names, refreshing)
        self.while_it_purges(gunicorn, line, token, psql, names)

    def queries(self, psql: psycopg.Connection) -> Iterator[tuple[str, str]]:
        row = psql.execute(
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

    def pages(self, what: str, line: Line, path: str, token: str) -> None:
        self.advance(what)
        for _ in range(TIMES):
            self.timed(what, line, "GET", path, token)
        far = far_in(line, path, token)
        for _ in range(TIMES if far else 0):
            self.timed(f"{what}, far in", line, "GET", f"{path}&cursor={far}", token)

    def one_user(self, gunicorn: Gunicorn, line: Line, token: str, psql: psycopg.Connection) -> None:
        """The sessions of one who has very many, and his force logout."""
        self.advance(f"ten users with {OF_ONE_USER:,} sessions each")
        paths = []
        for number in range(FORCE_LOGOUTS):
            body = {"username": f"crowd-{number}", "password": PASSWORD}
            made = gunicorn.ask("POST", "/api/v1/admin/users", token=token, body=body)
            paths.append(f"{LIST}/{made.json['user_id']}")
        crowd.add_sessions(psql, [path.rpartition("/")[2] for path in paths], OF_ONE_USER)
        self.pages(f"one user's {OF_ONE_USER:,} sessions", line, f"{paths[0]}?", token)
        for path in paths:
            receipt = self.timed(f"force logout of a user with {OF_ONE_USER:,} sessions", line, "DELETE", path, token)
            in_force(receipt)
            left = line.ask("GET", path, token=token).json["total"]
            if (receipt.json["sessions_ended"], left) != (OF_ONE_USER, 0):
                raise SystemExit(f"bench: {left} sessions are left: {receipt.text}")

    def people(self, gunicorn: Gunicorn, token: str) -> list[str]:
        names = [f"person-{number}" for number in range(AT_ONCE)]
        for name in names:
            body = {"username": name, "password": PASSWORD}
            gunicorn.ask("POST", "/api/v1/admin/users", token=token, body=body)
        return names

    def while_it_purges(
        self, gunicorn: Gunicorn, line: Line, token: str, psql: psycopg.Connection, names: list[str]
    ) -> None:
        """Everything again, while the housekeeping deletes a thousand sessions a second."""
        made = gunicorn.ask("GET", "/api/v1/auth/me", token=token).json
        crowd.add_sessions(psql, [made["user_id"]], LONG_OVER, begun_days=45)
        self.advance("while it purges")
        for _ in range(TIMES):
            self.timed("no filter, while it purges", line, "GET", LIST, token)
        self.rate("sign-ins a second, while it purges", gunicorn, names, signing_in)
        self.rate("refreshes a second, while it purges", gunicorn, names, refreshing)
        left = psql.execute(
            "SELECT count(*) FROM login_sessions WHERE expires_at < now() - interval '30 days'"
        ).fetchone()
        if left == (0,):
            raise SystemExit("bench: the purge was over too soon")

    def rate(self, what: str, gunicorn: Gunicorn, names: list[str], act: Callable[[Line, str], Iterator[None]]) -> None:
        """How often it was done in all threads, each on a connection of its own, as fast as it is answered."""
        self.advance(what)
        acts = [act(Line(gunicorn.port), name) for name in names]
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
        self.found[what] = [sum(done) / FOR_S]

    def timed(self, what: str, line: Line, method: str, path: str, token: str | None = None, **more: Any) -> Answer:
        for _ in range(PATIENCE):
            answer = line.ask(method, path, token=token, **more)
            if answer.status != 503:  # a machine that is busy with something else: the database seemed to be silent
                break
            time.sleep(1)
        if answer.status != 200:
            raise SystemExit(f"bench: {method} {path}: {answer.status} {answer.text}")
        self.found.setdefault(what, []).append(float(answer.headers[HEADER]))
        return answer


def far_in(line: Line, path: str, token: str) -> str | None:
    """The cursor of page 1,000, or of one near the end; None where there is but one page."""
    cursor, page = None, 1
    while page < FAR_IN:
        answer = line.ask("GET", f"{path}&limit={LONGEST_PAGE}" + (f"&cursor={cursor}" if cursor else ""), token=token)
        if answer.json["next"] is None:
            break
        cursor, page = answer.json["next"], page + LONGEST_PAGE // PAGE
    return cursor


def in_force(receipt: Answer) -> None:
    if not receipt.json["in_force"] or receipt.json["workers"]["confirmed"] != WORKERS:
        raise SystemExit(f"bench: not in force: {receipt.text}")


def enter(gunicorn: Gunicorn) -> str:
    """Sign in to the console. Returns the cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port)
    connection.request(
        "POST",
        "/console/login",
        urlencode({"username": "admin", "password": PASSWORD}),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )
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


def summary(values: list[float]) -> tuple[float, float]:
    """The median, and the 95th of a hundred."""
    if len(values) == 1:
        return values[0], values[0]
    return statistics.median(values), statistics.quantiles(values, n=20, method="inclusive")[18]


def table(found: dict[str, Found]) -> list[str]:
    sizes = list(found)
    lines = ["| what | " + " | ".join(f"{int(size):,}" for size in sizes) + " | growth |"]
    lines.append("| --- |" + " --- |" * (len(sizes) + 1))
    for what in found[sizes[-1]]:
        cells = []
        for size in sizes:
            values = found[size].get(what)
            cells.append("" if not values else " / ".join(f"{value:.1f}" for value in dict.fromkeys(summary(values))))
        first, last = (found[size].get(what) for size in (sizes[0], sizes[-1]))
        growth = f"{statistics.median(last) / statistics.median(first):.2f}" if first and last else ""
        lines.append(f"| {what} | {' | '.join(cells)} | {growth} |")
    return lines


def plots(found: dict[str, Found]) -> dict[str, str]:
    most = list(found)[-1]
    rows = [
        Bar(what, summary(values)[0], min(values), summary(values)[1], ours=True)
        for what, values in found[most].items()
        if "a second" not in what
    ]
    return {"sessions": bars(f"In the server, with {int(most):,} live sessions", "milliseconds", rows)}
