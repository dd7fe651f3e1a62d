"""PyJWT alone: signature, lifetime, issuer and audience; whoever was logged out still gets in."""

from __future__ import annotations

import jwt
from flask import Flask, request
from flask.typing import ResponseReturnValue

from bench.peers.given import ALGORITHM, AUDIENCE, ISSUER, SECRET, bearer_token


def create_app() -> Flask:
    app = Flask(__name__)

    @app.get("/me")
    def me() -> ResponseReturnValue:
        token = bearer_token(request.headers.get("Authorization"))
        try:
            claims = jwt.decode(token, SECRET, [ALGORITHM], audience=AUDIENCE, issuer=ISSUER)
        except jwt.InvalidTokenError:
            return {"error": "invalid_token"}, 401
        return {"user": claims["sub"]}

    return app
