"""Finds a Chromium for the browser tests, or installs one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowser(Exception):
    """There is no browser and none could be installed. The message says what to do."""


def find_chromium(playwright: Playwright) -> str | None:
    """The path of a Chromium; None means the one that Playwright has installed for itself. Raises NoBrowser."""
    given = os.environ.get("CHROMIUM")
    if given:
        return given
    found = _on_the_path()
    if found or _playwrights_own(playwright):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Chromium from the system's packages …", file=sys.stderr, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(command, env=environment, capture_output=True)
        found = _on_the_path()
        if found:
            return found
    print("Installing Chromium with Playwright …", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], capture_output=True, text=True)
    if done.returncode == 0 and _playwrights_own(playwright):
        return None
    raise NoBrowser(
        "no Chromium was found or could be installed: install one (Debian: apt install chromium) or set CHROMIUM"
    )


def _on_the_path() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


def _playwrights_own(playwright: Playwright) -> bool:
    return Path(playwright.chromium.executable_path).exists()
