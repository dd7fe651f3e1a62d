"""What others can do to the promise: triggers, forged messages, purges, idle transactions, poolers, old versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from app import create_app
from models.database import apply_schema, db
from models.purge import purge
from settings import from_environment
from tests.conftest import FAST_ENVIRONMENT, TEMPLATE
from tests.faults.bench import DEADLINE_S, IN_FULL, LEASE_S, SLACK_S, Bench, Host, ask, slowness
from tests.faults.conftest import StartBench, StartHost
from tests.faults.history import ACCEPTED, NOT_NOW, REFUSED
from tests.faults.pooler import TransactionPooler
from tests.faults.report import REPORT
from tests.gunicorn import ROOT, free_port
from tests.workers.people import make_person, sign_in, status_of, statuses_on
from tools.postgres import APP, EmbeddedPostgres, _as_ordinary_user

STATEMENT_S = 8.0
"""The limit of a statement of the server (models/database.py, seconds)."""

# ----------------------------------------------------------------------------------------------------------- NOTIFY


@contextmanager
def switched_off(bench: Bench) -> Iterator[None]:
    with bench.psql() as psql:
        psql.execute("ALTER TABLE cutoffs DISABLE TRIGGER cutoffs_after_write")
    yield


@contextmanager
def many_times(bench: Bench) -> Iterator[None]:
    with bench.psql() as psql:
        psql.execute("""
            CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_notify('lastcall_cutoffs', n::text || NEW.subject) FROM generate_series(1, 20) AS n;
                RETURN NULL;
            END
            $$;
            CREATE TRIGGER shout AFTER INSERT OR UPDATE ON cutoffs FOR EACH ROW EXECUTE FUNCTION shout();
        """)
    yield


@contextmanager
def forged(bench: Bench) -> Iterator[None]:
    payloads = ("", "x" * 7999, '{"scope": "everyone", "min_gen": -1}', "bystander", "\\x00", "'; DROP TABLE cutoffs")
    over = threading.Event()

    def forge() -> None:
        with bench.psql() as psql:
            while not over.wait(0.005):
                for payload in payloads:
                    psql.execute("SELECT pg_notify('lastcall_cutoffs', %s)", (payload,))

    thread = threading.Thread(target=forge)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("how", [switched_off, many_times, forged])
def test_notify_is_only_a_hint(start_bench: StartBench, how: Callable[[Bench], AbstractContextManager[None]]) -> None:
    fault = {
        "switched_off": "NOTIFY never arrives (trigger off)",
        "many_times": "NOTIFY arrives twenty times",
        "forged": "NOTIFY is forged, all the time",
    }[getattr(how, "__name__", "")]
    bench = start_bench(fault, "in force within a quarter lease; receipts right")
    with how(bench):
        for answer in bench.rounds():
            workers = answer.json["workers"]
            assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
            assert workers["elapsed_ms"] < (LEASE_S / 4 + SLACK_S) * 1000
        token = bench.new_victim()
        bench.revoke_by_psql(token.subject)
        assert bench.wait_until_refused(token) < LEASE_S / 4 + SLACK_S
    bench.check()


# ------------------------------------------------------------------------------------------------ purge and lifetimes


def test_a_purge_forgets_no_cutoff_whose_tokens_live(start_host: StartHost, postgres: EmbeddedPostgres) -> None:
    figures = REPORT.begin("purge at exp - 1 s, exp, exp + leeway; the lifetime is shortened", "refused until the end")
    url = postgres.create_database("faults_purge", TEMPLATE)
    ttl_s, leeway_s = 2, 10
    long: Host = start_host(postgres, "faults_purge", 1, LASTCALL_ACCESS_TTL="600")
    admin = sign_in(long.server)
    of_long_life = make_person(long.server, admin, "alice")
    short: Host = start_host(postgres, "faults_purge", 2, LASTCALL_ACCESS_TTL=str(ttl_s))
    of_short_life = make_person(short.server, admin, "bob")
    born_s = time.monotonic()
    lines = [*long.server.lines(), *short.server.lines()]
    for person in (of_long_life, of_short_life):
        answer = ask(short, "DELETE", f"/admin/sessions/{person.user_id}", token=admin.token)
        assert answer.status == 200, answer.text
        figures.revocations += 1
    app = create_app(from_environment({**FAST_ENVIRONMENT, "DATABASE_URL": url, "LASTCALL_DATA_DIR": str(ROOT)}))
    moments_s = [ttl_s - 1, ttl_s, ttl_s + 1, ttl_s + leeway_s - 1]
    with psycopg.connect(url, autocommit=True) as psql:

        def known(person_id: str) -> bool:
            query = "SELECT FROM cutoffs WHERE scope = 'user' AND subject = %s"
            return psql.execute(query, (person_id,)).fetchone() is not None

        while (age_s := time.monotonic() - born_s) < ttl_s + leeway_s + 2:
            for person in (of_long_life, of_short_life):
                assert statuses_on(lines, person.token) == [REFUSED] * 3, f"{age_s:.1f} s after the sign-in"
                figures.requests += 3
            if moments_s and age_s >= moments_s[0]:
                del moments_s[0]
                with app.app_context():
                    purge()
                assert known(of_short_life.user_id), f"forgotten {age_s:.1f} s after the sign-in, leeway not over"
            time.sleep(0.1)
        with app.app_context():
            purge()
            db.engine.dispose()
        assert not known(of_short_life.user_id), "kept for longer than any token can live"
        assert known(of_long_life.user_id), "forgotten, though its token lives for minutes"
    assert statuses_on([*long.server.lines(), *short.server.lines()], of_long_life.token) == [REFUSED] * 3
    figures.outcome = "held"


# ------------------------------------------------------------------------------------------------------ other workers


def test_a_worker_of_the_previous_version_runs_along(start_bench: StartBench) -> None:
    bench = start_bench("a worker of the previous version, without a lease", "the receipt names it; never a false 200")
    with bench.psql() as psql:
        row = psql.execute(
            "INSERT INTO workers (id, service, host, pid) VALUES (gen_random_uuid(), 'lastcall', 'old', 1)"
            " RETURNING id::text"
        ).fetchone()
        assert row is not None
        token = bench.new_victim()
        since_s = time.monotonic()
        answer = bench.revoke(token.subject)
        took_s = time.monotonic() - since_s
        assert answer is not None
        assert answer.status == 202, answer.text
        assert answer.json["in_force"] is False
        assert answer.json["workers"]["unconfirmed"] == [row[0]]
        assert (answer.json["workers"]["live"], answer.json["workers"]["confirmed"]) == (5, 4)
        assert took_s < 10 + 2 * SLACK_S
        assert set(bench.load.ask_each(token)) == {REFUSED}, "the workers that we know have it in force all the same"
        psql.execute("DELETE FROM workers WHERE id = %s", row)
    bench.rounds(3)
    bench.check()


# ------------------------------------------------------------------------------------------------ people with psql


def test_a_forgotten_transaction_in_psql_blocks_nobody_else(start_bench: StartBench) -> None:
    bench = start_bench(
        "an idle BEGIN; DELETE FROM user_roles … in psql",
        "others are not blocked; that user's force logout fails clearly within 2 s",
        users=4,
    )
    stuck = bench.sign_in("bystander")
    with psycopg.connect(bench.database.url(bench.name)) as psql:
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (bench.user_ids["bystander"],))
        for answer in bench.rounds():
            assert answer.json["workers"]["elapsed_ms"] < SLACK_S * 1000
        since_s = time.monotonic()
        answer = ask(bench.host, "DELETE", bench.path_of("bystander"), token=bench.admin_token)
        took_s = time.monotonic() - since_s
        assert (answer.status, answer.json["code"]) == (NOT_NOW, "database_busy"), answer.text
        assert answer.headers["Retry-After"]
        assert took_s < 2.0 + SLACK_S, f"it took {took_s:.1f} s"
        assert set(bench.load.ask_each(stuck)) == {ACCEPTED}, "nothing was changed"
        bench.sign_in("bystander")
        assert bench.revoke(None) is not None, "everyone's is not blocked either"
        psql.rollback()
    bench.revoke_at_last("bystander")
    assert set(bench.load.ask_each(stuck)) == {REFUSED}
    bench.check()


def test_ten_thousand_users_are_revoked_in_one_call(start_bench: StartBench) -> None:
    """Or as many as a slow machine revokes within the limit of a statement, beside other tests: past it they end piece
    by piece."""
    count = 10_000 if IN_FULL else int(10_000 / slowness())
    bench = start_bench("10,000 users are revoked in one call", "one transaction; every worker confirms")
    with bench.psql() as psql:
        psql.execute(
            """
            INSERT INTO users (username, password_hash)
            SELECT 'bulk-' || n, (SELECT password_hash FROM users WHERE username = 'admin')
            FROM generate_series(1, %s) AS n
            """,
            (count,),
        )
        psql.execute("INSERT INTO user_roles SELECT id, 'bulk' FROM users WHERE username LIKE 'bulk-%'")
        psql.execute("""
            INSERT INTO login_sessions (
                user_id, username, roles, client_id, token_expires_at, expires_at, user_gen, everyone_gen, family_hash,
                refresh_hash
            )
            SELECT
                id, username, '{bulk}', 'api', now() + interval '5 minutes', now() + interval '1 day', 0, 0,
                sha256(id::text::bytea), sha256(id::text::bytea)
            FROM users WHERE username LIKE 'bulk-%'
        """)
        psql.execute("ANALYZE")
        bench.user_ids |= dict(psql.execute("SELECT username, id::text FROM users").fetchall())
    tokens = [bench.sign_in(f"bulk-{number}") for number in (1, count // 2, count)]
    for token in tokens:
        bench.load.ask_each(token)
    since_ns = time.monotonic_ns()
    answer = bench.ask("POST", "/admin/revocations", body={"scope": "user", "filter": {"role": "bulk"}})
    took_s = (time.monotonic_ns() - since_ns) / 1e9
    for token in tokens:
        bench.note_revocation(token.subject, since_ns, answer)
    assert answer.status == 200, f"after {took_s:.1f} s: {answer.text}"
    assert answer.json["sessions_ended"] == count + 3
    workers = answer.json["workers"]
    assert (workers["live"], workers["confirmed"], workers["fenced"]) == (4, 4, 0)
    for token in tokens:
        assert set(bench.load.ask_each(token, 2)) == {REFUSED}
    with bench.psql() as psql:
        found = psql.execute("SELECT count(DISTINCT xid) FROM cutoffs WHERE scope = 'user'").fetchone()
    assert found in ((1,), (2,)) or took_s > STATEMENT_S, f"{found} transactions in {took_s:.1f} s"  # a canary's, too
    bench.rounds(2)
    bench.figures.revocations += count
    bench.check()


# ------------------------------------------------------------------------------------------ the wrong way to a server


@pytest.fixture
def pooler(postgres: EmbeddedPostgres) -> Iterator[TransactionPooler]:
    with TransactionPooler(postgres.url) as pooler:
        yield pooler


def unready_lines(host: Host, pattern: str, seconds: float = 3.0) -> list[str]:
    """What the workers said about it, after they have tried for a while. None of them may be ready meanwhile."""
    since_s = time.monotonic()
    while time.monotonic() - since_s < seconds:
        answer = host.server.ask("GET", "/readyz")
        assert answer.status == NOT_NOW, answer.text
        assert status_of(host.server, "a.b.c") in (REFUSED, NOT_NOW)
        time.sleep(0.05)
    lines = [line for line in host.log().splitlines() if "lastcall:" in line]
    assert all(re.search(pattern, line) for line in lines), lines
    return lines


def test_behind_a_pooler_in_transaction_mode_it_says_so_and_is_not_ready(
    start_host: StartHost, postgres: EmbeddedPostgres, pooler: TransactionPooler
) -> None:
    figures = REPORT.begin("DATABASE_URL leads to a pooler in transaction mode", "one clear message; not ready")
    postgres.create_database("faults_pooler", TEMPLATE)
    host = start_host(postgres, "faults_pooler", 2, ready=False, DATABASE_URL=pooler.url("faults_pooler"))
    lines = unready_lines(host, "transaction-mode pooler")
    assert len(lines) == 2, lines
    assert all("LASTCALL_LISTEN_URL" in line for line in lines)
    figures.outcome = "held"


def test_behind_a_pooler_with_a_direct_url_to_listen_all_holds(
    start_bench: StartBench, postgres: EmbeddedPostgres, pooler: TransactionPooler
) -> None:
    bench = start_bench(
        "DATABASE_URL leads to a pooler in transaction mode, LASTCALL_LISTEN_URL to the server",
        "0 accepted after return",
        where=lambda name: {"DATABASE_URL": pooler.url(name), "LASTCALL_LISTEN_URL": postgres.url(name)},
    )
    bench.rounds()
    bench.check()


@pytest.fixture
def start_pgbouncer(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start pgbouncer in front of the server: `start_pgbouncer("transaction")` gives the URL, but for the database."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("no pgbouncer here (Debian: apt install pgbouncer)")
    port, socket = free_port(), postgres.url().partition("host=")[2].replace("%2F", "/")
    log = tmp_path / "pgbouncer.log"
    with ExitStack() as stack:

        def start(pool_mode: str, **more: object) -> str:
            settings = {
                **{"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"},
                **{"pool_mode": pool_mode, **more},
            }
            lines = [f"{name} = {value}" for name, value in settings.items()]
            head = ["[databases]", f"* = host={socket} user=lastcall", "[pgbouncer]"]
            (tmp_path / "pgbouncer.ini").write_text("\n".join([*head, *lines, ""]))
            # It refuses to run as root, as PostgreSQL does.
            command = [*_as_ordinary_user(), "pgbouncer", str(tmp_path / "pgbouncer.ini")]
            bouncer = subprocess.Popen(command, stdout=stack.enter_context(log.open("wb")), stderr=subprocess.STDOUT)
            stack.callback(bouncer.wait)
            stack.callback(bouncer.terminate)
            url = f"postgresql://lastcall@127.0.0.1:{port}/%s?sslmode=disable"
            wait_until_it_answers(url % "postgres", log)
            return url

        yield start


def test_behind_pgbouncer_in_transaction_mode_it_says_so_and_is_not_ready(
    start_host: StartHost, postgres: EmbeddedPostgres, start_pgbouncer: Callable[..., str]
) -> None:
    postgres.create_database("faults_pgbouncer", TEMPLATE)
    url = start_pgbouncer("transaction") % "faults_pgbouncer"
    host = start_host(postgres, "faults_pgbouncer", 2, ready=False, DATABASE_URL=url)
    assert len(unready_lines(host, "transaction-mode pooler")) == 2


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_behind_pgbouncer_all_holds(
    start_bench: StartBench, postgres: EmbeddedPostgres, start_pgbouncer: Callable[..., str], pool_mode: str
) -> None:
    """In transaction mode with a direct URL to listen, and a pool much smaller than the workers' own."""
    pool_size = 4 if pool_mode == "transaction" else 100
    url = start_pgbouncer(pool_mode, default_pool_size=pool_size, max_client_conn=1000)

    def where(name: str) -> dict[str, str]:
        direct = {"LASTCALL_LISTEN_URL": postgres.url(name)} if pool_mode == "transaction" else {}
        return {"DATABASE_URL": url % name, **direct}

    fault = f"DATABASE_URL leads to pgbouncer in {pool_mode} mode"
    bench = start_bench(fault, "0 accepted after return", workers=(2,), where=where)
    bench.rounds()
    with bench.psql() as psql:
        found = psql.execute(
            "SELECT count(*) FILTER (WHERE application_name IN ('lastcall', 'lastcall-ask')),"
            " count(*) FILTER (WHERE application_name = 'lastcall-listener')"
            " FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchone()
    assert found is not None
    assert found[0] <= pool_size
    assert found[1] == 2, "each worker's listener has a server process of its own"
    bench.check()


def wait_until_it_answers(url: str, log: Path) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            assert time.monotonic() < deadline_s, f"{error}\n{log.read_text()[-1000:]}"
            time.sleep(0.05)  # nothing tells from outside


@pytest.fixture
def replica(cluster: EmbeddedPostgres, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A copy of the cluster in recovery, with a database that the product has prepared."""
    apply_schema(cluster.url())
    cluster.let_in(APP)
    cluster.stop()
    folder = tmp_path / "replica"
    folder.mkdir(mode=0o700)
    shutil.copytree(cluster.data_dir, folder / "postgres", symlinks=True)
    (folder / "postgres" / "standby.signal").touch()
    with EmbeddedPostgres(folder) as server:
        yield server


def test_on_a_replica_it_says_so_and_is_not_ready(start_host: StartHost, replica: EmbeddedPostgres) -> None:
    figures = REPORT.begin("DATABASE_URL leads to a replica", "one clear message; not ready")
    host = start_host(replica, "lastcall", 2, ready=False)
    lines = unready_lines(host, "replica|read-only|read-write")
    assert len(lines) == 2, lines
    assert all("replica" in line for line in lines), f"not clear: {lines[0]}"
    figures.outcome = "held"


def test_make_run_on_a_replica_ends_with_one_line(replica: EmbeddedPostgres, signing_key: str, tmp_path: Path) -> None:
    environment = {
        **FAST_ENVIRONMENT,
        "PATH": "/usr/bin:/bin",
        "DATABASE_URL": replica.url(),
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path / "instance"),
        "PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tools.run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert re.search("replica|read-only", done.stderr), done.stderr
