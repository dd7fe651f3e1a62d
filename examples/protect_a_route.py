"""A service of your own, with routes that refuse a revoked token at once. It needs the core alone: lastcall[flask].

curl -o keys.json http://127.0.0.1:8000/.well-known/jwks.json
DATABASE_URL=postgresql://invoices:…@db/lastcall python examples/protect_a_route.py

README.md says which rights the role `invoices` needs.
"""

from __future__ import annotations

import os

from flask import Flask
from flask.typing import ResponseReturnValue

from lastcall import KeyRing
from lastcall.flask import Lastcall, current_claims, require_role, require_token


def create_app() -> Flask:
    app = Flask(__name__)
    Lastcall(
        app,
        database_url=os.environ["DATABASE_URL"],
        keys=KeyRing.parse(os.environ.get("LASTCALL_SIGNING_KEY", "./keys.json")),
        issuer=os.environ.get("LASTCALL_ISSUER", "lastcall"),
        audience=os.environ.get("LASTCALL_AUDIENCE", "lastcall"),
        service="invoices",
    )

    @app.get("/invoices")
    @require_token
    def invoices() -> ResponseReturnValue:
        return {"of": current_claims.username, "invoices": []}

    @app.delete("/invoices")
    @require_role("billing")
    def delete_invoices() -> ResponseReturnValue:
        return "", 204

    return app


if __name__ == "__main__":
    app = create_app()
    lastcall: Lastcall = app.extensions["lastcall"]
    # Under gunicorn: in post_worker_init, so that not even the first request gets a 503.
    lastcall.listener.ensure_running()
    try:
        app.run(port=int(os.environ.get("PORT", "5000")))
    finally:
        lastcall.stop()  # under gunicorn: in worker_exit, so that no force logout waits for who has gone
