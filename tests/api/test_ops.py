"""For operators and programs: health, readiness, metrics, keys; and what a worker without a lease answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jwt
import psycopg
import pytest
from flask.testing import FlaskClient

from blueprints.server import Server
from lastcall.tokens import generate_signing_key
from models import user as users
from settings import from_environment
from tests.actors import API, Actor
from tests.api.conftest import answer, problem, receipt
from tests.conftest import PASSWORD, running_app
from tools.postgres import EmbeddedPostgres


@pytest.fixture
def stopped(server: Server) -> Iterator[Server]:
    """A worker whose listener has stopped, so that it asks the database; what it asked on is closed at the end."""
    server.lastcall.listener.stop()
    yield server


def metric(client: FlaskClient, name: str) -> float:
    found = re.search(rf"^lastcall_{name}(?:{{[^}}]*}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_health_says_that_the_process_runs(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}


def test_ready_says_that_the_lease_is_valid(client: FlaskClient, server: Server) -> None:
    assert client.get("/readyz").json == {"status": "ready", "state": "live"}
    server.lastcall.listener.stop()
    response = client.get("/readyz")
    problem(response, 503, "not_ready")
    assert response.headers["Retry-After"] == "1"
    assert client.get("/healthz").status_code == 200


def test_a_worker_without_a_lease_asks_the_database(
    root: Actor, alice: Actor, psql: psycopg.Connection, stopped: Server
) -> None:
    answer(root.get("/auth/me"))
    psql.execute("DELETE FROM users WHERE id = %s", (alice.user_id,))
    problem(alice.get("/auth/me"), 401, "token_revoked")
    answer(root.get("/auth/me"))


def test_a_worker_without_a_lease_refuses_where_that_is_set(
    environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    environment["LASTCALL_STALE"] = "refuse"
    alice: Actor = request.getfixturevalue("alice")
    answer(alice.get("/auth/me"))
    request.getfixturevalue("server").lastcall.listener.stop()
    response = alice.get("/auth/me")
    problem(response, 503, "cutoffs_stale")
    assert response.headers["Retry-After"] == "1"
    problem(alice.client.get(API + "/auth/me"), 401, "token_missing")


@pytest.mark.parametrize("state", ["fenced", "starting"])
def test_a_worker_that_knows_nothing_answers_503(server: Server, alice: Actor, state: str) -> None:
    server.lastcall.listener.stop()
    if state == "fenced":
        server.lastcall.cutoffs.fence()
    else:
        server.lastcall.cutoffs.loaded = False
    problem(alice.get("/auth/me"), 503, "cutoffs_stale")
    problem(alice.client.get("/readyz"), 503, "not_ready")


def test_metrics_count_and_name_what_runs(client: FlaskClient, root: Actor, alice: Actor) -> None:
    response = client.get("/metrics")
    assert response.status_code == 200 and response.content_type.startswith("text/plain")
    assert metric(client, "cutoffs_in_memory") == 0
    receipt(root.delete(f"/admin/sessions/{alice.user_id}"))
    assert metric(client, "cutoffs_in_memory") == metric(client, "cutoffs_in_database") == 1
    assert metric(client, "rounds_total") >= 2
    assert 0 < metric(client, "lease_left_seconds") <= 2
    assert metric(client, "database_up") == 1
    assert "# TYPE lastcall_rounds_total counter" in response.text and "_created" not in response.text


@pytest.mark.parametrize(
    ("address", "headers"),
    [("192.0.2.1", {}), ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}), ("::2", {})],
)
def test_metrics_are_for_this_host_only(client: FlaskClient, address: str, headers: dict[str, str]) -> None:
    problem(client.get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": address}), 403, "forbidden")


def test_metrics_are_for_the_token_where_one_is_set(
    environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    environment["LASTCALL_METRICS_TOKEN"] = "scrape-me"
    client: FlaskClient = request.getfixturevalue("client")
    problem(client.get("/metrics"), 401, "metrics_token")
    for given in (
        "Bearer scrape-you",
        "Bearer ",
        "Bearer",
        "scrape-me",
        "Basic scrape-me",
        "Bearerscrape-me",
        "Bearer é",
    ):
        problem(client.get("/metrics", headers={"Authorization": given}), 401, "metrics_token")
    far = {"REMOTE_ADDR": "192.0.2.1"}
    for scheme in ("Bearer", "bearer"):
        response = client.get("/metrics", headers={"Authorization": f"{scheme} scrape-me"}, environ_base=far)
        assert response.status_code == 200


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_the_published_keys_verify_a_token_and_hold_nothing_private(environment: dict[str, str], alg: str) -> None:
    environment["LASTCALL_SIGNING_KEY"] = json.dumps(generate_signing_key(alg))
    with running_app(from_environment(environment)) as app:
        with app.app_context():
            users.create_user("alice", PASSWORD, ["viewer"])
        alice = Actor.signed_in(app.test_client(), "alice", PASSWORD)
        keys = app.test_client().get("/.well-known/jwks.json").json["keys"]
    header = jwt.get_unverified_header(alice.token)
    assert header["typ"] == "at+jwt" and header["alg"] == alg
    key = next(key for key in keys if key["kid"] == header["kid"])
    payload = jwt.decode(alice.token, jwt.PyJWK(key).key, algorithms=[alg], audience="lastcall", issuer="lastcall")
    promised = "iss aud sub sid jti iat exp auth_time client_id roles user_gen everyone_gen"
    assert set(promised.split()) <= set(payload)
    assert (payload["sub"], payload["sid"]) == (alice.user_id, alice.session_id)
    assert (payload["user_gen"], payload["everyone_gen"]) == (0, 0)
    assert not any(name in key for key in keys for name in ("d", "p", "q", "dp", "dq", "qi", "k"))


def test_the_generations_of_a_token_are_those_of_its_sign_in(root: Actor, alice: Actor) -> None:
    receipt(root.delete(f"/admin/sessions/{alice.user_id}"))
    receipt(root.delete("/admin/sessions"))
    payload = jwt.decode(alice.again().token, options={"verify_signature": False})
    assert (payload["user_gen"], payload["everyone_gen"]) == (1, 1)


def test_a_database_that_is_away_is_a_503_never_a_401(
    client: FlaskClient, root: Actor, stopped: Server, psql: psycopg.Connection, postgres: EmbeddedPostgres
) -> None:
    name = psql.info.dbname
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS FALSE")
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    psql.execute(others, (name,))
    try:
        for response in (
            root.get("/auth/me"),
            client.post(API + "/auth/login", json={"username": "root", "password": PASSWORD}),
            client.post(API + "/auth/refresh", json={"refresh_token": root.tokens["refresh_token"]}),
            root.get("/admin/sessions"),
        ):
            assert response.status_code == 503, response.text
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json["code"] in ("database_away", "cutoffs_stale")
    finally:
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as other:
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS TRUE")
    answer(client.post(API + "/auth/login", json={"username": "root", "password": PASSWORD}))
