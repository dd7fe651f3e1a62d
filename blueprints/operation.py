"""`@operation`: what a view takes and answers. It validates the request, and blueprints/openapi.py documents it.

@bp.post("/auth/refresh")
@operation("New tokens for a refresh token", body=Refresh, answers={200: TokensAnswer})
def refresh(body: Refresh) -> Response: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote_to_bytes

from flask import Response, request
from pydantic import BaseModel, ValidationError

from blueprints.problems import problem
from blueprints.shapes import Answer, Given, Nothing
from lastcall.strict import read_json
from models.errors import BadRequest

API = "/api/v1"
Shape = TypeVar("Shape", bound=Given)
Answers = type[Answer] | tuple[type[Answer], ...] | None
"""The shape of an answer, or one of several; None where it has no body."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The declaration of one view."""

    summary: str
    body: type[Given] | None
    body_is_optional: bool
    query: type[Given]
    answers: Mapping[int, Answers]
    problems: tuple[int, ...]


def operation(
    summary: str,
    *,
    body: type[Given] | None = None,
    optional_body: bool = False,
    query: type[Given] = Nothing,
    answers: Mapping[int, Answers],
    problems: tuple[int, ...] = (),
) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Validate the query (as `query=`) and the JSON body (as `body=`) before the view sees them.

    What does not fit is a 400 whose `errors` name the fields and never repeat what was sent: it may be a password.
    """
    declared = Operation(summary, body, optional_body, query, answers, problems)

    def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
        @wraps(view)
        def validated(*args: Any, **kwargs: Any) -> Response:
            try:
                given_query = _read_query(query)
                if query is not Nothing:
                    kwargs["query"] = given_query
                given_body = _read_body(body or Nothing, optional=body is None or optional_body)
                if body is not None:
                    kwargs["body"] = given_body
            except ValidationError as error:
                return _invalid(error)
            except UnsupportedType:
                return problem(
                    415, "unsupported_media_type", "The body must be JSON: send Content-Type: application/json."
                )
            except ValueError as error:
                return problem(400, "invalid_request", f"The request can't be read: {error}.")
            return view(*args, **kwargs)

        cast(Any, validated).operation = declared
        return validated

    return decorate


class UnsupportedType(Exception):
    """The body is not declared as JSON."""


def answer(value: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON of a declared shape. Never stored: most answers hold a session or a token."""
    text = value.model_dump_json(exclude={"tokens"} if getattr(value, "tokens", True) is None else None)
    return Response(
        text + "\n", status, {"Cache-Control": "no-store", **(headers or {})}, content_type="application/json"
    )


def unless_known(response: Response) -> Response:
    """304 where If-None-Match names this answer: who polls asks so, static/console.js too. If-Match, which is for what
    changes something, does not count: a 412 would hold the whole list all the same."""
    response.add_etag()
    asked = {"REQUEST_METHOD": request.method, "HTTP_IF_NONE_MATCH": request.headers.get("If-None-Match", "")}
    response.make_conditional(asked)
    return response


def next_link(cursor: str | None) -> dict[str, str]:
    """The header `Link: rel="next"` (RFC 8288) of a list with another page."""
    if cursor is None:
        return {}
    arguments = [(name, value) for name, value in request.args.items() if name != "cursor"]
    query = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in [*arguments, ("cursor", cursor)])
    return {"Link": f'<{request.path}?{query}>; rel="next"'}


def _read_query(shape: type[Given]) -> Given:
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeDecodeError:  # request.args has replaced what was not UTF-8
        raise ValueError("the query is not UTF-8 text") from None
    given: dict[str, str] = {}
    for name, values in request.args.lists():
        if len(values) > 1:
            raise ValueError("a parameter stands twice in the query")
        if "\x00" in name + values[0]:
            raise ValueError("NUL is not allowed")
        given[name] = values[0]
    return shape.model_validate(given)


def _read_body(shape: type[Given], *, optional: bool) -> Given:
    data = request.get_data(cache=False)
    request.stream.read(1)  # 413 for a chunked body that goes on: get_data would just cut it off
    if not data:
        if optional:
            return shape.model_validate({})
        raise ValueError("a JSON body is missing")
    if request.method == "GET":
        return shape.model_validate({})
    if request.mimetype != "application/json":
        raise UnsupportedType
    try:
        content = read_json(data)
    except ValueError:
        raise ValueError("the body is not valid JSON in UTF-8 (each name once, no NUL)") from None
    if not isinstance(content, dict):
        raise ValueError("the body must be a JSON object")
    return shape.model_validate(content)


def field_errors(error: ValidationError) -> list[dict[str, str]]:
    """Which fields are wrong, and why: `{"field": …, "message": …}`. What was sent is never repeated."""
    return [
        {
            "field": ".".join(str(part) for part in item["loc"])[:100] or "request",
            "message": _message(item["type"], item),
        }
        for item in error.errors(include_input=False, include_url=False)[:20]
    ]


def query_given(*but: str) -> dict[str, Any]:
    """What a page's query says, without the fields that were left empty and without `but`."""
    return {name: value for name, value in request.args.items() if value and name not in but}


def read_form(shape: type[Shape], given: Mapping[str, Any]) -> Shape:
    """The fields of a form or a page's query, validated like a body of the API. Raises BadRequest."""
    try:
        return shape.model_validate(dict(given))
    except ValidationError as error:
        errors = field_errors(error)
        raise BadRequest(f"Nothing was changed. {_named(errors)}.", errors) from None


def _invalid(error: ValidationError) -> Response:
    errors = field_errors(error)
    return problem(400, "invalid_request", f"Nothing was changed. {_named(errors)}.", errors=errors)


def _named(errors: list[dict[str, str]]) -> str:
    return "; ".join(f"{item['field']}: {item['message']}" for item in errors[:3])


def _message(kind: str, item: Any) -> str:
    if kind == "extra_forbidden":
        return "there is no such field or parameter here"
    return str(item["msg"]).removeprefix("Value error, ")
