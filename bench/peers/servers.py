"""Starts and stops what is measured: gunicorn in the peers' environment, whatever it serves."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers.environment import ROOT
from tests.gunicorn import free_port
from tools.postgres import dies_with_us

DEADLINE_S = 60.0


@contextmanager
def gunicorn(python: str, app: str, workers: int, environment: dict[str, str], log: Path) -> Iterator[str]:
    """The address of a server of `app`, a factory in bench.peers. Whether it is ready is for `wait_until_good`."""
    port = free_port()
    command = [python, "-m", "gunicorn", "--config", "bench/peers/gunicorn.conf.py", "--workers", str(workers)]
    command += ["--bind", f"127.0.0.1:{port}", f"bench.peers.{app}"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LASTCALL_", "COV_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*dies_with_us("TERM"), *command],
            cwd=ROOT,
            env={**inherited, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: {app} does not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)  # nothing tells when it listens
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def lets_in(url: str, token: str) -> bool:
    """Whether a request on a connection of its own is answered 200."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/" + path, headers={"Authorization": f"Bearer {token}"})
        status = connection.getresponse().status
        if status >= 500 and status != 503:
            raise SystemExit(f"bench: {url} answers {status}")
        return status == 200
    finally:
        connection.close()


def wait_until_good(url: str, token: str) -> None:
    """Until twenty connections in a row, so every worker, let the token in."""
    deadline = time.monotonic() + DEADLINE_S
    while not all(lets_in(url, token) for _ in range(20)):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {url} does not let a good token in")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.connect()
        return True
    except OSError:
        return False
    finally:
        connection.close()
