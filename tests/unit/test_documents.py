"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gunicorn import ROOT

NAMED = re.compile(r"`(?:tests/)?([a-z_/]+\.py)::(test_\w+)`")


DOCUMENTS = sorted(path.relative_to(ROOT) for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    for file, test in NAMED.findall((ROOT / document).read_text(encoding="utf-8")):
        path = ROOT / "tests" / file
        assert path.exists() and f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_the_security_page_names_tests() -> None:
    assert len(NAMED.findall((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))) > 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_and_target_that_a_document_names_is_there(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    tops = "|".join(("lastcall", "models", "blueprints", "templates", "static", "tools", "tests", "bench", "docs"))
    files = set(re.findall(rf"`((?:{tops})/[\w/.-]+\.\w+)`", text))
    links = {link for link in re.findall(r"\]\(([\w./-]+\.\w+)(?:#[\w-]+)?\)", text) if "://" not in link}
    missing = {file for file in files if not (ROOT / file).exists()}
    missing |= {link for link in links if not (ROOT / document.parent / link).exists()}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    missing |= {f"make {target}" for target in re.findall(r"`make ([a-z-]+)", text) if target not in targets}
    assert not missing
