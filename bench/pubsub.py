"""Redis pub/sub to compare with: redis-server of the system's packages, and a client that is only what that needs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

CHANNEL = b"cutoffs"


@contextmanager
def redis_server(folder: Path) -> Iterator[Path]:
    """The socket of a Redis of its own in `folder`. Ends the bench with one line where the package is missing."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("bench: redis-server is missing: install the system's package redis-server")
    path = folder / "redis.socket"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                connect(path).close()
                break
            time.sleep(0.01)  # nothing tells when it listens
        yield path
    finally:
        process.terminate()
        process.wait()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def publish(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_command(b"PUBLISH", CHANNEL, message))
    connection.recv(64)  # how many got it


def subscribe(connection: socket.socket) -> Iterator[bytes]:
    """Subscribe, now, and then give each message as it comes."""
    connection.sendall(_command(b"SUBSCRIBE", CHANNEL))
    lines = connection.makefile("rb")
    for _ in range(6):  # the answer: *3, the word and the channel each with its length, :1
        lines.readline()
    return _messages(lines)


def _messages(lines: IO[bytes]) -> Iterator[bytes]:
    while lines.readline():  # *3, then the word, the channel and the message, each with its length
        yield [lines.readline() for _ in range(6)][5].rstrip()


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
