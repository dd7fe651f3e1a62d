"""`make run` itself: it starts, stops in order and starts again with its data; what is killed under it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.conftest import FAST_ENVIRONMENT, PASSWORD
from tests.gunicorn import DEADLINE_S, ROOT, Answer, Line, free_port
from tests.workers.people import API, ME

WORKERS = 2


class Run:
    """`python -m tools.run` on a data folder of its own. `output` is the file that it writes to."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.data_dir = folder / "instance"
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.run"],
                cwd=ROOT,
                env={
                    **FAST_ENVIRONMENT,
                    "PATH": os.environ["PATH"],
                    "LASTCALL_DATA_DIR": str(self.data_dir),
                    "PORT": str(self.port),
                    "WEB_CONCURRENCY": str(WORKERS),
                },
                stdout=output,
                stderr=output,
            )

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError, HTTPException):
                if holds():
                    return
            time.sleep(0.05)  # nothing tells from outside
        raise AssertionError(self.text)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def ask(self, method: str, path: str, token: str | None = None, body: object = None) -> Answer:
        line = Line(self.port)
        try:
            return line.ask(method, path, token=token, body=body)
        finally:
            line.close()

    def try_to_sign_in(self) -> Answer:
        return self.ask("POST", f"{API}/auth/login", body={"username": "admin", "password": PASSWORD})

    def sign_in(self) -> dict[str, str]:
        answer = self.try_to_sign_in()
        assert answer.status == 200, answer.text
        tokens: dict[str, str] = answer.json
        return tokens

    def is_good(self, tokens: dict[str, str]) -> bool:
        return self.ask("GET", ME, tokens["access_token"]).status == 200

    def end(self, tokens: dict[str, str], *, by: dict[str, str]) -> Answer:
        path = f"{API}/admin/sessions/{tokens['user_id']}/{tokens['session_id']}"
        return self.ask("DELETE", path, by["access_token"])

    def postgres_pid(self) -> int:
        return int((self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE_S)


@contextmanager
def running(folder: Path) -> Iterator[Run]:
    run = Run(folder)
    try:
        run.wait_until(lambda: "Lastcall is running" in run.text)
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


@pytest.mark.timeout(120)
def test_it_keeps_who_is_signed_in_and_who_is_out_whatever_is_stopped_or_killed(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        staying, leaving = run.sign_in(), run.sign_in()
        ended = run.end(leaving, by=staying)
        assert ended.status == 200, ended.text
        assert (ended.json["workers"]["live"], ended.json["in_force"]) == (WORKERS, True), ended.text
        postgres = run.postgres_pid()
        assert run.stop() == 0
        assert "The data are kept." in run.text
        with pytest.raises(ProcessLookupError):
            os.kill(postgres, 0)

    def remembers(run: Run) -> bool:
        refused = run.ask("GET", ME, leaving["access_token"])
        assert refused.status in (401, 503), "accepted again"
        return run.is_good(staying) and (refused.status, refused.json["code"]) == (401, "token_revoked")

    with running(tmp_path) as run:
        run.wait_until(lambda: remembers(run))
        killed = run.postgres_pid()
        os.kill(killed, signal.SIGKILL)
        run.wait_until(lambda: "PostgreSQL is back" in run.text)
        assert run.postgres_pid() != killed
        run.wait_until(lambda: run.try_to_sign_in().status == 200 and remembers(run))
        run.process.kill()  # takes all of it along: the next one has the folder for itself
    with running(tmp_path) as run:
        run.wait_until(lambda: remembers(run))
