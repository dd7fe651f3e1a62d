"""For operators and other programs: health, metrics, public keys, the OpenAPI document and a page to try it."""

from __future__ import annotations

import hmac
import ipaddress

from flask import Blueprint, Response, current_app, json, render_template, request

from blueprints.metrics import write_metrics
from blueprints.openapi import describe
from blueprints.problems import problem
from blueprints.server import address_of_request, server
from lastcall.errors import TokenRejected
from lastcall.flask import bearer_token

bp = Blueprint("ops", __name__)


@bp.get("/healthz")
def healthz() -> Response:
    """The process runs. It says nothing about the database: a restart would not mend that."""
    return _json({"status": "ok"})


@bp.get("/readyz")
def readyz() -> Response:
    """The cutoffs are loaded and the lease is valid: this worker may answer from its memory."""
    cutoffs = server().lastcall.cutoffs
    if not cutoffs.lease_is_valid():
        return problem(
            503,
            "not_ready",
            f"This worker is {cutoffs.state}: it does not know at the moment what is revoked. It keeps trying.",
            {"Retry-After": "1"},
        )
    return _json({"status": "ready", "state": cutoffs.state})


@bp.get("/metrics")
def metrics() -> Response:
    """For Prometheus; from this host only, or with LASTCALL_METRICS_TOKEN as bearer token where that is set."""
    token = server().settings.metrics_token
    if token is not None:
        try:
            given = bearer_token()
        except TokenRejected:
            given = ""
        if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            challenge = {"WWW-Authenticate": 'Bearer realm="lastcall metrics", error="invalid_token"'}
            return problem(401, "metrics_token", "Send LASTCALL_METRICS_TOKEN as a bearer token.", challenge)
    elif not _is_local():
        return problem(
            403, "forbidden", "Metrics are for this host only: set LASTCALL_METRICS_TOKEN to read them from others."
        )
    text, content_type = write_metrics(server())
    return Response(text, content_type=content_type, headers={"Cache-Control": "no-store"})


@bp.get("/.well-known/jwks.json")
def jwks() -> Response:
    """The public keys (RFC 7517). They verify a token; whether it was revoked only Lastcall's core knows."""
    return _json(server().settings.keys.jwks(), {"Cache-Control": "public, max-age=300"})


@bp.get("/openapi.json")
def openapi() -> Response:
    return _json(describe(current_app.url_map, current_app.view_functions), {"Cache-Control": "no-cache"})


@bp.get("/docs")
def docs() -> str:
    """A page to read and try the API."""
    return render_template("docs.html")


def _is_local() -> bool:
    if any(name in request.headers for name in ("X-Forwarded-For", "Forwarded")):
        return False
    address = address_of_request()
    return address is not None and ipaddress.ip_address(address).is_loopback


def _json(value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(
        json.dumps(value) + "\n",
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
    )
