"""Users and their roles: /api/v1/admin/users. What ends sessions here answers once it is in force everywhere."""

from __future__ import annotations

from uuid import UUID

from flask import Blueprint, Response

from blueprints.operation import API, answer, next_link, operation
from blueprints.problems import not_confirmed
from blueprints.receipts import wait_until_in_force
from blueprints.server import actor, server
from blueprints.shapes import Because, NewUser, RolesGiven, UserAnswer, UserChange, UserList, UserQuery
from lastcall.flask import current_claims, require_role
from models import user as users
from models.errors import BadRequest
from models.user import ADMIN, Changed

bp = Blueprint("users", __name__, url_prefix=API + "/admin/users")


@bp.get("")
@require_role(ADMIN)
@operation("Users by name", query=UserQuery, answers={200: UserList})
def list_users(query: UserQuery) -> Response:
    found, cursor = users.list_users(q=query.q, role=query.role, limit=query.limit, cursor=query.cursor)
    body = UserList(items=[UserAnswer.model_validate(facts) for facts in found], next=cursor)
    return answer(body, headers=next_link(cursor))


@bp.post("")
@require_role(ADMIN)
@operation("Create a user", body=NewUser, answers={201: UserAnswer}, problems=(409,))
def create_user(body: NewUser) -> Response:
    facts = users.create_user(body.username, body.password, body.roles)
    return answer(UserAnswer.model_validate(facts), 201, {"Location": f"{API}/admin/users/{facts.user_id}"})


@bp.get("/<uuid:user_id>")
@require_role(ADMIN)
@operation("One user", answers={200: UserAnswer}, problems=(404,))
def get_user(user_id: UUID) -> Response:
    return answer(UserAnswer.model_validate(users.get_user(user_id)))


@bp.patch("/<uuid:user_id>")
@require_role(ADMIN)
@operation(
    "Disable or enable a user, or give a new password: the sessions end",
    body=UserChange,
    answers={200: UserAnswer},
    problems=(404, 409),
)
def change_user(user_id: UUID, body: UserChange) -> Response:
    if body.disabled is None and body.password is None:
        raise BadRequest("Nothing was changed. Give disabled, password or both.")
    changed = users.change_user(
        user_id, disabled=body.disabled, password=body.password, actor=actor(current_claims, body.reason)
    )
    return _changed(changed)


@bp.delete("/<uuid:user_id>")
@require_role(ADMIN)
@operation(
    "Delete a user: the sessions end", body=Because, optional_body=True, answers={204: None}, problems=(404, 409)
)
def delete_user(user_id: UUID, body: Because) -> Response:
    changed = users.delete_user(user_id, actor(current_claims, body.reason))
    if not wait_until_in_force(changed.position):
        return not_confirmed()
    return Response(status=204, headers={"Cache-Control": "no-store"})


@bp.put("/<uuid:user_id>/roles")
@require_role(ADMIN)
@operation(
    "Replace a user's roles; a lost one ends the sessions unless revoke is false",
    body=RolesGiven,
    answers={200: UserAnswer},
    problems=(404, 409),
)
def replace_roles(user_id: UUID, body: RolesGiven) -> Response:
    revoke = server().settings.revoke_on_role_removal if body.revoke is None else body.revoke
    changed = users.set_roles(user_id, body.roles, revoke=revoke, actor=actor(current_claims, body.reason))
    return _changed(changed)


def _changed(changed: Changed) -> Response:
    if not wait_until_in_force(changed.position):
        return not_confirmed()
    return answer(UserAnswer.model_validate(changed.user))
