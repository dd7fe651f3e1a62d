"""Strict readers: one spelling for each value, nothing guessed (RFC 8725, section 3). They know nothing of tokens."""

from __future__ import annotations

import base64
import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """Parse JSON (RFC 8259) in UTF-8 without a byte order mark; refuse duplicate names, NaN, lone surrogates and NUL.

    Raises ValueError, also for numbers too long and nesting too deep.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in decoded or "\x00" in decoded:
        _refuse_odd_text(value)
    return value


def read_base64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2); refuse any other spelling of the same bytes.

    Raises ValueError.
    """
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if write_base64url(data) != text:
        raise ValueError("not canonical base64url")
    return data


def write_base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_odd_text(value: Any) -> None:
    """Lone surrogates and NUL can stand in JSON, but in no UTF-8 text and in no PostgreSQL text."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            item.encode("utf-8")
            if "\x00" in item:
                raise ValueError("a NUL character")
        elif isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
