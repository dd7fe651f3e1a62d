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
from models.minting import ClientInfo
from models.sign_in import sign_in
from settings import from_environment
from tests.actors import API
from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres

schemathesis.openapi.format("ip-network", strategies.ip_addresses().map(str) | strategies.just("10.0.0.0/8"))


CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}})


def is_beyond_a_schema(response: schemathesis.Response) -> bool:
    """The request has the right form, but what it says makes no sense: a forged cursor, a time range that is inverted,
    a scope without its subject; or it is over 64 KiB in all. No JSON Schema can tell: what one can is
    `invalid_request`."""
    return response.status_code == 413 or (response.status_code == 400 and response.json()["code"] != "invalid_request")


class Target:
    """The application once it runs, and its admin."""

    app: Flask
    psql: psycopg.Connection
    token: str | None = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)

    def token_for(self, method: str) -> str:
        """The admin's token. After anything but a GET he signs in again: that may have been the end of his session."""
        if self.token is None:
            # Guessed passwords count against one address here: without this, all sign-ins would soon be a 429.
            self.psql.execute("DELETE FROM sign_in_attempts")
            with self.app.app_context():
                client = ClientInfo("tests", "127.0.0.2", "tests")
                self.token = sign_in(
                    "root", PASSWORD, client, self.app.extensions["lastcall_server"].settings
                ).access_token
        token = self.token
        if method != "GET":
            self.token = None
        return token


TARGET = Target()


def described() -> Any:
    """The document, which needs no database: each operation becomes a test while tests are still being collected."""
    nowhere = {"DATABASE_URL": "postgresql://nowhere/", "LASTCALL_SIGNING_KEY": "s" * 32}
    app = create_app(from_environment({**FAST_ENVIRONMENT, **nowhere}))
    document = describe(app.url_map, app.view_functions)  # asking the app for it would start a listener
    schema = schemathesis.openapi.from_dict(document, config=CONFIG)
    schema.app = TARGET
    return schema


@pytest.fixture(scope="module", autouse=True)
def running_target(
    postgres: EmbeddedPostgres, signing_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    url = postgres.create_database("schemathesis", TEMPLATE)
    environment = {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": url,
        "LASTCALL_SIGNING_KEY": signing_key,
        "LASTCALL_DATA_DIR": str(tmp_path_factory.mktemp("instance")),
    }
    with running_app(from_environment(environment)) as app, psycopg.connect(url, autocommit=True) as psql:
        TARGET.app, TARGET.psql = app, psql
        with app.app_context():
            users.create_user("root", PASSWORD, ["admin"])
        yield
    postgres.drop_database("schemathesis")


api = described()


# Left out: /admin/events is a stream, which ends only when its session does. test_events.py reads it.
@api.exclude(path=API + "/admin/events").parametrize()
@settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_does_what_its_document_says(case: schemathesis.Case[Any]) -> None:
    headers = {"Authorization": f"Bearer {TARGET.token_for(case.method)}"}
    response = case.call(headers=headers)
    excluded: list[Any] = [positive_data_acceptance] if is_beyond_a_schema(response) else []
    case.validate_response(response, headers=headers, excluded_checks=excluded)
