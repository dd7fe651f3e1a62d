"""`make lint` asks for known vulnerabilities, and goes on where nobody can be asked."""

from __future__ import annotations

from typing import Any

import pytest

from tools import audit

SOUND = {"name": "flask", "version": "3.1.2", "vulns": []}
SKIPPED = {"name": "werkzeug", "skip_reason": "Dependency not found on PyPI"}
FLAW = {"id": "PYSEC-2026-1", "fix_versions": ["3.1.3"], "description": "\nTokens are accepted.\nMore."}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([], 0, "was not checked"),
        ([SKIPPED], 0, "was not checked"),
        ([SOUND], 0, ""),
        ([SOUND, SKIPPED], 0, "does not know them: werkzeug"),
        ([{**SOUND, "vulns": [FLAW]}], 1, "flask 3.1.2 has PYSEC-2026-1, fixed in 3.1.3: Tokens are accepted."),
    ],
)
def test_only_a_vulnerability_that_was_found_fails_the_lint(
    found: list[dict[str, Any]],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "ask", lambda: (found, "offline"))
    assert audit.main() == status
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == (1 if said else 0)
