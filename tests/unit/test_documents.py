"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gunicorn import ROOT

NAMED = re.compile(r"`(?:tests/)?([a-z_/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("document", sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/**/*.md")), ids=str)
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    for file, test in NAMED.findall((ROOT / document).read_text(encoding="utf-8")):
        path = ROOT / "tests" / file
        assert path.exists() and f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_the_security_page_names_tests() -> None:
    assert len(NAMED.findall((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))) > 50
