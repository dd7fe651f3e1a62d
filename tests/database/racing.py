"""What races need: how many there are, users of their own, revocations that have returned, and a count of survivors."""

from __future__ import annotations

import os
import uuid
from typing import Any
from uuid import UUID

import psycopg
import pytest

from blueprints.server import Server
from lastcall.errors import Revoked
from models import force_logout
from models import user as users
from models.audit import Actor as Who
from models.confirmation import confirm
from models.errors import RefreshRejected, WrongCredentials
from models.minting import ClientInfo, Tokens
from tests.conftest import PASSWORD
from tests.database.conftest import accepts, one

ROUNDS = int(os.environ.get("LASTCALL_RACES") or 30)
"""How many of each race; `make faults` runs 2,000."""
SOMEBODY = Who("the race", reason="a race")
HERE = ClientInfo("race", "192.0.2.1", "")
MARKS = [pytest.mark.timeout(60 + ROUNDS), pytest.mark.usefixtures("context", "quick_switches")]


def new_user(password: str = PASSWORD) -> UUID:
    return UUID(users.create_user(f"user {uuid.uuid4()}", password, ["viewer"]).user_id)


def name_of(psql: psycopg.Connection, user_id: UUID) -> str:
    return str(one(psql, "SELECT username FROM users WHERE id = %s", (user_id,)))


def revoke(server: Server, scope: str, user_id: UUID, session_id: str) -> None:
    """A revocation that has returned: in force on every worker."""
    if scope == "user":
        position: str | None = force_logout.revoke_user(user_id, SOMEBODY).position
    elif scope == "session":
        position = force_logout.revoke_session(UUID(session_id), SOMEBODY).position
    elif scope == "everyone":
        position = force_logout.revoke_everyone(SOMEBODY).position
    elif scope == "deletion":
        position = users.delete_user(user_id, SOMEBODY).position
    else:
        password = scope.partition(" ")[2]
        position = users.change_user(user_id, disabled=None, password=password, actor=SOMEBODY).position
    assert position is not None and confirm(position, server.watch).in_force


def survivors(server: Server, results: list[Any]) -> int:
    """How many of the tokens that the race gave are accepted. Whoever was refused must have been told in due form."""
    strange = [
        result
        for result in results
        if result is not None and not isinstance(result, Tokens | WrongCredentials | RefreshRejected | Revoked)
    ]
    assert strange == []
    return sum(accepts(server, result.access_token) for result in results if isinstance(result, Tokens))
