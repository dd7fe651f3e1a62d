"""Schemathesis makes requests from the OpenAPI document, good and bad ones: what it says is what the API does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, settings, strategies
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app import create_app
from blueprints.openapi import describe
from models import user as users
from models.sign_in import ClientInfo, sign_in
from settings import from_environment
from tests.actors import API
from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres

schemathesis.openapi.format("ip-network", strategies.ip_addresses().map(str) | strategies.just("10.0.0.0/8"))


def is_beyond_a_schema(response: schemathesis.Response) -> bool:
    """The request has the right form, but what it says makes no sense: a forged cursor, a time range that is inverted,
    a scope without its subject. No JSON Schema can tell; what one can tell is an `invalid_request`."""
    return response.status_code == 400 and response.json()["code"] in ("bad_cursor", "bad_request")


def described() -> Any:
    """The document, which needs no database: each operation becomes a test while tests are still being collected."""
    nowhere = {"DATABASE_URL": "postgresql://nowhere/", "LASTCALL_SIGNING_KEY": "s" * 32}
    app = create_app(from_environment({**FAST_ENVIRONMENT, **nowhere}))
    document = describe(app.url_map, app.view_functions)  # asking the app for it would start a listener
    return schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict({}))


class Target:
    """The application, and an admin who signs in again before each request: the one before may have ended his session."""

    def __init__(self, app: Flask, psql: psycopg.Connection) -> None:
        self.app, self._psql = app, psql
        self._settings = app.extensions["lastcall_server"].settings
        with app.app_context():
            users.create_user("root", PASSWORD, ["admin"])

    def fresh_token(self) -> str:
        # Guessed passwords count against one address here: without this, all sign-ins would soon be a 429.
        self._psql.execute("DELETE FROM sign_in_attempts")
        client = ClientInfo("tests", "127.0.0.2", "tests")
        with self.app.app_context():
            return sign_in("root", PASSWORD, client, self._settings).access_token


@pytest.fixture(scope="module")
def target(
    postgres: EmbeddedPostgres, signing_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    url = postgres.create_database("schemathesis", TEMPLATE)
    environment = {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": url,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path_factory.mktemp("instance")),
    }
    with running_app(from_environment(environment)) as app, psycopg.connect(url, autocommit=True) as psql:
        yield Target(app, psql)
    postgres.drop_database("schemathesis")


api = described()


@api.exclude(path=API + "/admin/events").parametrize()
@settings(max_examples=20, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_does_what_its_document_says(case: schemathesis.Case, target: Target) -> None:
    headers = {"Authorization": f"Bearer {target.fresh_token()}"}
    response = case.call(headers=headers, app=target.app)
    excluded = [positive_data_acceptance] if is_beyond_a_schema(response) else []
    case.validate_response(response, headers=headers, excluded_checks=excluded, transport_kwargs={"app": target.app})
