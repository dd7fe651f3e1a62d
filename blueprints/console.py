"""The console's door: signing in and out, who is behind a cookie, and what keeps other sites out.

The cookie holds a session's tokens, signed and out of reach of scripts: a console sign-in is a session like any
other. Every request goes through the same guard as the API, so a revoked session is out at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit
from uuid import UUID

from flask import Blueprint, Flask, Request, Response, flash, g, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from pydantic import ValidationError

from blueprints import words
from blueprints.events import BEAT, event_stream
from blueprints.problems import problem, public_reason_of
from blueprints.receipts import wait_until_in_force
from blueprints.server import actor, client_of_request, server
from blueprints.shapes import Given, Password, SignIn
from lastcall.claims import Claims
from lastcall.errors import CutoffsStale, DatabaseAway, Expired, LastcallError, Revoked
from lastcall.flask import current_claims, hold_claims
from models import force_logout, own_password, refreshing, sign_in
from models.errors import NotAllowed, Throttled, WrongCredentials
from models.minting import Tokens
from models.refreshing import RefreshReused
from models.user import ADMIN

P = ParamSpec("P")
R = TypeVar("R")

bp = Blueprint("console", __name__, url_prefix="/console")

CLIENT = "console"
PROOF_LASTS_S = 300
"""How long a password that was just given suffices for what needs it again (seconds)."""


class Admin(UserMixin):  # type: ignore[misc]
    """Who is behind the cookie, as Flask-Login wants him."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims

    def get_id(self) -> str:
        return self.claims.sid or ""


class Proof(Given):
    password: Password


class ConsoleCookie(SecureCookieSessionInterface):
    """The cookie is the console's alone: outside of it none is read, and who sets something in `session` there gets an
    error that speaks of a secret key."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        return super().open_session(app, request) if request.path.startswith("/console/") else None


def init_app(app: Flask) -> None:
    app.session_interface = ConsoleCookie()
    manager = LoginManager()
    # Flask-Login's own protection ties a cookie to an address; ours is the guard, and addresses change on the move.
    manager.session_protection = None
    manager.user_loader(_who_is_behind_the_cookie)
    manager.init_app(app)
    app.before_request(_refuse_other_sites)
    app.after_request(_let_nobody_store)
    words.init_app(app)


def signed_in(view: Callable[P, R]) -> Callable[P, R]:
    """Let only admins through whose session's token the guard accepts."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if not current_user.is_authenticated:
            return cast(R, _to_the_door())
        return view(*args, **kwargs)

    cast(Any, guarded).is_guarded = True
    cast(Any, guarded).required_role = ADMIN
    return guarded


@bp.get("/login")
def login() -> ResponseReturnValue:
    if current_user.is_authenticated:
        return redirect(_destination())
    return _door()


@bp.post("/login")
def enter() -> ResponseReturnValue:
    try:
        given = SignIn.model_validate({name: request.form.get(name, "") for name in ("username", "password")})
        tokens = sign_in.sign_in(
            given.username, given.password, client_of_request(CLIENT), server().settings, needed_role=ADMIN
        )
    except ValidationError:
        return _door("Give a user name and a password.", 400)
    except WrongCredentials as error:
        return _door(error.detail, 401)
    except NotAllowed as error:
        return _door(error.detail, 403)
    except Throttled as error:
        return _door(f"{error.detail} Try again in {error.retry_after_s} s.", 429, error.retry_after_s)
    except DatabaseAway as error:
        return _door(error.detail, 503, error.retry_after_s)
    session.clear()  # nothing from before the sign-in goes on (session fixation)
    keep_tokens(tokens)
    session["proved_at"] = int(time.time())
    login_user(Admin(server().lastcall.guard.check(tokens.access_token)))
    return redirect(_destination())


@bp.post("/logout")
@signed_in
def leave() -> ResponseReturnValue:
    claims = current_claims
    who = actor(claims, None)
    receipt = force_logout.revoke_session(UUID(claims.sid), who, user_id=UUID(claims.sub), cause="logout")
    in_force = wait_until_in_force(receipt.position)
    logout_user()
    session.clear()
    flash("Signed out." if in_force else "Signed out; a worker has not confirmed it yet.")
    return redirect(url_for("console.login"))


@bp.get("/events")
@signed_in
def events() -> Response:
    """The tab's stream. It ends with the token; the browser comes back, and is given a fresh one or the door."""
    raw, guard = session["access_token"], server().lastcall.guard
    return event_stream(lambda: guard.check(raw), BEAT)


def keep_tokens(tokens: Tokens) -> None:
    """Let the cookie hold these tokens from now on."""
    session["access_token"], session["refresh_token"] = tokens.access_token, tokens.refresh_token


def proof_is_fresh() -> bool:
    return bool(time.time() - session.get("proved_at", 0) < PROOF_LASTS_S)


def prove_again() -> None:
    """What cannot be undone asks for the password again, unless it was given a moment ago (OWASP ASVS 5.0, V7.5).

    Raises WrongCredentials, Throttled.
    """
    if proof_is_fresh():
        return
    try:
        given = Proof.model_validate({"password": request.form.get("your_password", "")})
    except ValidationError:
        raise WrongCredentials("Give your own password as well, because you signed in a while ago.") from None
    own_password.prove_password(current_claims, given.password, client_of_request(CLIENT))
    session["proved_at"] = int(time.time())


def is_fragment() -> bool:
    """Whether htmx asks, for a part of the page."""
    return request.headers.get("HX-Request") == "true"


def _who_is_behind_the_cookie(_: str) -> Admin | None:
    try:
        claims = _checked_claims()
    except (CutoffsStale, DatabaseAway):
        if g.get("console_is_blind"):  # the page that tells of it asks as well, for its header
            return None
        g.console_is_blind = True
        raise
    except LastcallError as error:
        g.console_session_over = error
        return None
    if not claims.has_role(ADMIN):
        return None
    hold_claims(claims)
    return Admin(claims)


def _checked_claims() -> Claims:
    guard = server().lastcall.guard
    try:
        return guard.check(session.get("access_token"))
    except (Expired, Revoked):
        # Expired, or kept by «log out all users»: whether the session itself still stands, its row says. A refresh
        # token that was used by another tab a moment ago gets the same successor, so tabs do not race.
        try:
            tokens = refreshing.refresh(session.get("refresh_token", ""), client_of_request(CLIENT), server().settings)
        except RefreshReused as reused:
            wait_until_in_force(reused.receipt.position)
            raise
        keep_tokens(tokens)
        return guard.check(tokens.access_token)


def was_signed_out() -> bool:
    """Whether the admin's own token has been revoked by now. False as well while nobody can know."""
    try:
        server().lastcall.guard.check(session.get("access_token"))
    except Revoked:
        return True
    except LastcallError:
        return False
    return False


def _to_the_door() -> Response:
    """To the sign-in page, with the reason why a session is over; htmx is told to go there as a whole page."""
    refuse = partial(problem, 401, "signed_out", "You are signed out: sign in again.")
    if "text/event-stream" in request.headers.get("Accept", ""):  # the page's next look says why
        return refuse()
    over = g.get("console_session_over")
    if isinstance(over, Revoked):
        reason = public_reason_of(over)
        flash("You were signed out" + (f": {reason}" if reason else ". Sign in again to go on."))
    elif over is not None:
        flash("Your session has ended. Sign in again to go on.")
    if is_fragment() and request.method != "GET":
        flash("What you had just asked for was not done.")
    session_flashes = session.get("_flashes")
    session.clear()
    if session_flashes:
        session["_flashes"] = session_flashes
    here = request.full_path.rstrip("?") if request.method == "GET" else None
    if is_fragment():  # back to the page that asked, with its filter
        here = _without_host(request.headers.get("HX-Current-URL", ""))
    door = url_for("console.login", next=here)
    if is_fragment():
        return refuse({"HX-Redirect": door})
    if request.method != "GET":
        return refuse()
    return cast(Response, redirect(door))


def _door(mistake: str | None = None, status: int = 200, retry_after_s: int | None = None) -> Response:
    page = render_template(
        "login.html", mistake=mistake, next=_destination(), username=request.form.get("username", "")
    )
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Response(page, status, headers, content_type="text/html; charset=utf-8")


def _destination() -> str:
    """Where to go after the sign-in: only ever a page of the console, whatever `next` says."""
    wanted, home = request.values.get("next", ""), url_for("console_sessions.page")
    fits = wanted.startswith("/console/") and wanted.isprintable() and "\\" not in wanted
    return wanted if fits else home


def _let_nobody_store(response: Response) -> Response:
    """Pages show sessions, and any answer may renew the cookie, which holds tokens."""
    if request.path.startswith("/console"):
        response.headers["Cache-Control"] = "no-store"
    return response


def _without_host(url: str) -> str | None:
    try:
        return urlsplit(url)._replace(scheme="", netloc="").geturl() or None
    except ValueError:
        return None


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _refuse_other_sites() -> Response | None:
    """Every browser says where a request comes from (W3C Fetch Metadata, RFC 6454, or at least RFC 9110, section
    10.1.3): another site's is refused."""
    if request.method in ("GET", "HEAD", "OPTIONS") or not request.path.startswith("/console"):
        return None
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin") or request.headers.get("Referer")
    if site in ("same-origin", "none"):
        return None
    if site is None and (origin is None or _host_of(origin) == request.host):
        return None
    return problem(
        403, "cross_site", "The request came from another site, so nothing was done: use the console itself."
    )
