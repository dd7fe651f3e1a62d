"""Errors as HTTP: the one place where an error becomes problem details (RFC 9457)."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from lastcall.errors import DatabaseAway, LastcallError, Revoked, TokenRejected
from lastcall.flask import problem as problem
from lastcall.flask import problem_response
from models.database_errors import database_errors
from models.errors import (
    BadCursor,
    BadRequest,
    Conflict,
    NotAllowed,
    NotFound,
    RefreshRejected,
    Throttled,
    WrongCredentials,
)
from models.revocation import public_reason

log = logging.getLogger("lastcall")

_STATUS: dict[type[LastcallError], int] = {
    NotFound: 404,
    Conflict: 409,
    BadCursor: 400,
    BadRequest: 400,
    NotAllowed: 403,
    WrongCredentials: 401,
    RefreshRejected: 401,
    Throttled: 429,
}

_REASON_KEPT_S = 5.0
_REASONS_MOST = 1_000
_reasons: dict[tuple[str, str, str | None], tuple[float, str | None]] = {}

# By number: the phrases, and what Python and Werkzeug call them, change between versions (413, 422).
CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "content_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    417: "expectation_failed",
    431: "header_too_large",
    500: "internal_error",
    501: "not_implemented",
}


def not_confirmed() -> Response:
    """A change was committed, but a worker has neither confirmed it nor lost its lease in time."""
    return problem(
        503,
        "not_confirmed",
        "It is written and will be in force everywhere within a lease, but a worker has not confirmed it in time.",
        {"Retry-After": "2"},
    )


def known_problem(error: LastcallError) -> Response:
    if isinstance(error, TokenRejected):
        reason = public_reason_of(error) if isinstance(error, Revoked) else None
        return problem_response(error, **({"reason": reason} if reason else {}))
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        return problem_response(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="lastcall", error="invalid_grant"'
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(error.retry_after_s)
    fields = {"errors": error.errors} if isinstance(error, BadRequest) and error.errors else {}
    return problem(status, error.code, error.detail, headers, **fields)


def http_problem(error: HTTPException) -> Response:
    """What Flask itself refuses: unknown paths, methods, sizes."""
    status = error.code or 500
    if error.response is not None or status < 400:
        return error.get_response()  # type: ignore[return-value]
    headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    return problem(
        status, CODES.get(status, f"http_{status}"), error.description or HTTPStatus(status).description, headers
    )


def unexpected_problem(error: Exception) -> Response:
    """A bug, or the database in a way that nobody foresaw. The log has the trace; the answer has nothing of it."""
    if type(error).__module__ == "gunicorn.http.errors":  # its message would repeat what was sent
        return problem(400, "bad_request", "The body breaks off, or its chunks are not framed as HTTP/1.1 asks.")
    try:
        with database_errors():
            raise error
    except DatabaseAway as away:
        return problem_response(away)
    except Exception:
        log.exception("lastcall: %s %s failed", request.method, request.path)
    return problem(500, "internal_error", "Something went wrong on the server. It was logged; trying again may help.")


def init_app(app: Flask) -> None:
    app.register_error_handler(LastcallError, lambda error: _as_page(known_problem(error)))
    app.register_error_handler(HTTPException, lambda error: _as_page(http_problem(error)))
    app.register_error_handler(Exception, lambda error: _as_page(unexpected_problem(error)))


def _as_page(response: Response) -> Response:
    """A person who opens a page of the console gets a page; htmx and programs get the problem as it is."""
    opens_a_page = request.path.startswith("/console") and "text/html" in request.headers.get("Accept", "")
    if opens_a_page and response.mimetype == "application/problem+json" and "HX-Request" not in request.headers:
        response.set_data(render_template("problem.html", problem=response.json))
        response.content_type = "text/html; charset=utf-8"
    return response


def public_reason_of(error: Revoked) -> str | None:
    """The reason that was given, for the person whom it is about. Without the database the answer goes without.

    Kept for a moment: a client that tries its dead token again and again costs no query each time.
    """
    session_id = error.subject if error.scope == "session" else error.session_id
    key, now_s = (error.scope, error.subject, session_id), time.monotonic()
    known = _reasons.get(key)
    if known is not None and known[0] > now_s:
        return known[1]
    try:
        reason = public_reason(*key)
    except LastcallError:
        return None
    if len(_reasons) >= _REASONS_MOST:
        _reasons.clear()
    _reasons[key] = now_s + _REASON_KEPT_S, reason
    return reason
