"""A TCP proxy between the workers and PostgreSQL, that can do what networks do: cut, fall silent, delay, trickle.

The embedded server listens on a Unix socket only: each connection that comes here leads to it.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Fate = Literal["pass", "refuse", "swallow"]


class Link:
    """One connection through the proxy. A swallowed one stays silent for ever, as after a firewall forgot it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket | None) -> None:
        self.swallowed = server is None
        self.application = ""
        self._proxy, self._client, self._server = proxy, client, server
        self._threads = [threading.Thread(target=self._pump, args=(client, server, True), daemon=True)]
        if server is not None:
            self._threads.append(threading.Thread(target=self._pump, args=(server, client, False), daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _pump(self, source: socket.socket, target: socket.socket | None, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if from_client and not self.application:
                    self.application = _application(data)
                    self.swallowed = self.swallowed or self._proxy.swallows(self.application)
                self._proxy.hold_up(len(data))
                if not self.swallowed and target is not None:
                    target.sendall(data)
        # Nobody hears of the end of a silent connection.
        if not self.swallowed:
            self.close()
            self._proxy.forget(self)

    def close(self, *, reset: bool = False) -> None:
        for end in (self._client, self._server):
            if end is None:
                continue
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)  # wakes our own thread, and sends nothing: the reset follows
                else:
                    end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Use it as a context manager. `server_url` gives the URL of a server on a Unix socket, asked for each connection.

    Each method without an application's name is about all connections, those that are and those that come.
    """

    def __init__(self, server_url: Callable[[], str]) -> None:
        self._server_url = server_url
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._fate: Fate = "pass"
        self._only: str | None = None
        self.delay_s = 0.0
        """Every piece of data is held up for so long, in either direction."""
        self.bytes_per_s = 0
        """Nothing is faster than this; 0 is as fast as it goes."""
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        self.cut()

    def lead_to(self, server_url: Callable[[], str]) -> None:
        """New connections go to another server."""
        self._server_url = server_url

    def url(self, database: str) -> str:
        return f"postgresql://lastcall@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    def links(self, application: str | None = None) -> list[Link]:
        with self._lock:
            return [link for link in self._links if application in (None, link.application)]

    def cut(self, application: str | None = None) -> int:
        """Reset connections. New ones pass. Returns how many there were."""
        links = self.links(application)
        for link in links:
            link.close(reset=True)
            self.forget(link)
        return len(links)

    def refuse(self) -> None:
        """Reset every connection, and every new one."""
        self._fate, self._only = "refuse", None
        self.cut()

    def swallow(self, application: str | None = None) -> None:
        """Half-open: connections stay, and no byte comes through any more, in either direction; new ones as well."""
        self._fate, self._only = "swallow", application
        for link in self.links(application):
            link.swallowed = True

    def heal(self) -> None:
        """New connections pass again. Those that were swallowed stay silent."""
        self._fate, self._only = "pass", None
        self.delay_s, self.bytes_per_s = 0.0, 0

    def swallows(self, application: str) -> bool:
        return self._fate == "swallow" and self._only in (None, application)

    def hold_up(self, size: int) -> None:
        pause_s = self.delay_s + (size / self.bytes_per_s if self.bytes_per_s else 0.0)
        if pause_s:
            time.sleep(pause_s)

    def forget(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self._fate == "refuse":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    continue
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open(client)

    def _open(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        if not (self._fate == "swallow" and self._only is None):
            try:
                server = connect(self._server_url())
            except Exception:  # the server is away, or its folder is: the client sees a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                return
        link = Link(self, client, server)
        with self._lock:
            self._links.add(link)
        link.start()


def connect(server_url: str) -> socket.socket:
    """A connection to a server on a Unix socket. Raises OSError."""
    folder = parse_qs(urlsplit(server_url).query)["host"][0]
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(f"{folder}/.s.PGSQL.5432")
    except OSError:
        server.close()
        raise
    return server


def _application(startup: bytes) -> str:
    """The application's name in the first message of a connection, or "?"."""
    fields = startup[8:].split(b"\x00")
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    return pairs.get(b"application_name", b"?").decode(errors="replace")
