"""What README.md tells the owner of another service: the example, the rights of its role, the service without Flask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo

from blueprints.server import Server
from examples.protect_a_route import create_app
from lastcall import Revoked
from lastcall.flask import Lastcall, check_request
from tests.actors import Actor
from tests.conftest import MakeUser
from tests.database.conftest import one, wait_until
from tests.gunicorn import ROOT

ROLE = "invoices"


def block_of_the_readme(language: str, word: str) -> str:
    """The one block of README.md in `language` that holds `word`."""
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (found,) = [block for block in blocks if word in block]
    return str(found)


@pytest.fixture
def url_of_the_role(database_url: str, psql: psycopg.Connection) -> Iterator[str]:
    """The URL of the role that README.md makes, with the rights that it gives and no others."""
    psql.execute(block_of_the_readme("sql", "CREATE ROLE").encode())
    yield make_conninfo(database_url, user=ROLE)
    psql.execute(f"DROP ROLE {ROLE}".encode())


@pytest.fixture
def environment_of_the_service(url_of_the_role: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url_of_the_role)
    monkeypatch.setenv("LASTCALL_SIGNING_KEY", json.dumps(server.settings.keys.jwks()))


@pytest.fixture
def example(environment_of_the_service: None) -> Iterator[Flask]:
    app = create_app()
    extension: Lastcall = app.extensions["lastcall"]
    app.test_client().get("/invoices")  # with the first request the listener starts
    assert extension.listener.wait_until_live()
    yield app
    extension.stop()


def ask(client: FlaskClient, actor: Actor, method: str = "GET") -> Any:
    return client.open("/invoices", method=method, headers={"Authorization": f"Bearer {actor.token}"})


def test_the_example_refuses_a_token_as_soon_as_the_force_logout_has_returned(
    example: Flask, make_user: MakeUser
) -> None:
    root, alice = make_user("root", "admin"), make_user("alice", "viewer")
    client = example.test_client()
    assert ask(client, alice).json == {"of": "alice", "invoices": []}
    receipt = root.delete(f"/admin/sessions/{alice.user_id}").json
    assert receipt["workers"]["confirmed"] == receipt["workers"]["live"] == 2, "the example is waited for"
    refused = ask(client, alice)
    assert (refused.status_code, refused.json["code"]) == (401, "token_revoked")
    assert ask(client, alice.again()).status_code == 200


def test_the_example_asks_for_a_token_and_for_the_role(example: Flask, make_user: MakeUser) -> None:
    viewer, biller = make_user("alice", "viewer"), make_user("bob", "billing")
    client = example.test_client()
    assert client.get("/invoices").status_code == 401
    assert ask(client, viewer, "DELETE").status_code == 403
    assert ask(client, biller, "DELETE").status_code == 204


def test_claims_never_outlive_their_request(example: Flask, make_user: MakeUser) -> None:
    root, alice, biller = make_user("root", "admin"), make_user("alice"), make_user("bob", "billing")
    client = example.test_client()
    with example.app_context():  # many push one at the start, so that the database of their models is at hand
        assert ask(client, biller, "DELETE").status_code == 204
        assert ask(client, alice).json["of"] == "alice"
        assert ask(client, alice, "DELETE").status_code == 403
        assert client.get("/invoices").status_code == 401
    header = {"Authorization": f"Bearer {biller.token}"}
    with example.test_request_context("/invoices", method="DELETE", headers=header):  # a request that sends others
        assert check_request().has_role("billing")
        assert ask(client, alice, "DELETE").status_code == 403
        root.delete(f"/admin/sessions/{alice.user_id}")
        assert ask(client, alice).json["code"] == "token_revoked"
        assert check_request().username == "bob"


def test_the_example_asks_the_database_when_its_lease_is_out(example: Flask, make_user: MakeUser) -> None:
    root, alice, bob = make_user("root", "admin"), make_user("alice"), make_user("bob")
    extension: Lastcall = example.extensions["lastcall"]
    extension.listener.stop()
    assert not extension.cutoffs.lease_is_valid()
    root.delete(f"/admin/sessions/{alice.user_id}")
    client = example.test_client()
    assert ask(client, alice).status_code == 401
    assert ask(client, bob).status_code == 200


def test_the_example_that_has_stopped_holds_no_connection(example: Flask, psql: psycopg.Connection) -> None:
    extension: Lastcall = example.extensions["lastcall"]
    held = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'"
    assert extension.asker is not None and extension.asker.now_s() > 0
    assert one(psql, held) == 2
    extension.stop()
    wait_until(lambda: one(psql, held) == 0, "the listener's connection and the one to ask on are gone")


def test_the_role_may_not_read_what_is_none_of_its_business(url_of_the_role: str) -> None:
    with psycopg.connect(url_of_the_role, autocommit=True) as connection:
        for forbidden in (
            "SELECT FROM users",
            "SELECT refresh_hash FROM login_sessions",
            "SELECT reason FROM revocations",
            "INSERT INTO cutoffs (scope, subject) VALUES ('everyone', '')",
            "UPDATE everyone SET gen = 0",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())


def test_the_role_may_change_no_other_workers_row(
    url_of_the_role: str, server: Server, psql: psycopg.Connection
) -> None:
    """Or a service that was broken into could confirm for others, or take their rows away."""
    row = "INSERT INTO workers (id, service, host, pid, role_name) VALUES (gen_random_uuid(), 'invoices', 'h', 1, {})"
    with psycopg.connect(url_of_the_role, autocommit=True) as connection:
        connection.execute(row.format("current_user").encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(row.format("'lastcall_app'").encode())
        assert connection.execute("UPDATE workers SET snapshot = pg_current_snapshot()").rowcount == 1
        assert connection.execute("DELETE FROM workers").rowcount == 1
        assert connection.execute("SELECT FROM workers").rowcount == 1, "it sees the others, as everybody does"


def test_the_service_without_flask_of_the_readme(environment_of_the_service: None, make_user: MakeUser) -> None:
    root, alice = make_user("root", "admin"), make_user("alice")
    service: dict[str, Any] = {}
    exec(block_of_the_readme("python", "CutoffListener("), service)  # noqa: S102
    try:
        assert service["who_is"](alice.token) == "alice"
        root.delete(f"/admin/sessions/{alice.user_id}")
        with pytest.raises(Revoked):
            service["who_is"](alice.token)
    finally:
        service["listener"].stop()
        service["guard"].close()
