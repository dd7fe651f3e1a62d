"""gunicorn for these tests: a service that checks tokens with the core alone, as README.md tells its owner.

It is examples/protect_a_route.py, and what a test asks each worker of a server for: whether it is ready, who it is.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, current_app
from flask.typing import ResponseReturnValue

from examples import protect_a_route
from lastcall.flask import current_claims, require_token

wsgi_app = "tests.faults.service_conf:create_app()"
bind = f"127.0.0.1:{os.environ['PORT']}"
workers = int(os.environ["WEB_CONCURRENCY"])
worker_class = "gthread"
threads = 8
control_socket_disable = True


def create_app() -> Flask:
    app = protect_a_route.create_app()

    @app.get("/api/v1/auth/me")
    @require_token
    def me() -> ResponseReturnValue:
        return {"username": current_claims.username}

    @app.get("/readyz")
    def ready() -> ResponseReturnValue:
        return "", 200 if current_app.extensions["lastcall"].cutoffs.lease_is_valid() else 503

    @app.get("/metrics")
    def metrics() -> ResponseReturnValue:
        return f'lastcall_rounds_total{{pid="{os.getpid()}"}} 1\n'

    return app


def post_worker_init(worker: Any) -> None:
    worker.app.callable.extensions["lastcall"].listener.ensure_running()


def worker_exit(server: Any, worker: Any) -> None:
    worker.app.callable.extensions["lastcall"].stop()
