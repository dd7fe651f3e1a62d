"""The application: the only place where everything meets."""

from __future__ import annotations

from typing import Any

import secure
from flask import Flask, Response, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug.middleware.proxy_fix import ProxyFix

import lastcall
from blueprints import (
    auth,
    console,
    console_pages,
    console_sessions,
    console_users,
    events,
    ops,
    problems,
    revocations,
    sessions,
    users,
    workers,
)
from blueprints.commands import register_commands
from blueprints.server import Server, address_of_request
from lastcall.flask import Lastcall, held_claims
from models import passwords
from models.changes import Changes
from models.database import ENGINE_OPTIONS, ENGINE_URL, apply_schema, db, is_same_database, transaction, use_database
from models.everyone import note_access_ttl
from models.housekeeping import Housekeeper
from models.patience import Patience
from models.seen import Seen
from models.user import ensure_first_admin
from models.worker import SERVER, WorkerWatch
from settings import Settings, SettingsError, settings_of_process

LARGEST_BODY = 64 * 1024
"""Longer bodies are refused before they are read (bytes)."""


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application; no thread starts here, so that it may be built before a fork (gunicorn --preload).

    Without settings they come from the environment; a wrong value there ends the process with one line.
    """
    settings = settings or settings_of_process()
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SQLALCHEMY_DATABASE_URI=ENGINE_URL,
        SQLALCHEMY_ENGINE_OPTIONS=ENGINE_OPTIONS,
        MAX_CONTENT_LENGTH=LARGEST_BODY,
        MAX_FORM_MEMORY_SIZE=LARGEST_BODY,
        SESSION_COOKIE_NAME="__Host-lastcall" if settings.secure_cookies else "lastcall",
        SESSION_COOKIE_SECURE=settings.secure_cookies,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/",
    )
    passwords.configure(time_cost=settings.argon2_time_cost, memory_kib=settings.argon2_memory_kib)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    server = _server(app, settings)
    app.extensions["lastcall_server"] = server
    db.init_app(app)
    use_database(
        app,
        settings.database_url,
        server.patience,
        pooled=settings.listen_url != settings.database_url,
        listener_is_live=server.lastcall.cutoffs.lease_is_valid,
    )
    server.lastcall.init_app(app)
    problems.init_app(app)
    console.init_app(app)
    api = (auth, sessions, revocations, users, workers, events, ops)
    for part in (*api, console, console_sessions, console_users, console_pages):
        app.register_blueprint(part.bp)
    app.add_url_rule("/", "home", lambda: redirect("/console/"))
    register_commands(app, lambda url: create_app(settings_of_process(url)))
    _note_sightings(app, server)
    _add_security_headers(app)
    return app


def prepare_database(settings: Settings) -> str | None:
    """Apply schema.sql and make the first admin where there is none. Returns the password invented for it, or None.
    Raises SettingsError where the listener's URL leads to another database."""
    apply_schema(settings.database_url)
    if not is_same_database(settings.database_url, settings.listen_url):
        raise SettingsError(
            "LASTCALL_LISTEN_URL: leads to another database than DATABASE_URL; both must lead to the same primary"
        )
    with create_app(settings).app_context():
        with transaction():
            note_access_ttl(settings.access_ttl, exactly=True)
        try:
            return ensure_first_admin(settings.admin_username, settings.admin_password)
        finally:
            db.engine.dispose()


def _server(app: Flask, settings: Settings) -> Server:
    changes, seen = Changes(), Seen()
    guarding = Lastcall(
        database_url=settings.listen_url,
        ask_url=settings.database_url,
        keys=settings.keys,
        issuer=settings.issuer,
        audience=settings.audience,
        lease_s=settings.lease,
        longest_lifetime_s=settings.longest_lifetime,
        stale=settings.stale,
        service=SERVER,
        version=lastcall.__version__,
        on_change=lambda: changes.note("revocation"),
    )
    watch = WorkerWatch(lambda: guarding.listener.worker_id if guarding.cutoffs.lease_is_valid() else None)
    housekeeper = Housekeeper(app.app_context, watch, seen, changes)
    patience = Patience(
        lambda: guarding.listener.database_is_silent, lambda: guarding.asker.answered_ns if guarding.asker else 0
    )
    return Server(
        settings=settings,
        lastcall=guarding,
        watch=watch,
        seen=seen,
        changes=changes,
        housekeeper=housekeeper,
        patience=patience,
    )


def _note_sightings(app: Flask, server: Server) -> None:
    """Every accepted token is a sighting of its session; written in batches, never in the request."""

    @app.after_request
    def note(response: Response) -> Response:
        claims = held_claims()
        if claims is not None and claims.sid is not None:
            server.seen.note(claims.sid, address_of_request)
        return response


def _add_security_headers(app: Flask) -> None:
    """Nothing inline, nothing from elsewhere, no frame (OWASP ASVS 5.0, V3.4)."""
    policy = (
        secure.ContentSecurityPolicy()
        .default_src("'self'")
        .img_src("'self'", "data:")
        .object_src("'none'")
        .base_uri("'none'")
        .form_action("'self'")
        .frame_ancestors("'none'")
    )
    headers: dict[str, Any] = dict(
        secure.Secure(
            csp=policy,
            xcto=secure.XContentTypeOptions(),
            xfo=secure.XFrameOptions().deny(),
            referrer=secure.ReferrerPolicy().same_origin(),
            permissions=secure.PermissionsPolicy().camera().geolocation().microphone(),
            coop=secure.CrossOriginOpenerPolicy().same_origin(),
            corp=secure.CrossOriginResourcePolicy().same_origin(),
        ).headers
    )

    @app.after_request
    def protect(response: Response) -> ResponseReturnValue:
        response.headers.extend(headers)  # no view sets any of them
        if request.is_secure:
            response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        return response
