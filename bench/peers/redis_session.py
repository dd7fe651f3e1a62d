"""No JWT at all: the token is the id of a session in Redis. One GET a request; its lifetime is not even prolonged."""

from __future__ import annotations

import json

import redis
from flask import Flask, request
from flask.typing import ResponseReturnValue

from bench.peers.given import REDIS, bearer_token


def create_app() -> Flask:
    app = Flask(__name__)
    sessions = redis.Redis(unix_socket_path=REDIS, decode_responses=True)

    @app.get("/me")
    def me() -> ResponseReturnValue:
        held = sessions.get("session:" + bearer_token(request.headers.get("Authorization")))
        if held is None:
            return {"error": "invalid_token"}, 401
        return {"user": json.loads(held)["sub"]}

    return app
