"""The command line: it works with the web processes up and down, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import Result
from flask import Flask

from app import create_app
from blueprints.server import Server
from models.database import db
from settings import Settings, from_environment
from tests.actors import Actor
from tests.conftest import PASSWORD
from tests.database.conftest import accepts, one
from tools.postgres import APP, OWNER

ROOT = Path(__file__).parents[2]
NOWHERE = "postgresql://127.0.0.1:1/nowhere"


def run(app: Flask, *words: str, **options: str | bytes) -> Result:
    return app.test_cli_runner().invoke(args=list(words), **options)


def error_of(result: Result) -> str:
    """The one line that says what is wrong."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
    return error


def said(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def idle(settings: Settings) -> Iterator[Flask]:
    """The application with no thread running: the web processes are down."""
    app = create_app(settings)
    yield app
    app.extensions["lastcall_server"].stop()
    with app.app_context():
        db.engine.dispose()


def test_init_db_may_be_run_as_often_as_one_likes(idle: Flask, psql: psycopg.Connection) -> None:
    for _ in range(2):
        assert said(run(idle, "init-db")) == "The schema is in place."
    assert one(psql, "SELECT access_ttl_s FROM everyone") == 300


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param(lambda _: NOWHERE, "DATABASE_URL: the database cannot be reached (", id="it is away"),
        pytest.param(
            lambda url: url.replace(f"//{OWNER}@", f"//{APP}@"),
            "the database could not be prepared: permission denied ",
            id="the role is not the owner",
        ),
    ],
)
def test_init_db_says_in_one_line_why_it_can_do_nothing(
    environment: dict[str, str], url: Callable[[str], str], reason: str
) -> None:
    app = create_app(from_environment({**environment, "DATABASE_URL": url(environment["DATABASE_URL"])}))
    assert error_of(run(app, "init-db")).startswith(f"Error: {reason}")


@pytest.mark.parametrize(("access_ttl", "noted"), [("600", 600), ("120", 120)])
def test_init_db_notes_the_lifetime_of_tokens(
    environment: dict[str, str], psql: psycopg.Connection, access_ttl: str, noted: int
) -> None:
    said(run(create_app(from_environment({**environment, "LASTCALL_ACCESS_TTL": access_ttl})), "init-db"))
    assert one(psql, "SELECT access_ttl_s FROM everyone") == noted


def test_create_admin_takes_the_password_from_the_settings(idle: Flask, psql: psycopg.Connection) -> None:
    assert said(run(idle, "create-admin", "ann")) == "ann is an admin."
    assert psql.execute("SELECT u.username, r.role FROM users AS u JOIN user_roles AS r ON TRUE").fetchall() == [
        ("ann", "admin")
    ]
    assert Actor.signed_in(idle.test_client(), "ann", PASSWORD).user_id


def test_create_admin_invents_a_password_and_shows_it_once(
    environment: dict[str, str], psql: psycopg.Connection
) -> None:
    app = create_app(from_environment({**environment, "LASTCALL_ADMIN_PASSWORD": ""}))
    password = said(run(app, "create-admin", "ann")).rpartition(" ")[2]
    assert len(password) >= 16
    assert password not in one(psql, "SELECT password_hash FROM users")
    assert said(run(app, "create-admin", "bob", "--password-stdin", input="a long password\n")) == "bob is an admin."


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["create-admin", "alice"], ""),
        (["create-admin", "ALICE"], ""),
        (["create-admin", "ann", "--password-stdin"], "short\n"),
        (["create-admin", " ann"], ""),
        (["create-admin", ""], ""),
        (["create-admin", "--username", ""], ""),
        (["create-admin", "", "--username", "ann"], ""),
        (["create-admin", "ann", "--password-stdin"], ""),
        (["sessions", "--user", ""], ""),
        (["sessions", "--q", ""], ""),
        (["sessions", "--role", ""], ""),
        (["sessions", "--client", ""], ""),
        (["sessions", "--ip", ""], ""),
        (["sessions", "--state", ""], ""),
        (["revoke", "user", ""], ""),
        (["sessions", "--state", "asleep"], ""),
        (["sessions", "--limit", "0"], ""),
        (["sessions", "--limit", "201"], ""),
        (["sessions", "--ip", "10.0.0.0/129"], ""),
        (["revoke", "user", "nobody"], ""),
        (["revoke", "user", str(uuid.uuid4())], ""),
        (["revoke", "session", str(uuid.uuid4())], ""),
        (["revoke", "session", "no-id"], ""),
        (["revoke", "user", "alice", "--reason", "x" * 501], ""),
        (["revoke", "user", "al\udcffice"], ""),
        (["revoke", "user", "alice", "--reason", "\udcff"], ""),
        (["create-admin", "ann\udcff"], ""),
        (["create-admin", "ann", "--password-stdin"], b"\xff-a-long-password\n"),
        (["revoke", "everyone", "--reson", "typo"], ""),
        (["revoke", "everyone", "alice"], ""),
        (["demo-data", "--sessions", "0"], ""),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_changes_nothing(
    app: Flask, psql: psycopg.Connection, alice: Actor, words: list[str], typed: str | bytes
) -> None:
    assert error_of(run(app, *words, input=typed))
    assert alice.is_in()
    assert one(psql, "SELECT count(*) FROM users") == 1
    assert one(psql, "SELECT count(*) FROM revocations") == 0


def test_sessions_lists_who_is_in(app: Flask, alice: Actor, root: Actor) -> None:
    text = said(run(app, "sessions"))
    assert "alice" in text and "root" in text and text.endswith("2 of 2 sessions")
    text = said(run(app, "sessions", "--user", "alice", "--role", "viewer", "--ip", "127.0.0.0/8", "--q", "ALI"))
    assert "root" not in text and text.endswith("1 of 1 sessions")
    rows = [json.loads(line) for line in run(app, "sessions", "--json", "--limit", "1").output.splitlines()]
    assert [row["session_id"] for row in rows] == [root.session_id]
    assert not any(secret in text for secret in (alice.token, alice.tokens["refresh_token"]))


def test_revoke_user_is_in_force_on_the_running_workers(
    app: Flask, psql: psycopg.Connection, alice: Actor, root: Actor
) -> None:
    text = said(run(app, "revoke", "user", "Alice", "--reason", "left the company"))
    assert text.startswith("In force on 1 of 1 workers in ") and ": 1 session ended" in text
    answer = alice.get("/auth/me")
    assert (answer.status_code, answer.json["reason"]) == (401, "left the company")
    assert root.is_in()
    row = psql.execute("SELECT actor_name, cause, reason FROM revocations").fetchall()
    assert row == [("command line", "force_logout", "left the company")]


def test_revoke_user_takes_an_id_also_of_the_deleted(app: Flask, psql: psycopg.Connection, alice: Actor) -> None:
    psql.execute("DELETE FROM users")
    assert ": 0 sessions ended" in said(run(app, "revoke", "user", alice.user_id))
    assert not alice.is_in()


def test_revoke_user_asks_nothing_while_the_database_is_away(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str, yes: bool) -> None:
        raise AssertionError(question)

    monkeypatch.setattr("blueprints.commands._ask", ask)
    app = create_app(from_environment({**environment, "DATABASE_URL": NOWHERE}))
    assert "can't be reached" in error_of(run(app, "revoke", "user", str(uuid.uuid4())))


def test_revoke_session_ends_one_session(app: Flask, alice: Actor) -> None:
    other = alice.again()
    said(run(app, "revoke", "session", alice.session_id, "--reason", "lost phone"))
    assert not alice.is_in() and other.is_in()


def test_revoke_everyone_signs_out_all(app: Flask, alice: Actor, root: Actor) -> None:
    assert "2 sessions ended" in said(run(app, "revoke", "everyone", "--reason", "incident"))
    assert not alice.is_in() and not root.is_in()
    assert alice.again().is_in()


def test_revoke_works_with_the_web_processes_down(
    app: Flask, server: Server, idle: Flask, alice: Actor, psql: psycopg.Connection
) -> None:
    server.lastcall.listener.stop()
    assert said(run(idle, "revoke", "user", "alice")).startswith("In force on 0 of 0 workers in ")
    late = create_app(server.settings).extensions["lastcall_server"]
    late.lastcall.listener.ensure_running()
    assert late.lastcall.listener.wait_until_live()
    assert not accepts(late, alice.token)
    late.stop()


def test_purge_says_what_went(app: Flask, psql: psycopg.Connection, alice: Actor) -> None:
    psql.execute("INSERT INTO cutoffs (scope, subject, expires_at) VALUES ('session', 'x', now() - interval '1 min')")
    assert said(run(app, "purge")) == "1 cutoffs, 0 login_sessions, 0 sign_in_attempts deleted"
    assert alice.is_in()


def test_demo_data_invents_sessions_that_nobody_can_enter(app: Flask, psql: psycopg.Connection) -> None:
    assert "1200 sessions were invented." in said(run(app, "demo-data", "--sessions", "1200"))
    assert one(psql, "SELECT count(*) FROM login_sessions") == 1200
    assert psql.execute("SELECT DISTINCT password_hash FROM users").fetchall() == [("!",)]
    name = one(psql, "SELECT username FROM users LIMIT 1")
    answer = app.test_client().post("/api/v1/auth/login", json={"username": name, "password": "!"})
    assert answer.status_code == 401


def flask(environment: dict[str, str], *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LASTCALL_", "COV_"))}
    command = [sys.executable, "-m", "flask", "--app", "app", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        input=typed,
    )


def test_the_real_command_revokes_and_ends(app: Flask, environment: dict[str, str], alice: Actor) -> None:
    done = flask(environment, "revoke", "user", "alice", "--reason", "from a script")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("In force on 1 of 1 workers")
    assert not alice.is_in()


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nmore\n"])
def test_a_password_is_the_first_line_without_its_end(app: Flask, environment: dict[str, str], end: str) -> None:
    done = flask(environment, "create-admin", "ann", "--password-stdin", typed=f"a long password {end}")
    assert (done.returncode, done.stderr) == (0, "")
    assert Actor.signed_in(app.test_client(), "ann", "a long password ").user_id


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DATABASE_URL", NOWHERE), ("LASTCALL_LEASE", "soon")],
)
def test_the_real_command_names_its_trouble_in_one_line(environment: dict[str, str], variable: str, value: str) -> None:
    done = flask({**environment, variable: value}, "sessions")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
