"""What an error says, to people and to programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import models.errors  # its errors are among the kinds
from lastcall.errors import LastcallError
from models.database_errors import NotConfirmed, TooSlow


def kinds(of: type[LastcallError] = LastcallError) -> Iterator[type[LastcallError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


WITHOUT_PARTICULARS = {kind for kind in kinds() if kind.__init__ is LastcallError.__init__}


@pytest.mark.parametrize("kind", sorted(WITHOUT_PARTICULARS, key=lambda kind: kind.__name__))
def test_an_error_says_what_happened_in_one_line(kind: type[LastcallError]) -> None:
    """It is a header's value, a row of a table and a line of a terminal."""
    detail = kind().detail
    assert detail == " ".join(detail.split()) and detail.endswith(".")


def test_the_errors_of_all_layers_are_among_them() -> None:
    assert {NotConfirmed, TooSlow, models.errors.NotFound} <= WITHOUT_PARTICULARS
