"""The console's Users page: create, roles, disable, new password, delete. What ends sessions says so before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Blueprint, Response, render_template, request
from flask.typing import ResponseReturnValue

from blueprints.console import proof_is_fresh, prove_again, signed_in
from blueprints.console_sessions import done, reason_given, table_of
from blueprints.operation import query_given, read_form
from blueprints.server import actor, server
from blueprints.shapes import NewUser, RolesGiven, UserChange, UserQuery
from lastcall.flask import current_claims
from models import user as users
from models.confirmation import confirm
from models.user import Changed

bp = Blueprint("console_users", __name__, url_prefix="/console/users")


@bp.get("")
@signed_in
def page() -> ResponseReturnValue:
    return render_template("users.html", **users_context())


@bp.get("/table")
@signed_in
def table() -> ResponseReturnValue:
    return table_of("console_users.page", render_template("_users_table.html", **users_context()))


def users_context() -> dict[str, Any]:
    query = read_form(UserQuery, query_given())
    found, cursor = users.list_users(q=query.q, role=query.role, limit=query.limit, cursor=query.cursor)
    kept = query_given("cursor")
    return {
        "query": query,
        "found": found,
        "me": current_claims.sub,
        "first_page": kept,
        "next_page": {**kept, "cursor": cursor} if cursor else None,
    }


@bp.get("/new")
@signed_in
def ask_create() -> ResponseReturnValue:
    return render_template("_create_user_dialog.html", needs_proof=not proof_is_fresh())


@bp.post("")
@signed_in
def create() -> ResponseReturnValue:
    given = read_form(
        NewUser,
        {
            "username": request.form.get("username", "").strip(),
            "password": request.form.get("password", ""),
            "roles": _roles_given(),
        },
    )
    prove_again()
    made = users.create_user(given.username, given.password, given.roles)
    text = "was created and can sign in."
    return done(render_template("_changed.html", name=made.username, text=text, workers=None, ended=0))


@bp.get("/<uuid:user_id>/<any(roles, password, disable, enable, delete):change>")
@signed_in
def ask_change(user_id: UUID, change: str) -> ResponseReturnValue:
    return render_template(
        "_change_user_dialog.html",
        user=users.get_user(user_id),
        change=change,
        is_you=str(user_id) == current_claims.sub,
        needs_proof=not proof_is_fresh(),
        revokes=server().settings.revoke_on_role_removal,
    )


@bp.post("/<uuid:user_id>/roles")
@signed_in
def set_roles(user_id: UUID) -> ResponseReturnValue:
    given = read_form(RolesGiven, {"roles": _roles_given(), "revoke": bool(request.form.get("revoke"))})
    prove_again()
    changed = users.set_roles(
        user_id, given.roles, revoke=bool(given.revoke), actor=actor(current_claims, reason_given())
    )
    held = sorted(set(given.roles))
    return _done(changed, f"has the role{'s' * (len(held) > 1)} {', '.join(held)}." if held else "has no role.")


@bp.post("/<uuid:user_id>/password")
@signed_in
def set_password(user_id: UUID) -> ResponseReturnValue:
    given = read_form(UserChange, {"password": request.form.get("password", "")})
    prove_again()
    return _done(_change(user_id, password=given.password), "has a new password.")


@bp.post("/<uuid:user_id>/disable")
@signed_in
def disable(user_id: UUID) -> ResponseReturnValue:
    return _done(_change(user_id, disabled=True), "is disabled and cannot sign in.")


@bp.post("/<uuid:user_id>/enable")
@signed_in
def enable(user_id: UUID) -> ResponseReturnValue:
    return _done(_change(user_id, disabled=False), "is enabled and can sign in again.")


@bp.post("/<uuid:user_id>/delete")
@signed_in
def delete(user_id: UUID) -> ResponseReturnValue:
    prove_again()
    name = users.get_user(user_id).username
    return _done(users.delete_user(user_id, actor(current_claims, reason_given())), "was deleted.", name)


def _change(user_id: UUID, *, disabled: bool | None = None, password: str | None = None) -> Changed:
    who = actor(current_claims, reason_given())
    return users.change_user(user_id, disabled=disabled, password=password, actor=who)


def _roles_given() -> list[str]:
    return [role for role in request.form.get("roles", "").replace(",", " ").split() if role]


def _done(changed: Changed, text: str, name: str = "") -> Response:
    """`text` goes on after the user's name."""
    workers = confirm(changed.position, server().watch) if changed.position is not None else None
    name = changed.user.username if changed.user is not None else name
    page = render_template("_changed.html", name=name, text=text, workers=workers, ended=changed.sessions_ended)
    return done(page, f"{name} {text}", workers)
