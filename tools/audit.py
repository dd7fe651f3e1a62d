"""Known vulnerabilities in the locked packages (pip-audit). Where its service is out of reach, one line says so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LOCK = "requirements-dev.txt"
"""It holds what a run needs as well."""
PATIENCE_S = 180


def main() -> int:
    """1 for a known vulnerability; 0 also where nothing could be asked."""
    found, reason = ask()
    if not any("vulns" in package for package in found):
        tell(f"{LOCK} was not checked, because its service can't be reached from here ({reason})")
        return 0
    unknown = [package["name"] for package in found if "vulns" not in package]
    if unknown:
        tell(f"not checked, because its service does not know them: {', '.join(unknown)}")
    bad = [(package, flaw) for package in found for flaw in package.get("vulns", [])]
    for package, flaw in bad:
        fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
        tell(f"{package['name']} {package['version']} has {flaw['id']}, fixed in {fixed}: {headline(flaw)}")
    return 1 if bad else 0


def ask() -> tuple[list[dict[str, Any]], str]:
    """What pip-audit knows of each package; or nothing, and why."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", LOCK, "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return [], f"no answer within {PATIENCE_S} s"
    try:
        return json.loads(done.stdout)["dependencies"], "it knows none of the packages"
    except ValueError:
        return [], (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]


def headline(flaw: dict[str, Any]) -> str:
    """The first line of its description."""
    return next((line.strip() for line in flaw.get("description", "").splitlines() if line.strip()), "")[:160]


def tell(message: str) -> None:
    print(f"pip-audit: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
