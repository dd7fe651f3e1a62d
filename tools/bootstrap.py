"""Set-up from nothing but Python: the virtual environment, the locked packages, the browser's files.

    python3 tools/bootstrap.py          what `make run` needs
    python3 tools/bootstrap.py --dev    what tests and checks need as well

It does only what is missing: a stamp in .venv holds the hash of everything that decides what belongs there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST:
        fail(f"Python {sys.version.split()[0]} is too old; install 3.11 or later, or name one: make PYTHON=python3.12")
    dev = "--dev" in sys.argv[1:]
    stamp, wanted = VENV / "set-up", _wanted(dev=dev)
    have = stamp.read_text(encoding="utf-8").split() if stamp.is_file() else []
    if wanted in have and PYTHON.exists():
        return
    if not _is_whole():
        _make_venv()
    stamp.unlink(missing_ok=True)
    requirements = "requirements-dev.txt" if dev else "requirements.txt"
    # The lock names everything. Left to look for what a package needs, pip 23 takes the newest one for an extra
    # (coverage[toml]), whatever is pinned, and then refuses it: a new machine could not be set up any more.
    install = ("install", "--no-deps", "--require-hashes")
    _pip(*install, "--requirement", requirements, saying="Installing the locked packages")
    _fetch_assets()
    # What tests need holds all that a run needs.
    stamp.write_text("\n".join({wanted, _wanted(dev=False)}) + "\n", encoding="utf-8")


def fail(message: str) -> None:
    """One line that says what to do, and a status that stops make."""
    sys.exit(f"lastcall: {message}")


def _wanted(*, dev: bool) -> str:
    parts = [sys.version, str(VENV), str(dev)]
    names = ["requirements.txt", "requirements-assets.txt", "tools/bootstrap.py", "tools/assets.py"]
    for name in [*names, *(["requirements-dev.txt"] if dev else [])]:
        parts.append((ROOT / name).read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _is_whole() -> bool:
    """Whether there is a virtual environment of this very Python, here, with a pip that works."""
    if not PYTHON.exists():
        return False
    probe = "import sys, pip; print(sys.version); print(sys.prefix)"
    found = subprocess.run([str(PYTHON), "-c", probe], capture_output=True, text=True)
    return found.returncode == 0 and found.stdout.strip() == f"{sys.version}\n{VENV}"


def _make_venv() -> None:
    _say("Making the virtual environment .venv")
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in made.stdout + made.stderr:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            fail(
                f"this Python cannot make virtual environments; on Debian: apt install python{version}-venv, then again"
            )
        fail(f"the virtual environment could not be made: {_last_line(made.stderr or made.stdout)}")


def _pip(*arguments: str, saying: str) -> None:
    _say(saying)
    command = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        if "gcc" in done.stderr or "compiler" in done.stderr:
            fail("a package has no wheel for this machine, and no C compiler here; Debian: apt install build-essential")
        fail(f"packages could not be installed: {_last_line(done.stderr)}; is the package index reachable? Try again")


def _fetch_assets() -> None:
    wheels = VENV / "asset-wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    download = ("download", "--no-deps", "--only-binary", ":all:", "--require-hashes")
    _pip(
        *download,
        "--requirement",
        "requirements-assets.txt",
        "--dest",
        str(wheels),
        saying="Fetching htmx and Bootstrap",
    )
    unpacked = subprocess.run(
        [str(PYTHON), "-m", "tools.assets", str(wheels)], cwd=ROOT, capture_output=True, text=True
    )
    if unpacked.returncode != 0:
        fail(_last_line(unpacked.stderr))
    shutil.rmtree(wheels, ignore_errors=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no reason was given"])[-1].removeprefix("ERROR: ")[:300]


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; run it again to go on")
