"""The console's Sessions page: who is signed in, live, and the buttons that sign people out."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from flask import Blueprint, Response, flash, make_response, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from blueprints.console import proof_is_fresh, prove_again, signed_in, was_signed_out
from blueprints.operation import query_given, read_form, unless_known
from blueprints.server import actor, server, session_to_keep
from blueprints.sessions import session_filter
from blueprints.shapes import Because, Filter, SessionQuery
from blueprints.words import count, in_force, moment
from lastcall.flask import current_claims
from models import force_logout
from models.confirmation import Confirmation
from models.errors import BadRequest, NotFound
from models.force_logout import Receipt
from models.session_filter import SessionFilter
from models.session_list import STATES, list_sessions

bp = Blueprint("console_sessions", __name__, url_prefix="/console")

PHRASE = "log out all users"


@bp.get("/")
@signed_in
def page() -> ResponseReturnValue:
    return render_template("sessions.html", **sessions_context())


@bp.get("/sessions")
@signed_in
def table() -> ResponseReturnValue:
    return table_of("console_sessions.page", render_template("_sessions_table.html", **sessions_context()))


def table_of(page: str, fragment: str) -> Response:
    """The table alone. The address bar follows the filter, so that a reload, «back» and a shared link show the same.
    A look is answered by 304 while nothing changes: static/console.js."""
    response = unless_known(make_response(fragment))
    response.headers["HX-Replace-Url"] = url_for(page, **query_given())
    return response


def sessions_context() -> dict[str, Any]:
    """What the page and its table show."""
    query = read_form(SessionQuery, query_given())
    found = list_sessions(session_filter(query, query.state), sort=query.sort, limit=query.limit, cursor=query.cursor)
    kept = query_given("cursor")
    return {
        "query": query,
        "found": found,
        "states": STATES,
        "here": current_claims.sid,
        "first_page": kept,
        "next_page": {**kept, "cursor": found.next} if found.next else None,
        "is_narrowed": session_filter(query) != SessionFilter(),
        "unseen": [part for part in _parts(query) if part.name in _WITHOUT_FIELD],
        "query_but": partial(query_given, "cursor"),
    }


@bp.get("/sessions/<uuid:user_id>/logout")
@signed_in
def ask_force_logout(user_id: UUID) -> ResponseReturnValue:
    would = force_logout.preview(SessionFilter(user_id=str(user_id)), current_claims.sid)
    name = force_logout.name_of(user_id)
    return render_template("_force_logout_dialog.html", user_id=user_id, username=name, would=would)


@bp.post("/sessions/<uuid:user_id>/logout")
@signed_in
def end_user(user_id: UUID) -> ResponseReturnValue:
    receipt = force_logout.revoke_user(user_id, actor(current_claims, reason_given()))
    return _receipt_fragment(receipt)


@bp.post("/sessions/<uuid:user_id>/<uuid:session_id>/end")
@signed_in
def end_one(user_id: UUID, session_id: UUID) -> ResponseReturnValue:
    who = actor(current_claims, reason_given())
    receipt = force_logout.revoke_session(session_id, who, user_id=user_id)
    return _receipt_fragment(receipt)


@bp.get("/everyone/logout")
@signed_in
def ask_log_out_all() -> ResponseReturnValue:
    would = force_logout.preview(SessionFilter(), current_claims.sid)
    return render_template("_log_out_all_dialog.html", would=would, phrase=PHRASE, needs_proof=not proof_is_fresh())


@bp.post("/everyone/logout")
@signed_in
def end_all() -> ResponseReturnValue:
    if request.form.get("phrase", "").strip() != PHRASE:
        raise BadRequest(f"Nothing was changed: type «{PHRASE}» to confirm.")
    prove_again()
    keep = session_to_keep(current_claims) if request.form.get("keep_me") else None
    receipt = force_logout.revoke_everyone(actor(current_claims, reason_given()), keep_session=keep)
    # Whoever is kept goes on by his refresh token, in every tab: blueprints/console.py.
    return _receipt_fragment(receipt, kept=keep is not None)


@bp.get("/shown/logout")
@signed_in
def ask_end_shown() -> ResponseReturnValue:
    query = _shown()
    would = force_logout.preview(session_filter(query), current_claims.sid)
    return render_template(
        "_end_shown_dialog.html",
        would=would,
        asked=_parts(query),
        needs_proof=not proof_is_fresh(),
        most_at_once=force_logout.AT_ONCE,
    )


@bp.post("/shown/logout")
@signed_in
def end_shown() -> ResponseReturnValue:
    wanted = session_filter(_shown())
    prove_again()  # a wide filter is everyone
    keep = session_to_keep(current_claims) if request.form.get("keep_me") else None
    receipt = force_logout.revoke_matching(wanted, actor(current_claims, reason_given()), keep_session=keep)
    return _receipt_fragment(receipt, kept=keep is not None)


def reason_given() -> str | None:
    """The reason that was typed into the dialog, if any."""
    return read_form(Because, {"reason": request.form.get("reason", "").strip() or None}).reason


def _receipt_fragment(receipt: Receipt, *, kept: bool = False) -> Response:
    """The receipt for the status region, once it is in force. `kept`: not for the admin's own session."""
    receipt = force_logout.confirmed(receipt, server().watch)
    ended = f"{count(receipt.sessions_ended, 'session')} ended."
    return done(render_template("_receipt.html", receipt=receipt), ended, None if kept else receipt.workers)


def done(status: str, text: str = "", workers: Confirmation | None = None) -> Response:
    """A text for the status region; the dialog closes, and the tables look again. Who has signed himself out by it is
    led to the door, where `text` says what was done, and `workers` prove it."""
    if workers is not None and was_signed_out():
        session.clear()
        flash(f"{in_force(workers)}. {text} You are signed out as well.")
        return Response(status=204, headers={"HX-Redirect": url_for("console.login")})
    return Response(status, headers={"HX-Trigger": "lastcall:done"}, content_type="text/html; charset=utf-8")


def _shown() -> SessionQuery:
    """The filter that the list shows. Raises BadRequest when it is none: that would be everyone."""
    given = {name: value for name, value in request.values.items() if value and name in _FILTERS}
    query = read_form(SessionQuery, given)
    if session_filter(query) == SessionFilter():
        raise BadRequest("Nothing was changed. There is no filter: use «Log out all users».")
    return query


class Part(NamedTuple):
    """One part of the filter: the field's name, what is sent, and what people read."""

    name: str
    value: str
    text: str


def _parts(query: SessionQuery) -> list[Part]:
    given = query.model_dump(mode="json", include=set(_FILTERS), exclude_none=True)
    return [Part(name, given[name], _as_read(query, name)) for name in _FILTERS if name in given]


def _as_read(query: SessionQuery, name: str) -> str:
    value = getattr(query, name)
    if isinstance(value, datetime):
        return moment(value)
    if name == "user":
        with suppress(ValueError, NotFound):  # a name, or the id of nobody: as it was given
            return force_logout.name_of(UUID(value))
    return str(value)


_FILTERS = tuple(Filter.model_fields)
_WITHOUT_FIELD = ("user", "since", "until")
