"""Lastcall's own server, to be measured: a database for it, and what it has in its environment."""

from __future__ import annotations

import secrets
from pathlib import Path

from models.database import apply_schema
from tests.conftest import FAST_ENVIRONMENT
from tools.postgres import APP, EmbeddedPostgres


def new_database(postgres: EmbeddedPostgres, name: str) -> str:
    """The URL of a new database that the web processes may use."""
    url = postgres.create_database(name)
    apply_schema(url)
    postgres.let_in(APP)
    return url


def environment_of(url: str, folder: Path) -> dict[str, str]:
    """The variables of a server on this database, with a key of its own and quick passwords."""
    return {
        **FAST_ENVIRONMENT,
        "DATABASE_URL": url,
        "LASTCALL_SIGNING_KEY": secrets.token_hex(32),
        "LASTCALL_DATA_DIR": str(folder),
    }
