"""Guarded requests on kept-alive connections to every worker, from a process of its own; it says how long each took.

python -m bench.load PORT WORKERS CONNECTIONS_A_WORKER REQUESTS_A_SECOND

It reads the token from its input and goes on until that ends. The rate is of each connection; 0: as fast as answers
come.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from tests.gunicorn import ROOT, Gunicorn, Line

PATH = "/api/v1/auth/me"


class Load:
    """The load while it is on; `took_ms` has the latencies once it is over."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []


@contextmanager
def load(gunicorn: Gunicorn, token: str, *, connections: int = 1, rate: float = 0.0) -> Iterator[Load]:
    """Put load on all workers, until the block ends."""
    words = [str(word) for word in (gunicorn.port, gunicorn.workers, connections, rate)]
    process = Popen([sys.executable, "-m", "bench.load", *words], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    found = Load()
    try:
        process.stdin.write(f"{token}\n")
        process.stdin.flush()
        if process.stdout.readline() != "on\n":
            raise SystemExit("bench: the load did not start")
        yield found
    finally:
        found.took_ms = json.loads(process.communicate()[0] or "[]")


def main() -> None:
    port, workers, connections = (int(word) for word in sys.argv[1:4])
    rate = float(sys.argv[4])
    token = sys.stdin.readline().strip()
    gunicorn = Gunicorn(workers, (), dict(os.environ), Path(os.devnull))
    gunicorn.port = port
    lines = [line for _ in range(connections) for line in gunicorn.lines()]
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("on", flush=True)
    print(json.dumps(asyncio.run(ask_on_all(lines, token, rate, over))))


async def ask_on_all(lines: list[Line], token: str, rate: float, over: threading.Event) -> list[float]:
    took_ms: list[float] = []
    await asyncio.gather(*(ask_on(line.raw_socket, token, rate, over, took_ms) for line in lines))
    return took_ms


async def ask_on(
    connection: socket.socket, token: str, rate: float, over: threading.Event, took_ms: list[float]
) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    request = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    due = time.perf_counter() + random.uniform(0, 1 / rate if rate else 0)
    while not over.is_set():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        # Late by itself or by the answer before: that wait is not left out.
        began = due if rate else time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"bench: the load was refused: {head.decode()}")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        took_ms.append((time.perf_counter() - began) * 1000)
        due += 1 / rate if rate else 0
    writer.close()


if __name__ == "__main__":
    main()
