"""Sessions: one's own (/api/v1/me/sessions) and, for admins, everyone's (/api/v1/admin/sessions)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from flask import Blueprint, Response

from blueprints.operation import API, answer, next_link, operation, unless_known
from blueprints.receipts import receipt_response
from blueprints.server import actor, client_of_request, own_id, server, session_to_keep
from blueprints.shapes import (
    Because,
    Filter,
    KeepCurrent,
    Paging,
    ReceiptAnswer,
    SessionAnswer,
    SessionList,
    SessionQuery,
    SessionsToEnd,
)
from lastcall.errors import DatabaseAway, TokenRejected
from lastcall.flask import current_claims, require_role, require_token
from models import force_logout, refreshing
from models.errors import BadRequest, NotFound, RefreshRejected
from models.session_filter import SessionFilter
from models.session_list import SessionPage, list_sessions
from models.user import ADMIN, was_ever

bp = Blueprint("sessions", __name__, url_prefix=API)

RECEIPT = {200: ReceiptAnswer, 202: ReceiptAnswer}
LIST = {200: SessionList, 304: None}
"""304 where If-None-Match names what is there still."""


def session_filter(given: Filter, state: str = "active") -> SessionFilter:
    """Raises BadRequest for an inverted time range."""
    if given.since is not None and given.until is not None and given.since >= given.until:
        raise BadRequest("Nothing was changed. since: must be before until.")
    return SessionFilter(given.user, given.q, given.role, given.client, given.ip, given.since, given.until, state=state)


def _page(page: SessionPage) -> Response:
    items, here = [], current_claims.sid
    for facts in page.items:
        item = SessionAnswer.model_validate(facts)
        item.current = facts.session_id == here
        items.append(item)
    body = SessionList(items=items, next=page.next, total=page.total, total_is_exact=page.total_is_exact)
    # Who polls, because there is no free event stream, asks with If-None-Match.
    return unless_known(answer(body, headers=next_link(page.next)))


@bp.get("/me/sessions")
@require_token
@operation("One's own active sessions", query=Paging, answers=LIST, problems=(404,))
def list_own(query: Paging) -> Response:
    wanted = SessionFilter(user_id=str(own_id(current_claims)))
    return _page(list_sessions(wanted, limit=query.limit, cursor=query.cursor))


@bp.delete("/me/sessions/<uuid:session_id>")
@require_token
@operation("End one of one's own sessions", body=Because, optional_body=True, answers=RECEIPT, problems=(404,))
def end_own(session_id: UUID, body: Because) -> Response:
    who = actor(current_claims, body.reason)
    return receipt_response(force_logout.revoke_session(session_id, who, user_id=own_id(current_claims)))


@bp.delete("/me/sessions")
@require_token
@operation(
    "End all of one's own sessions, or all but this one",
    body=Because,
    optional_body=True,
    query=KeepCurrent,
    answers=RECEIPT,
    problems=(404,),
)
def end_all_own(body: Because, query: KeepCurrent) -> Response:
    who, user_id = actor(current_claims, body.reason), own_id(current_claims)
    if query.keep_current:
        wanted = SessionFilter(user_id=str(user_id))
        keep = session_to_keep(current_claims)
        receipt = force_logout.revoke_matching(wanted, who, keep_session=keep, cause="own_sessions_ended")
    else:
        receipt = force_logout.revoke_user(user_id, who, cause="own_sessions_ended")
    return receipt_response(receipt)


@bp.get("/admin/sessions")
@require_role(ADMIN)
@operation("Who is signed in", query=SessionQuery, answers=LIST)
def list_all(query: SessionQuery) -> Response:
    wanted = session_filter(query, query.state)
    return _page(list_sessions(wanted, sort=query.sort, limit=query.limit, cursor=query.cursor))


@bp.get("/admin/sessions/<uuid:user_id>")
@require_role(ADMIN)
@operation("One user's sessions", query=SessionQuery, answers=LIST, problems=(404,))
def list_of_user(user_id: UUID, query: SessionQuery) -> Response:
    wanted = replace(session_filter(query, query.state), user_id=str(user_id))
    page = list_sessions(wanted, sort=query.sort, limit=query.limit, cursor=query.cursor)
    if not page.items and not was_ever(user_id):
        raise NotFound("There is no such user, and there never was: look at the list of users.")
    return _page(page)


@bp.delete("/admin/sessions/<uuid:user_id>")
@require_role(ADMIN)
@operation("Force logout of a user", body=Because, optional_body=True, answers=RECEIPT, problems=(404,))
def end_user(user_id: UUID, body: Because) -> Response:
    return receipt_response(force_logout.revoke_user(user_id, actor(current_claims, body.reason)))


@bp.delete("/admin/sessions/<uuid:user_id>/<uuid:session_id>")
@require_role(ADMIN)
@operation("End one session of a user", body=Because, optional_body=True, answers=RECEIPT, problems=(404,))
def end_one(user_id: UUID, session_id: UUID, body: Because) -> Response:
    who = actor(current_claims, body.reason)
    return receipt_response(force_logout.revoke_session(session_id, who, user_id=user_id))


@bp.delete("/admin/sessions")
@require_role(ADMIN)
@operation(
    "Log out everyone; with filters, end just what the list shows",
    body=Because,
    optional_body=True,
    query=SessionsToEnd,
    answers=RECEIPT,
)
def end_all(body: Because, query: SessionsToEnd) -> Response:
    who = actor(current_claims, body.reason)
    keep = session_to_keep(current_claims) if query.keep_current else None
    wanted = session_filter(query)
    if wanted != SessionFilter():
        return receipt_response(force_logout.revoke_matching(wanted, who, keep_session=keep))
    receipt = force_logout.revoke_everyone(who, keep_session=keep)
    tokens = None
    if keep:
        # It is done, and the receipt says so. The refresh token gives new ones as well; or somebody else has logged out
        # everyone since.
        with suppress(DatabaseAway, TokenRejected, RefreshRejected):
            tokens = refreshing.renew(keep, client_of_request(), server().settings)
    return receipt_response(receipt, tokens)
