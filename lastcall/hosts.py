"""Several hosts in one libpq URL: all of them are tried at once, and the first that lets us write is the one.

One by one, as libpq does it, a machine that is gone without a word costs a timeout with each new connection. And an
attempt that a broken network has swallowed costs one, although the network may be back: libpq's is 2 seconds at least.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lastcall.clock import result_in_time

C = TypeVar("C", bound=psycopg.Connection[Any])
AGAIN_S = 0.8
"""How long an attempt is alone (seconds)."""
_LISTS = ("host", "hostaddr", "port")


def each_host(conninfo: str) -> list[str]:
    """One URL for each host of `conninfo`; `conninfo` itself where there is but one."""
    parameters = conninfo_to_dict(conninfo)
    lists = {name: str(parameters[name]).split(",") for name in _LISTS if parameters.get(name)}
    count = max((len(values) for values in lists.values()), default=1)
    if count == 1:
        return [conninfo]
    # One port is for all hosts (PostgreSQL manual, "Specifying Multiple Hosts").
    parts = [{name: values[min(i, len(values) - 1)] for name, values in lists.items()} for i in range(count)]
    return [make_conninfo("", **{**parameters, **part, "target_session_attrs": "read-write"}) for part in parts]


def connect_to_primary(connect: Callable[..., C], conninfo: str, *, within_s: float = 3.0, **options: Any) -> C:
    """`connect(conninfo, **options)`, on whichever of several hosts is the primary, within `within_s` seconds.

    Every AGAIN_S all are tried again beside what is under way, also those that have refused: while the old primary says
    nothing, a standby may have been promoted. Raises psycopg.Error, or what `connect` raises.
    """
    hosts = each_host(conninfo)
    first: Future[C] = Future()
    errors: dict[str, Exception] = {}

    def try_one(host: str) -> None:
        try:
            # Text is UTF-8, whatever the environment, the URL or the role has for a default.
            connection = connect(host, client_encoding="UTF8", **options)
        except Exception as error:
            errors[host] = error
            if len(errors) == len(hosts):
                # That a standby is only read is no news; why there is no primary is.
                reasons = sorted(errors.values(), key=lambda error: "read-only" in str(error))
                with suppress(InvalidStateError):
                    first.set_exception(reasons[0])
            return
        try:
            first.set_result(connection)
        except InvalidStateError:
            connection.close()

    left_s = within_s
    while True:
        for host in hosts:
            threading.Thread(target=try_one, args=(host,), name="lastcall-connect", daemon=True).start()
        try:
            return result_in_time(first, min(AGAIN_S, left_s))
        except TimeoutError:
            left_s -= AGAIN_S
            if left_s > 0:
                continue
            if first.cancel():
                raise psycopg.OperationalError(f"no connection within {within_s} s") from None
            return first.result()
