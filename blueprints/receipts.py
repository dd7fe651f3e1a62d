"""Receipts over HTTP: wait for the workers, unless the client prefers not to."""

from __future__ import annotations

from flask import Response, request
from werkzeug.http import parse_list_header

from blueprints.operation import answer
from blueprints.server import server
from blueprints.shapes import ReceiptAnswer, TokensAnswer, WorkersConfirmed
from models.confirmation import PATIENCE_S, confirm
from models.force_logout import Receipt
from models.minting import Tokens


def receipt_response(receipt: Receipt, tokens: Tokens | None = None) -> Response:
    """200 once it is in force everywhere. 202 with `Prefer: respond-async` (RFC 7240), or when a worker has neither
    confirmed nor lost its lease after 10 s: `unconfirmed` names it."""
    rushed = _prefers("respond-async")
    patience_s = 0.0 if rushed else PATIENCE_S
    workers = confirm(receipt.position, server().watch, patience_s=patience_s, since_ns=receipt.started_ns)
    done = workers.in_force and not rushed
    body = ReceiptAnswer(
        revocation_id=receipt.revocation_id,
        scope=receipt.scope,  # type: ignore[arg-type]
        subject=receipt.subject,
        reason=receipt.reason,
        cutoff=receipt.cutoff,
        sessions_ended=receipt.sessions_ended,
        already_ended=receipt.already_ended,
        workers=WorkersConfirmed(
            live=workers.live,
            confirmed=workers.confirmed,
            fenced=workers.fenced,
            elapsed_ms=workers.elapsed_ms,
            unconfirmed=list(workers.unconfirmed),
        ),
        in_force=done,
        tokens=TokensAnswer.model_validate(tokens) if tokens else None,
    )
    return answer(body, 200 if done else 202, {"Preference-Applied": "respond-async"} if rushed else {})


def _prefers(name: str) -> bool:
    """Whether it is among the preferences, each of which may have parameters (RFC 7240, section 2). Several headers
    come as one list (RFC 3875, section 4.1.18)."""
    preferences = parse_list_header(request.headers.get("Prefer", ""))
    return any(preference.partition(";")[0].strip().lower() == name for preference in preferences)


def wait_until_in_force(position: str | None) -> bool:
    """For changes whose answer is no receipt. Returns False when a worker has not confirmed in time."""
    return position is None or confirm(position, server().watch).in_force
