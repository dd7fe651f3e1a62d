"""Lastcall, as examples/protect_a_route.py shows it."""

from __future__ import annotations

from flask import Flask
from flask.typing import ResponseReturnValue

from bench.peers.given import AUDIENCE, DATABASE_URL, ISSUER, LIFETIME_S, SECRET
from lastcall import KeyRing
from lastcall.flask import Lastcall, current_claims, require_token


def create_app() -> Flask:
    app = Flask(__name__)
    Lastcall(
        app,
        database_url=DATABASE_URL,
        keys=KeyRing.parse(SECRET),
        issuer=ISSUER,
        audience=AUDIENCE,
        longest_lifetime_s=LIFETIME_S,
        service="bench",
    )

    @app.get("/me")
    @require_token
    def me() -> ResponseReturnValue:
        return {"user": current_claims.sub}

    return app
