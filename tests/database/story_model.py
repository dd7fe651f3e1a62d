"""The model that stories are judged by: who must be let in, in plain Python. It knows no generations and no cutoffs.

Whatever takes something away marks what it is about as gone, at once and for ever; times are whole seconds of the
database's clock. tests/database/test_story.py holds the real thing against it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

ACCESS_TTL, REFRESH_TTL, MAX_AGE, GRACE = 300, 600, 1500, 10
FAST_CLOCK = 60
"""How far ahead an issuer's clock may be: what is further ahead, a guard refuses unless it knows the token already."""
UNSURE = 30
"""The guards' clocks run on between two looks at the database's, which stands still (seconds)."""


@dataclass(eq=False, slots=True)
class User:
    id: str
    name: str
    password: str
    roles: set[str]
    disabled: bool = False
    exists: bool = True
    past: list[str] = field(default_factory=list)
    """The passwords of before."""


@dataclass(eq=False, slots=True)
class Access:
    """An access token, and whether it was revoked."""

    raw: str
    iat: int
    exp: int
    roles: tuple[str, ...]
    key: int
    revoked: bool = False


@dataclass(eq=False, slots=True)
class Session:
    """A session with all its tokens, the oldest first. `orphans` are refresh tokens from before it was renewed."""

    id: str
    user: User
    client: str
    created: int
    expires: int
    roles: tuple[str, ...]
    rotated: int
    access: list[Access] = field(default_factory=list)
    refresh: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    ended: bool = False
    on_record: bool = True

    def __repr__(self) -> str:
        return f"a session of {self.user.name}"


class World:
    """All users, sessions and tokens there are, and the keys in force: the first one signs."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.users: dict[str, User] = {}
        self.sessions: list[Session] = []
        self.keys: tuple[int, ...] = (0,)
        self.went_back = False
        self.excused: set[Access] = set()
        """Revoked tokens that may be good again once the clock has stepped back to before their end: a known gap."""

    # --------------------------------------------------------------------------------------------- what must hold

    def user(self, name: str) -> User | None:
        user = self.users.get(name)
        return user if user is not None and user.exists else None

    def remembers(self, user: User) -> bool:
        """Whether a row tells of somebody who may be gone."""
        return any(session.user is user and session.on_record for session in self.sessions)

    def state(self, session: Session) -> str:
        if session.ended:
            return "ended"
        return "active" if session.expires > self.now else "expired"

    def active(self) -> set[str]:
        return {session.id for session in self.sessions if self.state(session) == "active"}

    def verdict(self, token: Access) -> str:
        """What every guard must say of it: `accepted`, `refused`, or `either` where only the time decides."""
        if token.revoked or token.key not in self.keys or token.exp <= self.now:
            excused = self.went_back and token in self.excused and token.key in self.keys and token.exp > self.now
            return "either" if excused else "refused"
        return "either" if token.exp <= self.now + UNSURE or token.iat > self.now + FAST_CLOCK else "accepted"

    def why_refused(self, token: Access) -> str:
        if token.key not in self.keys:
            return "unknown key"
        if token.exp <= self.now:
            return "expired"
        return "revoked" if token.iat <= self.now + FAST_CLOCK and token.exp > self.now + UNSURE else "any"

    def good_token(self, session: Session) -> Access | None:
        """The newest access token of a session with which its holder can act."""
        return next((token for token in reversed(session.access) if self.verdict(token) == "accepted"), None)

    def trade(self, session: Session, refresh_token: str) -> str:
        """What a refresh must do: `rotate`, give the `same` successor again, end it for `reuse`, or be `refused`."""
        if refresh_token in session.orphans or self.state(session) != "active":
            return "refused"
        if refresh_token == session.refresh[-1]:
            return "rotate"
        if refresh_token in session.refresh[-2:] and 0 <= self.now - session.rotated < GRACE:
            return "same"
        return "reuse"

    def dead_refresh_tokens(self) -> Iterator[str]:
        """Those that can do nothing any more, whatever happens."""
        for session in self.sessions:
            yield from session.orphans
            if session.ended:
                yield from session.refresh

    # ------------------------------------------------------------------------------------------------ what happens

    def change_password(self, user: User, password: str) -> None:
        user.past.append(user.password)
        user.password = password

    def sign_in(self, session_id: str, user: User, client: str) -> Session:
        roles = tuple(sorted(user.roles))
        session = Session(session_id, user, client, self.now, self.now, roles, self.now)
        self.sessions.append(session)
        return session

    def mint(self, session: Session, access_token: str) -> None:
        session.expires = min(session.created + MAX_AGE, self.now + REFRESH_TTL)
        session.roles = tuple(sorted(session.user.roles))
        exp = min(self.now + ACCESS_TTL, max(self.now + 1, session.expires))
        session.access.append(Access(access_token, self.now, exp, session.roles, self.keys[0]))

    def rotate(self, session: Session, refresh_token: str) -> None:
        session.refresh.append(refresh_token)
        session.rotated = self.now

    def renew(self, session: Session, access_token: str, refresh_token: str) -> None:
        session.orphans += session.refresh
        session.refresh = [refresh_token]
        self.mint(session, access_token)

    def end(self, session: Session) -> None:
        session.ended = True
        self.excused -= set(session.access)
        self.revoke_tokens(session)

    def excuse(self, session: Session) -> None:
        self.excused.update(token for token in session.access if token.revoked)

    def revoke_tokens(self, session: Session) -> None:
        for token in session.access:
            token.revoked = True

    def end_where(self, condition: Callable[[Session], bool], *, keep: Session | None = None) -> int:
        """End each active session that fits. Returns how many."""
        found = [s for s in self.sessions if self.state(s) == "active" and s is not keep and condition(s)]
        for session in found:
            self.end(session)
        return len(found)

    def end_users(self, users: Collection[User], *, keep: Session | None = None) -> int:
        """End all of their sessions; `keep` goes on, but its tokens of before do not. Returns how many were active."""
        active = 0
        for session in [session for session in self.sessions if session.user in users]:
            if session is keep and not session.ended:
                self.revoke_tokens(session)
                continue
            active += self.state(session) == "active"
            self.end(session)
        return active

    def end_everyone(self, *, keep: Session | None = None) -> int:
        return self.end_users([session.user for session in self.sessions], keep=keep)
