"""How an address begins, as ranges of addresses: the text before the ranges, and what is no address finds none."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.search import address_ranges


def begins(address: str, beginning: str) -> bool:
    here = ipaddress.ip_address(address)
    ranges = [tuple(ipaddress.ip_address(end) for end in ends) for ends in address_ranges(beginning)]
    return any(here.version == low.version and low <= here <= high for low, high in ranges)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        ("10.1.7", [("10.1.7.0", "10.1.7.255"), ("10.1.70.0", "10.1.79.255")]),
        ("10.1.7.", [("10.1.7.0", "10.1.7.255")]),
        ("1", [("1.0.0.0", "1.255.255.255"), ("10.0.0.0", "19.255.255.255"), ("100.0.0.0", "199.255.255.255")]),
        ("192.0.2.25", [("192.0.2.25", "192.0.2.25"), ("192.0.2.250", "192.0.2.255")]),
        ("2001:db8:", [("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")]),
        ("fe80::", [("fe80::", "fe80:0:ffff:ffff:ffff:ffff:ffff:ffff")]),
        ("::1", [("::1", "::1")]),
        ("2001:db8::7", [("2001:db8::7", "2001:db8::7")]),
    ],
)
def test_a_beginning_is_these_ranges(beginning: str, expected: list[tuple[str, str]]) -> None:
    assert list(address_ranges(beginning)) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "alice", "256.1", "10.1.7.2.3", "10..7", "-1", "１", "1:2:3:4:5:6:7:8:9", "g::", "%", "1e1", "10.x"],
)
def test_what_is_no_address_finds_none(text: str) -> None:
    assert list(address_ranges(text)) == []


@given(st.ip_addresses(v=4), st.integers(1, 15))
def test_every_beginning_of_an_address_finds_it(address: ipaddress.IPv4Address, length: int) -> None:
    assert begins(str(address), str(address)[:length])


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(1, 15))
def test_no_other_address_is_found(address: ipaddress.IPv4Address, other: ipaddress.IPv4Address, length: int) -> None:
    beginning = str(address)[:length]
    assert begins(str(other), beginning) == str(other).startswith(beginning)


@given(st.ip_addresses(v=6), st.integers(1, 39))
def test_every_beginning_of_a_long_address_finds_it(address: ipaddress.IPv6Address, length: int) -> None:
    beginning = str(address)[:length]
    if ":" in beginning and "::" not in beginning and not beginning.endswith(":"):
        assert begins(str(address), beginning)
