"""People who sign in at real workers. Everything they do goes through HTTP; nothing here knows the application."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from tests.conftest import PASSWORD
from tests.gunicorn import Answer, Gunicorn, Line

API = "/api/v1"
ME = API + "/auth/me"


@dataclass(frozen=True, slots=True)
class Person:
    """One sign-in of one user."""

    username: str
    user_id: str
    session_id: str
    token: str
    refresh_token: str

    @classmethod
    def of(cls, username: str, tokens: dict[str, Any]) -> Person:
        return cls(username, tokens["user_id"], tokens["session_id"], tokens["access_token"], tokens["refresh_token"])

    @property
    def issued_s(self) -> int:
        """The second in which the token was issued, as it says itself."""
        payload = self.token.split(".")[1]
        return int(json.loads(base64.urlsafe_b64decode(payload + "=="))["iat"])


def sign_in(server: Gunicorn, username: str = "admin", password: str = PASSWORD) -> Person:
    return Person.of(username, server.sign_in(username, password))


def make_person(server: Gunicorn, admin: Person, username: str, *roles: str) -> Person:
    """Create a user, and sign him in."""
    body = {"username": username, "password": PASSWORD, "roles": list(roles)}
    created = server.ask("POST", API + "/admin/users", token=admin.token, body=body)
    assert created.status == 201, created.text
    return sign_in(server, username)


def force_logout(server: Gunicorn | Line, admin: Person, person: Person) -> Answer:
    return server.ask("DELETE", f"{API}/admin/sessions/{person.user_id}", token=admin.token)


def status_of(server: Gunicorn | Line, token: str) -> int:
    return server.ask("GET", ME, token=token).status


def statuses_on(lines: list[Line], token: str) -> list[int]:
    """What each worker says to a token, worker by worker."""
    return [status_of(line, token) for line in lines]
