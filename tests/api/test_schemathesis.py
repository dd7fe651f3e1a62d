"""Schemathesis makes requests from the OpenAPI document, good and bad ones: what it says is what the API does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, settings

from app import create_app
from models import user as users
from models.sign_in import ClientInfo, sign_in
from settings import from_environment
from tests.actors import API
from tests.conftest import FAST_ENVIRONMENT, PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres


def described() -> Any:
    """The document, which needs no database: each operation becomes a test while tests are still being collected."""
    nowhere = {"DATABASE_URL": "postgresql://nowhere/", "LASTCALL_SIGNING_KEY": "s" * 32}
    app = create_app(from_environment({**FAST_ENVIRONMENT, **nowhere}))
    return schemathesis.openapi.from_wsgi("/openapi.json", app, config=schemathesis.Config.from_dict({}))


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
    case.call_and_validate(headers={"Authorization": f"Bearer {target.fresh_token()}"}, app=target.app)
