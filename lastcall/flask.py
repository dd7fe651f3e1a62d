"""The Flask extension: `Lastcall(app)`, `@require_token`, `@require_role("…")`. The only Flask in the core.

lastcall = Lastcall(app, database_url=…, keys=KeyRing.parse(…), issuer="lastcall", audience="lastcall")

@app.get("/invoices")
@require_token
def invoices():
    return f"Hello {current_claims.sub}"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, get_args

from flask import Flask, Request, Response, json, request
from flask.ctx import AppContext
from flask.globals import app_ctx
from werkzeug.local import LocalProxy

from lastcall.ask import Asker
from lastcall.claims import LONGEST_LIFETIME_S, Claims
from lastcall.cutoffs import LEASE_S, Cutoffs, Stale
from lastcall.errors import CutoffsStale, LastcallError, Malformed, Missing, TokenRejected
from lastcall.guard import Guard
from lastcall.listener import CutoffListener
from lastcall.tokens import KeyRing

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

P = ParamSpec("P")
R = TypeVar("R")

# What is behind Flask's proxies, fetched once: an attribute through a proxy takes half as long as a whole check.
_current_context = cast(Callable[[], AppContext], cast(Any, app_ctx)._get_current_object)
_current_request = cast(Callable[[], Request], cast(Any, request)._get_current_object)
_HELD = "lastcall_claims"


class RoleMissing(LastcallError):
    """This needs a role that your account does not have: ask an administrator."""

    code = "forbidden"


class Lastcall:
    """Ties a Flask application to one guard and one listener a process.

    - `database_url`: a direct libpq URL of the primary, for the listener.
    - `ask_url`: the URL to ask on while the lease is out, which may go through a pooler; `database_url` by default.
    - `lease_s`: how long this process may trust its cutoffs without a successful read (seconds). So long a force logout
      waits for it at most, once it is cut off or paused.
    - `longest_lifetime_s`: a token whose `exp - iat` is more (seconds) is refused, whatever it says. No less than the
      server's `longest_lifetime`.
    - `stale`: what a process whose lease is out does: `ask` the database for each request, or `refuse` (503).
    - `service`, `version`: what the list of workers and receipts call this process; they decide nothing.
    - `on_change`: called without arguments in the listener's thread after cutoffs have changed: it must return soon.

    Answers of refused requests are problem details (RFC 9457) unless the application has error handlers of its own for
    LastcallError. Raises ValueError for another `stale`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        database_url: str,
        keys: KeyRing,
        issuer: str,
        audience: str,
        ask_url: str | None = None,
        lease_s: float = LEASE_S,
        longest_lifetime_s: int = LONGEST_LIFETIME_S,
        stale: Stale = "ask",
        service: str = "service",
        version: str = "",
        on_change: Callable[[], None] | None = None,
    ) -> None:
        if stale not in get_args(Stale):
            raise ValueError(f"stale is {stale!r}, and must be one of {', '.join(get_args(Stale))}")
        self.cutoffs = Cutoffs()
        pooled = ask_url not in (None, database_url)
        self.asker = Asker(ask_url or database_url, pooled=pooled) if stale == "ask" else None
        self.guard = Guard(
            keys,
            self.cutoffs,
            issuer=issuer,
            audience=audience,
            longest_lifetime_s=longest_lifetime_s,
            asker=self.asker,
        )
        self.listener = CutoffListener(
            database_url, self.cutoffs, lease_s=lease_s, service=service, version=version, on_change=on_change
        )
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Protect `app`, which then finds this as `app.extensions["lastcall"]`. No thread starts before its first
        request, or `listener.ensure_running()`."""
        app.extensions["lastcall"] = self
        app.wsgi_app = self._listening(app.wsgi_app)  # type: ignore[method-assign, assignment]
        app.register_error_handler(LastcallError, problem_response)

    def stop(self) -> None:
        """Stop the listener in order, so that no force logout waits for this process, and close what it asks on. Before
        the process ends; tolerates a stop without a start."""
        self.listener.stop()
        self.guard.close()

    def _listening(self, wsgi_app: WSGIApplication) -> WSGIApplication:
        """The listener starts with the first request of each process, also after a fork. It is asked for here and not
        in Flask's `before_request`, which would take as long as the check itself."""
        ensure_running = self.listener.ensure_running

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            ensure_running()
            return wsgi_app(environ, start_response)

        return application


def check_request() -> Claims:
    """The claims of the request's bearer token, checked once a request. Raises what `bearer_token` and `Guard.check`
    raise: TokenRejected or CutoffsStale."""
    # On the request itself: `g` belongs to the application's context, which somebody may have pushed before the request
    # came. The next one would be whoever came first
    # (tests/database/test_example.py::test_claims_never_outlive_their_request).
    held = vars(_current_request())
    claims: Claims | None = held.get(_HELD)
    if claims is None:
        lastcall: Lastcall = _current_context().app.extensions["lastcall"]
        claims = held[_HELD] = lastcall.guard.check(bearer_token())
    return claims


def hold_claims(claims: Claims) -> None:
    """Let these count for the rest of the request: claims that `Guard.check` has returned, of a token that came another
    way than in the Authorization header."""
    vars(_current_request())[_HELD] = claims


def held_claims() -> Claims | None:
    """What was checked in this request; None where nothing was, or nothing was good."""
    return vars(_current_request()).get(_HELD)


def bearer_token() -> str:
    """The token of the one Authorization header (RFC 6750, section 2.1). Raises Missing or Malformed."""
    header: str | None = _current_request().environ.get("HTTP_AUTHORIZATION")
    if not header:
        raise Missing
    scheme, space, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Missing
    if not space or not token:
        raise Malformed
    return token


current_claims = cast(Claims, LocalProxy(check_request))
"""The claims of the current request's token. To use it raises what `check_request` raises."""


def require_token(view: Callable[P, R]) -> Callable[P, R]:
    """Let only requests with a good access token through. The view raises what `check_request` raises."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        check_request()
        return view(*args, **kwargs)

    cast(Any, guarded).is_guarded = True
    return guarded


def require_role(role: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let only requests through whose good access token carries `role`. The view raises RoleMissing, or what
    `check_request` raises."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if not check_request().has_role(role):
                raise RoleMissing
            return view(*args, **kwargs)

        cast(Any, guarded).is_guarded = True
        cast(Any, guarded).required_role = role
        return guarded

    return decorate


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """Problem details (RFC 9457); `type` is about:blank, so `title` is the status phrase (section 4.2.1)."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code, **more}
    sent = {"Cache-Control": "no-store", **(headers or {})}
    return Response(json.dumps(body) + "\n", status, sent, content_type="application/problem+json")


def problem_response(error: LastcallError, **more: str) -> Response:
    """The problem that an error of the core is, with the challenge of RFC 6750, section 3."""
    if isinstance(error, TokenRejected):
        why = f'"invalid_token", error_description="{error.code}"'
        if isinstance(error, Missing):
            why = '"invalid_request"'
        status, headers = 401, {"WWW-Authenticate": f'Bearer realm="lastcall", error={why}'}
    elif isinstance(error, RoleMissing):
        status, headers = 403, {}
    else:
        status, headers = 503, {"Retry-After": str(getattr(error, "retry_after_s", CutoffsStale.retry_after_s))}
    return problem(status, error.code, error.detail, headers, **more)
