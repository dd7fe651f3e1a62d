"""Introspection (RFC 7662): the service posts the token to its issuer, who knows who was logged out. Nothing is cached:
for as long as an answer is kept, a logged-out token gets in. Connections to the issuer are kept alive."""

from __future__ import annotations

import hmac

import jwt
import urllib3
from flask import Flask, request
from flask.typing import ResponseReturnValue

from bench.peers.given import (
    ALGORITHM,
    AUDIENCE,
    EVER_REVOKED,
    INTROSPECTION_URL,
    ISSUER,
    REVOKED,
    SECRET,
    bearer_token,
)

CREDENTIALS = urllib3.make_headers(basic_auth="bench:" + SECRET)


def create_app() -> Flask:
    """The service."""
    app = Flask(__name__)
    issuer = urllib3.PoolManager(maxsize=64, headers=CREDENTIALS, retries=urllib3.Retry(2, allowed_methods=None))

    @app.get("/me")
    def me() -> ResponseReturnValue:
        token = bearer_token(request.headers.get("Authorization"))
        fields = {"token": token, "token_type_hint": "access_token"}
        found = issuer.request("POST", INTROSPECTION_URL, fields=fields, encode_multipart=False).json()
        if not found["active"]:
            return {"error": "invalid_token"}, 401
        return {"user": found["sub"]}

    return app


def create_issuer() -> Flask:
    """Its endpoint: what is revoked is in its memory, so that no query slows it down."""
    app = Flask(__name__)
    revoked = {REVOKED, *map(str, range(EVER_REVOKED))}

    @app.post("/introspect")
    def introspect() -> ResponseReturnValue:
        if not hmac.compare_digest(request.headers.get("Authorization", ""), CREDENTIALS["authorization"]):
            return {"error": "invalid_client"}, 401
        try:
            claims = jwt.decode(request.form["token"], SECRET, [ALGORITHM], audience=AUDIENCE, issuer=ISSUER)
        except jwt.InvalidTokenError:
            return {"active": False}
        return {"active": False} if claims["jti"] in revoked else {"active": True, **claims}

    return app
