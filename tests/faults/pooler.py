"""A pooler in transaction mode, the least that is one: each transaction of a client may run on another server process.

It knows just enough of PostgreSQL's protocol (version 3): where a message ends, and when the server is idle. What a
server says between two transactions of the client (such as a notification) is lost, as with any such pooler.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.faults.proxy import connect

_READY, _IDLE = b"Z", b"I"


class TransactionPooler:
    """Use it as a context manager; `server_url` as with `Proxy`."""

    def __init__(self, server_url: Callable[[], str]) -> None:
        self._server_url = server_url
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._open: list[socket.socket] = []

    def __enter__(self) -> TransactionPooler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def url(self, database: str) -> str:
        return f"postgresql://lastcall@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One client, two servers that take turns."""
        servers: list[socket.socket] = []
        with suppress(OSError, EOFError):
            size = _exactly(client, 4)
            startup = size + _exactly(client, struct.unpack("!I", size)[0] - 4)
            for number in range(2):
                server = connect(self._server_url())
                servers.append(server)
                self._open.append(server)
                server.sendall(startup)
                _until_idle(server, client if number == 0 else None)
            turn = 0
            while True:
                server = servers[turn % 2]
                _drop_what_waits(server)
                _hand_over_a_query(client, server)
                while not _until_ready(server, client):
                    _hand_over_a_query(client, server)  # within a transaction: stay
                turn += 1
        for end in (client, *servers):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack("!I", head[1:])[0] - 4)


def _hand_over_a_query(client: socket.socket, server: socket.socket) -> None:
    """One message of the simple protocol, or all up to Sync of the extended one."""
    while True:
        message = _message(client)
        server.sendall(message)
        if message[:1] == b"X":  # Terminate
            raise EOFError
        if message[:1] in (b"Q", b"S"):
            return


def _until_ready(server: socket.socket, client: socket.socket | None) -> bool:
    """Hand on what the server says until it is ready for a query. Returns whether it is in no transaction."""
    while True:
        message = _message(server)
        if client is not None:
            client.sendall(message)
        if message[:1] == _READY:
            return message[5:6] == _IDLE


def _until_idle(server: socket.socket, client: socket.socket | None) -> None:
    while not _until_ready(server, client):
        pass


def _drop_what_waits(server: socket.socket) -> None:
    server.setblocking(False)
    with suppress(BlockingIOError):
        while server.recv(65_536):
            pass
    server.setblocking(True)
