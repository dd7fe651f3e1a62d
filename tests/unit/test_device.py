"""User agents in words."""

from __future__ import annotations

import pytest

from models.device import describe_device

FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"


@pytest.mark.parametrize(
    ("user_agent", "device"),
    [(FIREFOX, "Firefox on Windows"), ("", ""), ("curl/8.5.0", "curl"), ("my-robot/2.1 (nightly)", "my-robot")],
)
def test_a_user_agent_is_told_in_words(user_agent: str, device: str) -> None:
    assert describe_device(user_agent) == device


@pytest.mark.parametrize("user_agent", ["<script>" * 500, "\u202e" * 4096, "😀" * 4096, "/" * 4096, "(" * 4096])
def test_an_odd_user_agent_becomes_a_short_text(user_agent: str) -> None:
    assert len(describe_device(user_agent)) <= 100
