"""What a user agent is, in words that a person recognises: "Firefox on Windows"."""

from __future__ import annotations

from functools import lru_cache

from ua_parser import parse


@lru_cache(maxsize=1024)
def describe_device(user_agent: str) -> str:
    if not user_agent:
        return ""
    found = parse(user_agent[:512])
    browser = found.user_agent.family if found.user_agent else user_agent.split("/")[0][:40]
    system = found.os.family if found.os else ""
    return f"{browser} on {system}" if system else browser
