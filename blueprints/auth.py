"""Signing in and out, refreshing, the own password: /api/v1/auth."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response

from blueprints.operation import API, answer, operation
from blueprints.problems import not_confirmed
from blueprints.receipts import wait_until_in_force
from blueprints.server import actor, client_of_request, own_id, own_session_id, server
from blueprints.shapes import Me, OwnSession, PasswordChange, Refresh, SignIn, TokensAnswer
from lastcall.flask import check_request, current_claims, require_token
from models import force_logout, own_password, refreshing, sign_in

bp = Blueprint("auth", __name__, url_prefix=API + "/auth")


@bp.post("/login")
@operation("Sign in", body=SignIn, answers={200: TokensAnswer}, problems=(401, 429))
def login(body: SignIn) -> Response:
    tokens = sign_in.sign_in(body.username, body.password, client_of_request(body.client_id), server().settings)
    return answer(TokensAnswer.model_validate(tokens))


@bp.post("/refresh")
@operation("Trade a refresh token for new tokens", body=Refresh, answers={200: TokensAnswer}, problems=(401,))
def refresh(body: Refresh) -> Response:
    try:
        tokens = refreshing.refresh(body.refresh_token, client_of_request(), server().settings)
    except refreshing.RefreshReused as reused:
        wait_until_in_force(reused.receipt.position)
        raise
    return answer(TokensAnswer.model_validate(tokens))


@bp.post("/logout")
@require_token
@operation("Sign out: this session only, at once", answers={204: None}, problems=(404,))
def logout() -> Response:
    who, session_id = actor(current_claims, None), own_session_id(current_claims)
    receipt = force_logout.revoke_session(session_id, who, user_id=own_id(current_claims), cause="logout")
    if not wait_until_in_force(receipt.position):
        return not_confirmed()
    return Response(status=204, headers={"Cache-Control": "no-store"})


@bp.get("/me")
@require_token
@operation("Who am I: the protected resource to try a token on", answers={200: Me})
def me() -> Response:
    """Answered from the token alone: no query."""
    claims = check_request()  # an attribute of current_claims asks for it again and again
    signed_in_at = datetime.fromtimestamp(claims.auth_time, UTC) if claims.auth_time is not None else None
    session = OwnSession(
        session_id=claims.sid,
        client_id=claims.client_id,
        created_at=signed_in_at,
        token_expires_at=datetime.fromtimestamp(claims.exp, UTC),
    )
    return answer(Me(user_id=claims.sub, username=claims.username, roles=list(claims.roles), session=session))


@bp.post("/password")
@require_token
@operation(
    "A new password: every other session ends", body=PasswordChange, answers={200: TokensAnswer}, problems=(404, 429)
)
def password(body: PasswordChange) -> Response:
    own_id(current_claims)
    own_session_id(current_claims)
    tokens, position = own_password.change_password(
        current_claims._get_current_object(),  # type: ignore[attr-defined]
        body.current,
        body.new,
        client_of_request(),
        server().settings,
    )
    if not wait_until_in_force(position):
        return not_confirmed()
    return answer(TokensAnswer.model_validate(tokens))
