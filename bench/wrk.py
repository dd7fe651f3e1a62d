"""wrk: requests over kept-alive connections, as fast as they are answered. Debian's package wrk has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Load:
    """What was answered: requests a second, and how long they took (milliseconds)."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float


def find(program: str, package: str) -> str:
    """The path of a program. Ends the bench with one line that names its package where there is none."""
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"bench: {program} is missing: apt install {package}")
    return path


def run(url: str, *, seconds: int, token: str = "", tokens: Path | None = None, at: int = 0) -> Load:
    """Ask for `seconds`, with one token, or with those of a file from byte `at` on. Ends the bench when not all of the
    answers are good: their rate would mean nothing."""
    command = [find("wrk", "wrk"), "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]
    command += ["--timeout", "10s", "--latency", "--script", str(Path(__file__).with_suffix(".lua"))]
    command += ["--header", f"Authorization: Bearer {token}", url, "--"]
    command += [str(tokens), str(at)] if tokens is not None else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["refused"] or found["broken"] or not found["requests"]:
        raise SystemExit(f"bench: {url} does not answer every request: {found}")
    rate = found["requests"] / found["us"] * 1e6
    return Load(found["requests"], rate, found["p50_us"] / 1000, found["p99_us"] / 1000)
