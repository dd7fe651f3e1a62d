"""Requests on kept-alive connections to every worker, from a process of its own; it says how long each took.

python -m bench.load PORT WORKERS CONNECTIONS_A_WORKER REQUESTS_A_SECOND

It reads what to ask, a line of JSON, from its input, and goes on until that ends. The rate is of all connections
together; 0: as fast as answers come.
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

Ask = tuple[str, str, str]
"""Path, token, body; with a body it is a POST."""


def guarded(token: str) -> Ask:
    return "/api/v1/auth/me", token, ""


def sign_in(username: str, password: str) -> Ask:
    return "/api/v1/auth/login", "", json.dumps({"username": username, "password": password})


class Load:
    """The load while it is on. Once it is over, `took_ms` has the latencies of what was answered with 200."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []
        self.refused = 0
        self.lasted_s = 0.0


@contextmanager
def load(gunicorn: Gunicorn, ask: Ask, *, connections: int = 1, rate: float = 0.0) -> Iterator[Load]:
    """Put load on all workers, until the block ends."""
    words = [str(word) for word in (gunicorn.port, gunicorn.workers, connections, rate)]
    process = Popen([sys.executable, "-m", "bench.load", *words], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    found = Load()
    try:
        process.stdin.write(f"{json.dumps(ask)}\n")
        process.stdin.flush()
        if process.stdout.readline() != "on\n":
            raise SystemExit("bench: the load did not start")
        began = time.perf_counter()
        yield found
        found.lasted_s = time.perf_counter() - began
    finally:
        found.took_ms, found.refused = json.loads(process.communicate()[0])


def main() -> None:
    port, workers, connections = (int(word) for word in sys.argv[1:4])
    rate = float(sys.argv[4])
    ask: Ask = tuple(json.loads(sys.stdin.readline()))
    gunicorn = Gunicorn(workers, (), dict(os.environ), Path(os.devnull))
    gunicorn.port = port
    lines = [line for _ in range(connections) for line in gunicorn.lines()]
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("on", flush=True)
    print(json.dumps(asyncio.run(ask_on_all(lines, written(ask), rate / len(lines), over))))


def written(ask: Ask) -> bytes:
    path, token, body = ask
    head = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost"]
    if token:
        head.append(f"Authorization: Bearer {token}")
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


async def ask_on_all(lines: list[Line], request: bytes, rate: float, over: threading.Event) -> tuple[list[float], int]:
    took_ms: list[float] = []
    refused = await asyncio.gather(*(ask_on(line.raw_socket, request, rate, over, took_ms) for line in lines))
    return took_ms, sum(refused)


async def ask_on(
    connection: socket.socket, request: bytes, rate: float, over: threading.Event, took_ms: list[float]
) -> int:
    """Ask again and again. Returns how often the answer was none of status 200."""
    refused, port = 0, connection.getpeername()[1]
    reader, writer = await asyncio.open_connection(sock=connection)
    due = time.perf_counter() + random.uniform(0, 1 / rate if rate else 0)
    while not over.is_set():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if over.is_set():
            break
        # From when it was due: that an answer before it was late is not left out.
        began = due if rate else time.perf_counter()
        try:
            good = await one_answer(reader, writer, request)
        except (asyncio.IncompleteReadError, ConnectionError):
            # Closed by the server, which had waited long enough: as every client does, once more on a new one.
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            good = await one_answer(reader, writer, request)
        if good:
            took_ms.append((time.perf_counter() - began) * 1000)
        refused += not good
        due += 1 / rate if rate else 0
    writer.close()
    return refused


async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200")


if __name__ == "__main__":
    main()
