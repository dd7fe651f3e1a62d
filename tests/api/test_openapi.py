"""The OpenAPI 3.1 document: whole, sound, and about every route of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.actors import API

METHODS = {"get", "put", "post", "delete", "patch"}


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    response = client.get("/openapi.json")
    assert (response.status_code, response.content_type) == (200, "application/json")
    found: dict[str, Any] = response.json
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON value."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from parts(part)


def test_the_document_has_the_shape_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"] and document["info"]["version"]
    assert set(document) <= {"openapi", "info", "paths", "components", "servers", "tags", "security"}
    ids = []
    for path, method, operation in operations(document):
        assert path.startswith("/") and method in METHODS
        ids.append(operation["operationId"])
        assert operation["summary"] and operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status) and response["description"]
        names = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", [])]
        assert len(names) == len(set(names))
        assert {name for place, name in names if place == "path"} == set(re.findall(r"{(\w+)}", path))
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in ("path", "query", "header") and "schema" in parameter
            assert parameter["required"] or parameter["in"] != "path"
    assert len(ids) == len(set(ids)) > 20


def test_every_route_of_the_api_is_in_it_and_nothing_else(app: Flask, document: dict[str, Any]) -> None:
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(API)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_every_reference_leads_to_a_schema_and_every_schema_is_used(document: dict[str, Any]) -> None:
    references = {part["$ref"] for part in parts(document) if "$ref" in part}
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references == schemas


def test_every_object_that_a_client_sends_refuses_unknown_names(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            assert schema["additionalProperties"] is False, (method, path)


def test_what_is_guarded_says_so_with_the_problems_it_may_answer(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        public = path in (f"{API}/auth/login", f"{API}/auth/refresh")
        assert operation["security"] == ([] if public else [{"bearer": []}]), (method, path)
        assert "401" in operation["responses"] and "400" in operation["responses"]
        assert ("403" in operation["responses"]) == path.startswith(f"{API}/admin"), (method, path)
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_what_a_header_may_ask_for_is_told_where_it_is_answered(document: dict[str, Any]) -> None:
    told = {"Prefer": "202", "If-None-Match": "304"}
    for _, _, operation in operations(document):
        headers = {one["name"] for one in operation.get("parameters", []) if one["in"] == "header"}
        assert headers == {name for name, status in told.items() if status in operation["responses"]}
    assert "Prefer" in str(document["paths"]["/api/v1/admin/revocations"]["post"]["parameters"])


def test_the_page_to_try_it_needs_nothing_from_elsewhere(client: FlaskClient) -> None:
    response = client.get("/docs")
    assert response.status_code == 200 and response.content_type.startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", response.text)
    assert not re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\son\w+=|style=", response.text), "nothing inline"
