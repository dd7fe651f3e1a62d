"""Several hosts in one URL: each is tried on its own, and who is silent holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from lastcall.hosts import connect_to_primary, each_host

BOTH = "postgresql://ann@a.example.com:6001,b.example.com:6002/lastcall?connect_timeout=9"


class Connected:
    """What `connect` gives for a host that is the primary."""

    def __init__(self, host: str) -> None:
        self.host, self.closed = host, threading.Event()

    def close(self) -> None:
        self.closed.set()


def connecting(hosts: dict[str, Callable[[], None]]) -> Callable[..., Any]:
    """A `connect` that plays each host: it comes back from its part, or raises."""

    def connect(conninfo: str, **options: Any) -> Connected:
        assert options == {"autocommit": True, "client_encoding": "UTF8"}
        host = str(conninfo_to_dict(conninfo)["host"])
        hosts[host]()
        return Connected(host)

    return connect


def refuse() -> None:
    raise psycopg.OperationalError("connection refused")


def is_a_standby() -> None:
    raise psycopg.OperationalError("session is read-only")


def test_one_host_is_left_as_it_stands() -> None:
    for url in ("postgresql://ann@a.example.com/lastcall?target_session_attrs=any", "postgresql:///lastcall?host=/tmp"):
        assert each_host(url) == [url]


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        pytest.param(BOTH, [("a.example.com", "6001"), ("b.example.com", "6002")], id="a port for each"),
        pytest.param(
            "postgresql:///?host=a,b,c&port=6001", [("a", "6001"), ("b", "6001"), ("c", "6001")], id="one port"
        ),
        pytest.param("postgresql://a,b/?target_session_attrs=any", [("a", None), ("b", None)], id="the usual port"),
    ],
)
def test_each_of_several_hosts_is_one_that_must_let_us_write(url: str, hosts: list[tuple[str, str | None]]) -> None:
    found = [conninfo_to_dict(part) for part in each_host(url)]
    assert [(part["host"], part.get("port") or None) for part in found] == hosts
    assert {part["target_session_attrs"] for part in found} == {"read-write"}


def test_what_else_the_url_says_is_said_for_each_host() -> None:
    for part in map(conninfo_to_dict, each_host(BOTH)):
        assert (part["user"], part["dbname"], part["connect_timeout"]) == ("ann", "lastcall", "9")


@pytest.mark.parametrize("other", [refuse, is_a_standby])
def test_the_one_that_lets_us_in_is_the_one(other: Callable[[], None]) -> None:
    connect = connecting({"a.example.com": other, "b.example.com": lambda: None})
    assert connect_to_primary(connect, BOTH, autocommit=True).host == "b.example.com"


def test_a_host_that_says_nothing_is_not_waited_for_and_closed_when_it_comes_late() -> None:
    awake, asleep, late = threading.Event(), threading.Event(), []

    def connect(conninfo: str, **_: Any) -> Connected:
        connected = Connected(str(conninfo_to_dict(conninfo)["host"]))
        if connected.host == "a.example.com":
            late.append(connected)
            asleep.set()
            assert awake.wait(10)
        return connected

    found: Any = connect_to_primary(connect, BOTH)  # type: ignore[type-var]
    assert found.host == "b.example.com"
    assert asleep.wait(10)
    awake.set()
    assert late[0].closed.wait(10)
    assert not found.closed.is_set()


def test_without_a_primary_the_error_is_the_one_that_tells_why() -> None:
    for hosts in (
        {"a.example.com": refuse, "b.example.com": is_a_standby},
        {"a.example.com": is_a_standby, "b.example.com": refuse},
    ):
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect_to_primary(connecting(hosts), BOTH, autocommit=True)
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        connect_to_primary(
            connecting({"a.example.com": is_a_standby, "b.example.com": is_a_standby}), BOTH, autocommit=True
        )


@pytest.mark.parametrize("url", ["postgresql://a.example.com/lastcall", BOTH])
def test_an_attempt_that_was_swallowed_does_not_keep_the_next_one_waiting(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("lastcall.hosts.AGAIN_S", 0.01)
    over, swallowed = threading.Event(), []

    def connect(conninfo: str, **_: Any) -> Connected:
        connected = Connected(str(conninfo_to_dict(conninfo)["host"]))
        if connected.host == "b.example.com":
            raise psycopg.OperationalError("connection refused")
        if not swallowed:
            swallowed.append(connected)
            assert over.wait(10)
        return connected

    found: Any = connect_to_primary(connect, url)  # type: ignore[type-var]
    assert found is not swallowed[0]
    over.set()
    assert swallowed[0].closed.wait(10)
    assert not found.closed.is_set()


def test_a_standby_that_is_promoted_while_the_old_primary_says_nothing_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lastcall.hosts.AGAIN_S", 0.01)
    over, answers = threading.Event(), iter([is_a_standby, refuse, lambda: None])

    def say_nothing() -> None:
        assert over.wait(10)

    connect = connecting({"a.example.com": say_nothing, "b.example.com": lambda: next(answers)()})
    assert connect_to_primary(connect, BOTH, autocommit=True).host == "b.example.com"
    over.set()


def test_nobody_waits_longer_than_was_said() -> None:
    over = threading.Event()

    def say_nothing() -> None:
        assert over.wait(10)

    connect = connecting({"a.example.com": say_nothing})
    with pytest.raises(psycopg.OperationalError, match=r"no connection within 0\.05 s"):
        connect_to_primary(connect, "postgresql://a.example.com/lastcall", within_s=0.05, autocommit=True)
    over.set()


def test_whatever_connecting_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        connect_to_primary(connecting({"a.example.com": fail}), "postgresql://a.example.com/lastcall", autocommit=True)
