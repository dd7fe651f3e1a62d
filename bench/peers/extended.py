"""Flask-JWT-Extended: alone, and with the two blocklists that its documentation shows ("JWT Revoking / Blocklist")."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import redis
from flask import Flask
from flask.typing import ResponseReturnValue
from flask_jwt_extended import JWTManager, get_jwt_identity, jwt_required
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.peers.given import AUDIENCE, DATABASE_URL, ISSUER, REDIS, SECRET


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class TokenBlocklist(db.Model):  # type: ignore[name-defined, misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    jti: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime]


def create_app(blocklist: str = "") -> Flask:
    app = Flask(__name__)
    app.config.update(JWT_SECRET_KEY=SECRET, JWT_DECODE_AUDIENCE=AUDIENCE, JWT_DECODE_ISSUER=ISSUER)
    manager = JWTManager(app)
    if blocklist == "redis":
        _look_in_redis(manager)
    elif blocklist == "sql":
        _look_in_the_database(app, manager)

    @app.get("/me")
    @jwt_required()
    def me() -> ResponseReturnValue:
        return {"user": get_jwt_identity()}

    return app


def _look_in_redis(manager: JWTManager) -> None:
    blocklist = redis.Redis(unix_socket_path=REDIS, decode_responses=True)

    @manager.token_in_blocklist_loader
    def is_revoked(header: dict[str, Any], payload: dict[str, Any]) -> bool:
        return blocklist.get(payload["jti"]) is not None


def _look_in_the_database(app: Flask, manager: JWTManager) -> None:
    # As many connections as there may be threads: nobody waits for one.
    app.config.update(
        SQLALCHEMY_DATABASE_URI=DATABASE_URL.replace("postgresql:", "postgresql+psycopg:"),
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 64, "max_overflow": 0},
    )
    db.init_app(app)

    @manager.token_in_blocklist_loader
    def is_revoked(header: dict[str, Any], payload: dict[str, Any]) -> bool:
        return db.session.query(TokenBlocklist.id).filter_by(jti=payload["jti"]).scalar() is not None
