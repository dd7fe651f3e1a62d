"""People who use the API: each holds his tokens, and sends them with every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

API = "/api/v1"


@dataclass
class Actor:
    client: FlaskClient
    username: str
    password: str
    tokens: dict[str, Any]

    @classmethod
    def signed_in(cls, client: FlaskClient, username: str, password: str) -> Actor:
        response = client.post(API + "/auth/login", json={"username": username, "password": password})
        assert response.status_code == 200, response.text
        return cls(client, username, password, response.json)

    @property
    def user_id(self) -> str:
        return str(self.tokens["user_id"])

    @property
    def session_id(self) -> str:
        return str(self.tokens["session_id"])

    @property
    def token(self) -> str:
        return str(self.tokens["access_token"])

    def again(self) -> Actor:
        """The same person, signed in once more."""
        return Actor.signed_in(self.client, self.username, self.password)

    def request(self, method: str, path: str, **kwargs: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.token}", **kwargs.pop("headers", {})}
        return self.client.open(API + path, method=method, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> TestResponse:
        return self.request("POST", path, **kwargs)

    def put(self, path: str, **kwargs: Any) -> TestResponse:
        return self.request("PUT", path, **kwargs)

    def patch(self, path: str, **kwargs: Any) -> TestResponse:
        return self.request("PATCH", path, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self.request("DELETE", path, **kwargs)

    def is_in(self) -> bool:
        """Whether his access token is accepted; anything but 200 and 401 fails the test."""
        response = self.get("/auth/me")
        assert response.status_code in (200, 401), response.text
        return response.status_code == 200
