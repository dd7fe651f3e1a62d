"""Cursors of lists: where the next page begins, signed, and good for this list with these filters only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

from flask import current_app
from itsdangerous import BadData, URLSafeSerializer

from models.errors import BadCursor


def write_cursor(position: Sequence[str], context: dict[str, Any]) -> str:
    return str(_serializer(context).dumps(list(position)))


def read_cursor(cursor: str, context: dict[str, Any], parts: int) -> list[str]:
    """The position in a cursor. Raises BadCursor for one that is forged, cut short, or another list's."""
    try:
        position = _serializer(context).loads(cursor)
    except BadData:
        raise BadCursor from None
    if not isinstance(position, list) or len(position) != parts:
        raise BadCursor
    return position


def _serializer(context: dict[str, Any]) -> URLSafeSerializer:
    text = json.dumps(context, sort_keys=True, default=str)
    return URLSafeSerializer(
        cast(str, current_app.secret_key),
        salt="cursor " + text,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
