"""Bare Flask: nobody is asked who he is. All others are measured by it."""

from __future__ import annotations

from flask import Flask
from flask.typing import ResponseReturnValue

from bench.peers.given import USER


def create_app() -> Flask:
    app = Flask(__name__)

    @app.get("/me")
    def me() -> ResponseReturnValue:
        return {"user": USER}

    return app
