"""The error tree of the core. The docstring of a class is its message; `code` is stable and goes to clients."""

from __future__ import annotations


class LastcallError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or " ".join((type(self).__doc__ or "").split()))

    @property
    def detail(self) -> str:
        return str(self)


class TokenRejected(LastcallError):
    """The token is not accepted: sign in again."""

    code = "token_invalid"


class Missing(TokenRejected):
    """No token was sent: put it into the header «Authorization: Bearer …»."""

    code = "token_missing"


class Malformed(TokenRejected):
    """This is not a well-formed token: send the access token just as it was issued."""

    code = "token_malformed"


class Invalid(TokenRejected):
    """The token was not issued for this service, or its signature is wrong: sign in again."""


class Expired(TokenRejected):
    """The token has expired: refresh it, or sign in again."""

    code = "token_expired"


class Revoked(TokenRejected):
    """The token was revoked: sign in again."""

    code = "token_revoked"

    def __init__(self, scope: str, subject: str, *, session_id: str | None = None) -> None:
        super().__init__()
        self.scope = scope
        """The level that refuses: `everyone`, `user` or `session`."""
        self.subject = subject
        """The user's or session's id, empty for everyone."""
        self.session_id = session_id
        """The session that the token belongs to, where it says so: the history may know why it ended."""


class CutoffsStale(LastcallError):
    """This worker can't know at the moment whether the token was revoked, so it does not guess: try again shortly."""

    code = "cutoffs_stale"
    retry_after_s = 1


class DatabaseAway(LastcallError):
    """The database can't be reached at the moment: try again shortly."""

    code = "database_away"
    retry_after_s = 1
