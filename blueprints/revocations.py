"""Revocations: the general form, and the history: /api/v1/admin/revocations."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from flask import Blueprint, Response

from blueprints.operation import API, answer, next_link, operation
from blueprints.receipts import receipt_response
from blueprints.server import actor
from blueprints.sessions import session_filter
from blueprints.shapes import (
    Filter,
    Paging,
    PreviewAnswer,
    ReceiptAnswer,
    RevocationAnswer,
    RevocationGiven,
    RevocationList,
)
from lastcall.flask import current_claims, require_role
from models import force_logout
from models.audit import Actor
from models.errors import BadRequest, NotFound
from models.force_logout import Receipt
from models.login_session import get_session
from models.revocation import Revocation, list_revocations
from models.session_filter import SessionFilter
from models.user import ADMIN, was_ever

bp = Blueprint("revocations", __name__, url_prefix=API + "/admin/revocations")


@bp.post("")
@require_role(ADMIN)
@operation(
    "Revoke, or see what a revocation would do",
    body=RevocationGiven,
    answers={200: (ReceiptAnswer, PreviewAnswer), 202: ReceiptAnswer},
    problems=(404,),
)
def revoke(body: RevocationGiven) -> Response:
    _check(body)
    if body.dry_run:
        found = force_logout.preview(_wanted(body), current_claims.sid)
        return answer(PreviewAnswer.model_validate(found))
    return receipt_response(_revoke(body, actor(current_claims, body.reason)))


@bp.get("")
@require_role(ADMIN)
@operation("The history, newest first", query=Paging, answers={200: RevocationList})
def history(query: Paging) -> Response:
    rows, cursor = list_revocations(limit=query.limit, cursor=query.cursor)
    return answer(RevocationList(items=[_shown(row) for row in rows], next=cursor), headers=next_link(cursor))


def _check(body: RevocationGiven) -> None:
    """What the scope needs, no more and no less: whatever is too much might have been meant to narrow it."""
    if body.scope in ("user", "session") and (body.subject is None) == (body.filter is None):
        raise BadRequest(f"Nothing was changed. Scope {body.scope} needs either a subject or a filter.")
    if body.scope in ("everyone", "filter") and body.subject is not None:
        raise BadRequest(f"Nothing was changed. Scope {body.scope} takes no subject.")
    if body.scope == "everyone" and body.filter is not None:
        raise BadRequest("Nothing was changed. Scope everyone takes no filter: use scope filter.")
    if body.scope == "filter" and (body.filter is None or body.filter == Filter()):
        raise BadRequest("Nothing was changed. Scope filter needs a filter that is not empty: use scope everyone.")
    if body.filter is not None and body.filter == Filter():
        raise BadRequest("Nothing was changed. The filter is empty: use scope everyone.")
    if body.issued_before is not None and body.issued_before > datetime.now(UTC):
        raise BadRequest("Nothing was changed. issued_before: must not be in the future.")
    if body.subject is not None:
        try:
            subject = UUID(body.subject)
        except ValueError:
            raise BadRequest("Nothing was changed. subject: give the id of a user or a session.") from None
        if not (was_ever(subject) if body.scope == "user" else get_session(subject)):
            raise NotFound(f"Nothing was changed. There is no such {body.scope}, and there never was.")


def _wanted(body: RevocationGiven) -> SessionFilter:
    """The active sessions that the revocation is about."""
    wanted = replace(session_filter(body.filter or Filter()), issued_before=body.issued_before)
    if body.scope == "user" and body.subject:
        wanted = replace(wanted, user_id=body.subject.lower())
    elif body.scope == "session" and body.subject:
        wanted = replace(wanted, session_id=body.subject.lower())
    elif body.scope == "user":
        wanted = replace(wanted, whole_users=True)
    return wanted


def _revoke(body: RevocationGiven, who: Actor) -> Receipt:
    if body.issued_before is not None and body.subject is not None:
        subject, wanted = UUID(body.subject), _wanted(body)
        found = get_session(subject) if body.scope == "session" else None
        name = found.username if found is not None else force_logout.name_of(subject)
        return force_logout.revoke_matching(wanted, who, scope=body.scope, subject=str(subject), subject_name=name)
    if body.issued_before is not None or body.filter is not None:
        if body.scope == "user" and body.issued_before is None:
            return force_logout.revoke_users_matching(session_filter(body.filter or Filter()), who)
        return force_logout.revoke_matching(_wanted(body), who)
    if body.scope == "everyone":
        return force_logout.revoke_everyone(who)
    subject = UUID(body.subject or "")
    if body.scope == "user":
        return force_logout.revoke_user(subject, who)
    return force_logout.revoke_session(subject, who)


def _shown(row: Revocation) -> RevocationAnswer:
    return RevocationAnswer(
        revocation_id=str(row.id),
        created_at=row.created_at,
        scope=row.scope,  # type: ignore[arg-type]
        subject=row.subject,
        subject_name=row.subject_name,
        filter=row.filter,
        reason=row.reason,
        actor_id=row.actor_id,
        actor_name=row.actor_name,
        actor_session=row.actor_session,
        actor_ip=str(row.actor_ip) if row.actor_ip is not None else None,
        trigger=row.cause,
        cutoff=row.cutoff_at,
        sessions_ended=row.sessions_ended,
        expires_at=row.expires_at,
    )
