"""Values as people read them: "3 min ago", "1 session", "2026-11-24 10:00:00 UTC". Filters of the templates."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Flask

from models.confirmation import Confirmation

_CAUSES = {
    "force_logout": "force logout",
    "generation_raised": "generation raised",
    "log_out_all": "log out all users",
    "logout": "signed out",
    "own_sessions_ended": "ended own sessions",
    "password_changed": "password changed",
    "refresh_reuse": "refresh token used twice",
    "role_lost": "role lost",
    "session_ended": "session ended",
    "user_deleted": "user deleted",
    "user_disabled": "user disabled",
}


def init_app(app: Flask) -> None:
    app.jinja_env.filters.update(ago=ago, moment=moment, count=count, cause=cause, in_force=in_force)


def moment(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(value: datetime) -> str:
    """How long ago, coarsely, so that a table does not change all the time."""
    seconds = int((datetime.now(UTC) - value).total_seconds())
    if seconds < 60:
        return "just now"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return ""


def count(number: int, noun: str, *, about: bool = False) -> str:
    """«1 session», «2,000 sessions», «about 1,200,000 sessions»."""
    return f"{'about ' if about else ''}{number:,} {noun}{'' if number == 1 else 's'}"


def cause(value: str) -> str:
    """A cause of the history in plain words; one that nobody knows as it stands."""
    return _CAUSES.get(value, value.replace("_", " "))


def in_force(workers: Confirmation) -> str:
    """«In force on 4 of 4 workers in 6 ms»; and never so where it is not."""
    if not workers.in_force:
        text = f"Not in force everywhere yet: {workers.confirmed} of {workers.live} workers have confirmed"
        return text if workers.settled else text + ", but the database restarted less than one lease ago"
    text = f"In force on {workers.confirmed} of {workers.live} workers in {workers.elapsed_ms:.0f} ms"
    if workers.fenced:
        text += f" ({count(workers.fenced, 'worker')} fenced: without a lease, so trusting nothing)"
    return text
