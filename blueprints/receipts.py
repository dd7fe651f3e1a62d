"""Receipts over HTTP: wait for the workers, unless the client prefers not to."""

from __future__ import annotations

from flask import Response, request

from blueprints.operation import answer
from blueprints.server import server
from blueprints.shapes import ReceiptAnswer, TokensAnswer, WorkersConfirmed
from models.confirmation import PATIENCE_S, confirm
from models.force_logout import Receipt
from models.minting import Tokens


def receipt_response(receipt: Receipt, tokens: Tokens | None = None) -> Response:
    """200 once it is in force everywhere. 202 with `Prefer: respond-async` (RFC 7240), or when a worker has neither
    confirmed nor lost its lease after 10 s: `unconfirmed` names it."""
    rushed = "respond-async" in [part.strip().lower() for part in request.headers.get("Prefer", "").split(",")]
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


def wait_until_in_force(position: str | None) -> bool:
    """For changes whose answer is no receipt. Returns False when a worker has not confirmed in time."""
    return position is None or confirm(position, server().watch).in_force
