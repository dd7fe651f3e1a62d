"""The peers' own virtual environment, in .bench/: made when it is missing or its lock has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".bench" / "peers"
LOCK = ROOT / "bench" / "requirements-peers.txt"


def python() -> str:
    """The interpreter of an environment that holds what the lock says. Ends the bench where it cannot be made."""
    path, stamp = FOLDER / "bin" / "python", FOLDER / "set-up"
    wanted = "\n".join((sys.version, str(FOLDER), LOCK.read_text(encoding="utf-8")))
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(FOLDER)])
        install = ["install", "--no-deps", "--require-hashes", "--requirement", str(LOCK)]
        _run([str(path), "-m", "pip", "--quiet", "--no-input", *install])
        stamp.write_text(wanted, encoding="utf-8")
    return str(path)


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason was given"]
        raise SystemExit(f"bench: the peers could not be installed: {lines[-1]}")
