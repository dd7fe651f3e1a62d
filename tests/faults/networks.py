"""App hosts in network namespaces of their own (Linux, root, iproute2): each reaches the database by one cable only.

The database's side is a namespace too, so that nothing is added to the network of the machine itself.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tests.faults.proxy import Proxy

FOLDER = Path("/run/netns")
NAMESPACE = "FAULT_NAMESPACE"
"""The environment variable that names the namespace a gunicorn's workers shall live in (networked_conf.py)."""
_CLONE_NEWNET = 0x40000000
Result = TypeVar("Result")


class Forbidden(Exception):
    """There can be no namespaces here. The message says why."""


def ip(*arguments: str) -> str:
    """Run ip(8). Raises Forbidden with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise Forbidden(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Networks:
    """Use it as a context manager. `hosts` are the names of the app hosts. Raises Forbidden."""

    def __init__(self, *hosts: str) -> None:
        self._prefix = f"lastcall-{os.getpid()}"
        self._hosts = hosts
        self._names = {name: f"{self._prefix}-{name}" for name in ("database", *hosts)}

    def __enter__(self) -> Networks:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            raise Forbidden("only root may make network namespaces")
        if shutil.which("ip") is None:
            raise Forbidden("the program ip is missing (Debian: apt install iproute2)")
        _remove_leftovers()
        try:
            for name in self._names.values():
                ip("netns", "add", name)
            for host in self._hosts:
                self._lay_cable(host)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def namespace(self, name: str) -> str:
        return self._names[name]

    def address_for(self, host: str) -> str:
        """Where a host finds the database. The namespaces are all that knows of it."""
        return f"10.77.{self._hosts.index(host)}.1"

    def unplug(self, host: str) -> None:
        """Pull the cable at the database's end: packets are lost, and nobody is told."""
        ip("-n", self._names["database"], "link", "set", f"to-{host}", "down")

    def plug_in(self, host: str) -> None:
        ip("-n", self._names["database"], "link", "set", f"to-{host}", "up")

    def _lay_cable(self, host: str) -> None:
        ours, theirs = self._names["database"], self._names[host]
        ip("-n", ours, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", theirs)
        address = self.address_for(host)
        ip("-n", ours, "address", "add", f"{address}/30", "dev", f"to-{host}")
        ip("-n", theirs, "address", "add", f"{address.removesuffix('1')}2/30", "dev", "eth0")
        ip("-n", theirs, "link", "set", "eth0", "up")
        ip("-n", ours, "link", "set", f"to-{host}", "up")

    def _remove(self) -> None:
        for name in self._names.values():
            with suppress(Forbidden):
                ip("netns", "delete", name)


class Gate(Proxy):
    """The proxy, listening at the database's end of a host's cable."""

    def __init__(self, server_url: Callable[[], str], networks: Networks, host: str) -> None:
        super().__init__(server_url)
        self._listening.close()
        self._address = networks.address_for(host)
        self._listening = within(
            networks.namespace("database"), lambda: socket.create_server((self._address, 0), backlog=256)
        )
        self.port = self._listening.getsockname()[1]

    def url(self, database: str) -> str:
        return super().url(database).replace("127.0.0.1", self._address)


def within(namespace: str, act: Callable[[], Result]) -> Result:
    """Do something in a namespace, in a thread that ends there. A socket stays where it was made."""

    def run() -> Result:
        enter(namespace)
        return act()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def enter(namespace: str) -> None:
    """Move the calling thread, and whatever it forks from now on, into a namespace. Raises OSError."""
    descriptor = os.open(FOLDER / namespace, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _remove_leftovers() -> None:
    """Namespaces of runs that were killed before they could remove them."""
    for name, pid in re.findall(r"^(lastcall-(\d+)-\w+)", ip("netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            with suppress(Forbidden):
                ip("netns", "delete", name)
