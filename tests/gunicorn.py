"""Real gunicorn workers for tests: started on a free port, asked over sockets, stopped in order."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gunicorn.app import wsgiapp

from app import prepare_database
from settings import from_environment
from tools.postgres import APP, OWNER

ROOT = Path(__file__).parent.parent
DEADLINE_S = 30.0

# What all of them import takes a second of the processor: it is done once, in a process that they are forks of.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["app", "gunicorn.app.wsgiapp", "tests.gunicorn"])


@dataclass(frozen=True)
class Answer:
    """What a server answered. `json` is None where the body is none."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text) if "json" in self.headers.get("Content-Type", "") else None


class Line:
    """One kept-alive connection: gunicorn's gthread workers serve all its requests in the same worker."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)

    def connect(self) -> None:
        """Open the connection before there is anything to ask."""
        self._connection.connect()

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            body, sent["Content-Type"] = json.dumps(body), "application/json"
        self._connection.request(method, path, body=body, headers=sent)
        response = self._connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())

    def worker_pid(self) -> int:
        found = re.search(r'lastcall_rounds_total\{pid="(\d+)"\}', self.ask("GET", "/metrics").text)
        assert found is not None
        return int(found[1])

    @property
    def raw_socket(self) -> socket.socket:
        """The connection itself, for who speaks HTTP on his own."""
        return self._connection.sock

    def close(self) -> None:
        self._connection.close()


class Gunicorn:
    """Use it as a context manager. `options` are gunicorn's own, such as `--preload`."""

    def __init__(self, workers: int, options: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.workers = workers
        self.port = free_port()
        self.log = log
        self._options = options
        self._lines: list[Line] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LASTCALL_", "COV_"))},
            **environment,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(workers),
        }

    def __enter__(self) -> Gunicorn:
        self.prepare()
        # The processes run with as few rights as schema.sql gives them.
        url = self._environment["DATABASE_URL"].replace(f"//{OWNER}@", f"//{APP}@")
        self._environment["DATABASE_URL"] = url
        self.process = _FORKS.Process(
            target=_run, args=(["--config", "gunicorn.conf.py", *self._options], self._environment, self.log)
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """At once: to stop in order takes seconds, and is what `stop` is for."""
        self._close_lines()
        self._kill()

    def prepare(self) -> None:
        """Apply the schema and make the first admin, as `make run` does before it starts gunicorn."""
        prepare_database(from_environment(self._environment))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Until every worker has read its cutoffs. What they said is shown when they do not get there."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.is_alive():
            try:
                if len(self.lines()) == self.workers:
                    return
            except (OSError, http.client.HTTPException, AssertionError):
                pass
            time.sleep(0.05)  # nothing tells from outside when a worker listens
        raise AssertionError("gunicorn did not get ready:\n" + self.log.read_text()[-3000:])

    def lines(self) -> list[Line]:
        """One connection to each ready worker, as many as there are; closed when gunicorn is stopped."""
        found: dict[int, Line] = {}
        for _ in range(40):
            # A handful at once: one by one, an idle worker may take them all.
            batch = [Line(self.port) for _ in range(2 * self.workers)]
            try:
                for line in batch:
                    line.connect()
                for line in batch:
                    if line.ask("GET", "/readyz").status == 200 and (pid := line.worker_pid()) not in found:
                        found[pid] = line
                        self._lines.append(line)
            finally:
                for line in batch:
                    if line not in found.values():
                        line.close()
            if len(found) == self.workers:
                break
        return list(found.values())

    def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        """One request on a fresh connection: any worker may answer."""
        line = Line(self.port)
        try:
            return line.ask(method, path, **kwargs)
        finally:
            line.close()

    def sign_in(self, username: str, password: str) -> dict[str, Any]:
        answer = self.ask("POST", "/api/v1/auth/login", body={"username": username, "password": password})
        assert answer.status == 200, answer.text
        tokens: dict[str, Any] = answer.json
        return tokens

    def signal(self, number: int) -> None:
        """Send a signal to gunicorn's arbiter (HUP reloads, TTIN adds a worker)."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """In order, as SIGTERM asks for."""
        self._close_lines()
        self.process.terminate()
        self.process.join(DEADLINE_S)
        if self.process.is_alive():
            self._kill()
            raise AssertionError("gunicorn did not stop:\n" + self.log.read_text()[-3000:])

    def _kill(self) -> None:
        self.process.kill()  # it may have no group of its own yet
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()

    def _close_lines(self) -> None:
        while self._lines:
            self._lines.pop().close()


def _run(options: list[str], environment: dict[str, str], log: Path) -> None:
    """`python -m gunicorn`, in a process of its own."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["gunicorn", *options]
    wsgiapp.run()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
