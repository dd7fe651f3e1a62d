"""Who does it: the person, session and address behind a change, as the history keeps them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """Who revokes, and why."""

    name: str
    user_id: str | None = None
    session_id: str | None = None
    ip: str | None = None
    reason: str | None = None

    def facts(self) -> dict[str, str | None]:
        """For `models.database.say`."""
        return {
            "actor_name": self.name,
            "actor_id": self.user_id,
            "actor_session": self.session_id,
            "actor_ip": self.ip,
            "reason": self.reason,
        }
