"""Cursors: good for one list with one set of filters, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from models.cursor import read_cursor, write_cursor
from models.errors import BadCursor

CONTEXT: dict[str, Any] = {"list": "sessions", "q": "ann", "sort": "-created_at", "ip": None}
POSITION = ["2026-11-24T10:00:00.123456+00:00", "00000000-0000-0000-0000-000000000001"]


@pytest.fixture(autouse=True)
def server() -> Iterator[Flask]:
    app = Flask("cursors")
    app.secret_key = "the secret of these tests"
    with app.app_context():
        yield app


def test_a_cursor_comes_back_as_its_position() -> None:
    assert read_cursor(write_cursor(POSITION, CONTEXT), CONTEXT, 2) == POSITION


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_any_position_comes_back(position: list[str]) -> None:
    assert read_cursor(write_cursor(position, CONTEXT), CONTEXT, len(position)) == position


def test_the_order_of_the_filters_does_not_matter() -> None:
    assert read_cursor(write_cursor(POSITION, CONTEXT), dict(reversed(CONTEXT.items())), 2) == POSITION


@pytest.mark.parametrize(
    "other",
    [
        CONTEXT | {"list": "users"},
        CONTEXT | {"q": "bob"},
        CONTEXT | {"sort": "created_at"},
        CONTEXT | {"ip": "192.0.2.1"},
        {},
    ],
    ids=str,
)
def test_another_lists_cursor_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(BadCursor):
        read_cursor(write_cursor(POSITION, other), CONTEXT, 2)


def test_a_cursor_of_another_length_is_refused() -> None:
    with pytest.raises(BadCursor):
        read_cursor(write_cursor(POSITION, CONTEXT), CONTEXT, 3)


def test_a_cursor_of_another_server_is_refused(server: Flask) -> None:
    cursor = write_cursor(POSITION, CONTEXT)
    server.secret_key = "another secret"
    with pytest.raises(BadCursor):
        read_cursor(cursor, CONTEXT, 2)


def test_a_cursor_that_was_cut_short_is_refused() -> None:
    cursor = write_cursor(POSITION, CONTEXT)
    for length in range(len(cursor)):
        with pytest.raises(BadCursor):
            read_cursor(cursor[:length], CONTEXT, 2)


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text("Aa0-_.=")))
def test_any_invented_text_is_a_bad_cursor(text: str) -> None:
    with pytest.raises(BadCursor):
        read_cursor(text, CONTEXT, 2)


@given(st.integers(0, 10**6), st.sampled_from("Aa0-_.=+/ é\x00"))
def test_a_cursor_with_a_letter_changed_is_refused(place: int, letter: str) -> None:
    cursor = write_cursor(POSITION, CONTEXT)
    place %= cursor.rindex(".")
    forged = cursor[:place] + letter + cursor[place + 1 :]
    if forged != cursor:
        with pytest.raises(BadCursor):
            read_cursor(forged, CONTEXT, 2)
