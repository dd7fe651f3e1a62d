"""The OpenAPI 3.1 document, from the very declarations that validate the requests (blueprints/operation.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Map, Rule

import lastcall
from blueprints.operation import Answers, Operation
from blueprints.shapes import Answer, Nothing, Problem

Views = Mapping[str, Callable[..., Any]]
_TEMPLATE = "#/components/schemas/{model}"


def describe(routes: Map, views: Views) -> dict[str, Any]:
    """The document, as JSON values."""
    declared: list[tuple[Rule, Any]] = [
        (rule, views[rule.endpoint]) for rule in routes.iter_rules() if hasattr(views[rule.endpoint], "operation")
    ]
    paths: dict[str, Any] = {}
    for rule, view in sorted(declared, key=lambda pair: (pair[0].rule, sorted(pair[0].methods or ()))):
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(rule, method, view)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lastcall",
            "version": lastcall.__version__,
            "description": "Who is signed in, how do I sign someone out, and is he really out?",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas([view.operation for _, view in declared]),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(rule: Rule, method: str, view: Any) -> dict[str, Any]:
    declared: Operation = view.operation
    guarded, role = getattr(view, "is_guarded", False), getattr(view, "required_role", None)
    entry: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.partition(".")[0]],
        "summary": declared.summary,
        "security": [{"bearer": []}] if guarded else [],
        "responses": _responses(declared, guarded=guarded, role=role),
    }
    if role:
        entry["description"] = f"Needs the role {role}."
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        for name in sorted(rule.arguments)
    ]
    parameters += _query_parameters(declared.query) + _headers(declared)
    if parameters:
        entry["parameters"] = parameters
    if declared.body is not None:
        entry["requestBody"] = {
            "required": not declared.body_is_optional,
            "content": {"application/json": {"schema": _reference(declared.body)}},
        }
    return entry


def _responses(declared: Operation, *, guarded: bool, role: str | None) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, shapes in declared.answers.items():
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
        references = [_reference(shape) for shape in _several(shapes)]
        if references:
            schema = references[0] if len(references) == 1 else {"oneOf": references}
            responses[str(status)]["content"] = {"application/json": {"schema": schema}}
    problems = {400, 503, *declared.problems}
    problems |= {401} if guarded else set()
    problems |= {403} if role else set()
    problems |= {413, 415} if declared.body is not None else set()
    for status in sorted(problems):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": _reference(Problem)}},
        }
    return responses


def _several(shapes: Answers) -> tuple[type[Answer], ...]:
    if shapes is None:
        return ()
    return shapes if isinstance(shapes, tuple) else (shapes,)


def _query_parameters(shape: type[BaseModel]) -> list[dict[str, Any]]:
    if shape is Nothing:
        return []
    schema = shape.model_json_schema(ref_template=_TEMPLATE)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(part)}
        for name, part in schema["properties"].items()
    ]


def _headers(declared: Operation) -> list[dict[str, Any]]:
    """What a client may ask for by a header, told by what is answered then."""
    asked = {
        202: ("Prefer", "respond-async: return once it is written, and do not wait for the workers (RFC 7240)."),
        304: ("If-None-Match", "The ETag of the list that you have: 304 while that is still the same (RFC 9110)."),
    }
    return [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": what}
        for status, (name, what) in asked.items()
        if status in declared.answers
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is given or left out; it can't be null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    plain = {name: value for name, value in schema.items() if name not in ("anyOf", "default", "title")}
    if schema.get("default") is not None:
        plain["default"] = schema["default"]
    return {**kinds[0], **plain} if kinds else plain


def _reference(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(model=shape.__name__)}


def _schemas(declared: list[Operation]) -> dict[str, Any]:
    shapes: dict[type[BaseModel], Literal["validation", "serialization"]] = {Problem: "serialization"}
    for one in declared:
        if one.body is not None:
            shapes[one.body] = "validation"
        for answers in one.answers.values():
            shapes.update(dict.fromkeys(_several(answers), "serialization"))
    assert all(issubclass(shape, Answer) for shape, mode in shapes.items() if mode == "serialization")
    _, schema = models_json_schema(list(shapes.items()), ref_template=_TEMPLATE)
    definitions: dict[str, Any] = schema["$defs"]
    return definitions
