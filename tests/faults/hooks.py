"""Faults that only code can make, inside a worker: a slow listener, a sudden death, a wrong clock.

Nothing of the product knows of it: `faulty_conf.py`, a configuration of gunicorn for these tests, installs it. A test
switches a fault on and off by a file in a folder, so that it can do so while the workers run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FOLDER = "FAULT_HOOKS"
"""The environment variable that names the folder."""


class Hooks:
    """The test's side: switches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def slow_listener(self, pid: int, seconds: float) -> None:
        """Each round of the listener pauses: half before it reads, half between reading a cutoff and applying it."""
        self._set(f"slow-{pid}", str(seconds))

    def stick_the_listener(self, pid: int) -> None:
        """From its next round on the listener stays in a transaction, and reads nothing."""
        self._set(f"stuck-{pid}", "")

    def let_the_listener_go(self, pid: int) -> None:
        (self.folder / f"stuck-{pid}").unlink()

    def die_before_the_receipt(self) -> None:
        """The next worker that has committed a revocation is killed before it says so."""
        self._set("die", "")

    def shift_clock(self, pid: int, seconds: float) -> None:
        self._set(f"clock-{pid}", str(seconds))

    def _set(self, name: str, text: str) -> None:
        draft = self.folder / f".{name}"
        draft.write_text(text)
        draft.rename(self.folder / name)


def install() -> None:
    """The worker's side: put the faults in place, all of them switched off."""
    folder = Path(os.environ[FOLDER])
    _slow_down_the_listener(folder)
    _die_before_the_receipt(folder)
    _shift_the_clock(folder)


def name_the_worker(wsgi: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Let each answer say which worker gave it."""
    pid = str(os.getpid())

    def named(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, ("X-Worker", pid)], *more)

        return wsgi(environ, start)

    return named


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except FileNotFoundError:
        return 0.0


def _slow_down_the_listener(folder: Path) -> None:
    from lastcall.listener import CutoffListener

    path, stuck = folder / f"slow-{os.getpid()}", folder / f"stuck-{os.getpid()}"
    listener: Any = CutoffListener
    read, apply = listener._read, listener._apply
    due = [0.0]

    def slow_read(self: Any, connection: Any) -> Any:
        if stuck.exists():
            connection.execute("BEGIN")
            connection.execute("SELECT 1")
            while stuck.exists():
                time.sleep(0.01)
        due[0] = _number(path) / 2
        time.sleep(due[0])
        return read(self, connection)

    def slow_apply(*args: Any, **kwargs: Any) -> Any:
        if due[0]:  # no sleep of 0 s for each of ten thousand rows: it would let go of the interpreter for each
            pause_s, due[0] = due[0], 0.0
            time.sleep(pause_s)
        return apply(*args, **kwargs)

    listener._read, listener._apply = slow_read, slow_apply


def _die_before_the_receipt(folder: Path) -> None:
    from blueprints import receipts

    patched: Any = receipts
    confirm = patched.confirm

    def confirm_or_die(*args: Any, **kwargs: Any) -> Any:
        try:
            (folder / "die").unlink()
        except FileNotFoundError:
            return confirm(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    patched.confirm = confirm_or_die


def _shift_the_clock(folder: Path) -> None:
    path = folder / f"clock-{os.getpid()}"
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + _number(path)
    time.time_ns = lambda: now_ns() + int(_number(path) * 1e9)
