"""Every route is guarded, or stands on the short list of those that are for anyone."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import AnyConverter, Rule

from models.user import ADMIN
from tests.actors import API
from tests.api.conftest import NOBODY

PUBLIC = {
    "auth.login": "the way in",
    "auth.refresh": "its token is the refresh token",
    "console.login": "the console's way in",
    "console.enter": "the console's way in",
    "home": "leads to the console",
    "ops.docs": "the API is no secret",
    "ops.healthz": "says that the process runs",
    "ops.jwks": "public keys",
    "ops.metrics": "checks address or token by itself",
    "ops.openapi": "the API is no secret",
    "ops.readyz": "says whether the lease is valid",
    "static": "files",
}

FOR_EVERY_USER = {
    "auth.logout", "auth.me", "auth.password", "sessions.end_all_own", "sessions.end_own", "sessions.list_own"
}  # fmt: skip


def arguments(rule: Rule) -> dict[str, str]:
    """Something that fits in the place of each argument of a path."""
    return {
        name: sorted(converter.items)[0] if isinstance(converter, AnyConverter) else NOBODY
        for name, converter in rule._converters.items()
    }


def test_every_route_is_guarded_or_on_the_short_public_list(app: Flask) -> None:
    bare = {
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if not getattr(app.view_functions[rule.endpoint], "is_guarded", False)
    }
    assert bare == PUBLIC.keys()


def test_every_guarded_route_is_for_admins_or_about_ones_own(app: Flask) -> None:
    guarded = {
        endpoint: getattr(view, "required_role", None)
        for endpoint, view in app.view_functions.items()
        if getattr(view, "is_guarded", False)
    }
    assert {endpoint for endpoint, role in guarded.items() if role is None} == FOR_EVERY_USER
    assert {role for role in guarded.values() if role is not None} == {ADMIN}


def test_everything_below_admin_and_the_console_is_for_admins(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith((f"{API}/admin", "/console")) and rule.endpoint not in PUBLIC:
            assert getattr(app.view_functions[rule.endpoint], "required_role", None) == ADMIN, rule


def test_no_guarded_route_answers_without_a_token(app: Flask, client: FlaskClient) -> None:
    for rule in app.url_map.iter_rules():
        if rule.endpoint in PUBLIC:
            continue
        path = app.url_map.bind("localhost").build(rule.endpoint, arguments(rule))
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            response = client.open(path, method=method)
            if rule.rule.startswith(API):
                assert response.status_code == 401, (method, path)
            else:
                door = response.status_code == 302 and response.location.startswith("/console/login")
                assert door or response.status_code == 401, (method, path)


def test_no_route_changes_anything_by_get(app: Flask) -> None:
    changing = {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or set())}
    words = ("end", "delete", "revoke", "logout", "leave", "create", "change", "replace", "force")
    assert not [endpoint for endpoint in changing if endpoint.partition(".")[2].split("_")[0] in words]


@pytest.mark.parametrize("path", ["/nowhere", f"{API}/nowhere", f"{API}/admin/sessions/no-id", "/console/../etc"])
def test_what_is_not_there_is_a_404_as_a_problem(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.content_type) == (404, "application/problem+json")
    assert response.json["code"] == "not_found"


def test_a_wrong_method_is_a_405_as_a_problem(client: FlaskClient) -> None:
    response = client.put(API + "/auth/login", json={})
    assert (response.status_code, response.json["code"]) == (405, "method_not_allowed")
    assert "POST" in response.headers["Allow"]
