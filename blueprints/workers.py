"""Workers and settings: which processes check tokens, and what the lifetimes mean: /api/v1/admin."""

from __future__ import annotations

from flask import Blueprint, Response

from blueprints.operation import API, answer, next_link, operation
from blueprints.server import server
from blueprints.shapes import Paging, SettingsAnswer, WorkerAnswer, WorkerList
from lastcall.flask import require_role
from models.user import ADMIN
from models.worker import observed_workers, page_of

bp = Blueprint("workers", __name__, url_prefix=API + "/admin")


@bp.get("/workers")
@require_role(ADMIN)
@operation("Every process that checks tokens", query=Paging, answers={200: WorkerList})
def list_all(query: Paging) -> Response:
    here = server().lastcall.listener.worker_id
    found, cursor = page_of(observed_workers(server().watch), limit=query.limit, cursor=query.cursor)
    items = [WorkerAnswer.model_validate(facts) for facts in found]
    for item in items:
        item.this_one = item.id == here
    return answer(WorkerList(items=items, next=cursor), headers=next_link(cursor))


@bp.get("/settings")
@require_role(ADMIN)
@operation("The lifetimes in force, and what they mean", answers={200: SettingsAnswer})
def show_settings() -> Response:
    settings = server().settings
    body = SettingsAnswer(
        access_ttl=settings.access_ttl,
        refresh_ttl=settings.refresh_ttl,
        session_max_age=settings.session_max_age,
        longest_lifetime=settings.longest_lifetime,
        lease=settings.lease,
        stale=settings.stale,
        revoke_on_role_removal=settings.revoke_on_role_removal,
        algorithm=settings.keys.signing_key.alg,
        window=(
            "After a force logout has returned: 0 s, on every worker. A worker that is cut off trusts its memory for"
            f" {settings.lease:g} s at most. A service that checks only the signature would accept a stolen access"
            f" token for up to {settings.access_ttl} s more."
        ),
    )
    return answer(body)
