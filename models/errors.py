"""What use cases refuse. They become HTTP in blueprints/problems.py."""

from __future__ import annotations

from lastcall.errors import DatabaseAway, LastcallError


class NotFound(LastcallError):
    """There is no such thing."""

    code = "not_found"


class Conflict(LastcallError):
    """The change does not fit what is there."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class BadCursor(LastcallError):
    """This cursor is not one of this list: start again without a cursor."""

    code = "bad_cursor"


class BadRequest(LastcallError):
    """The request can't be carried out as it stands."""

    code = "bad_request"

    def __init__(self, detail: str | None = None, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors
        """Which fields do not fit, and why; None where it is not about fields."""


class WrongCredentials(LastcallError):
    """The user name or the password is wrong."""

    code = "wrong_credentials"


class NotAllowed(LastcallError):
    """This account may not do that."""

    code = "forbidden"


class RefreshRejected(LastcallError):
    """The refresh token is not valid any more: sign in again."""

    code = "refresh_rejected"


class Throttled(LastcallError):
    """Too many failed sign-ins for this name or from this address: wait, then try again."""

    code = "too_many_attempts"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class TooManySignIns(Throttled):
    """Too many people are signing in at the moment: try again."""

    code = "too_many_sign_ins"

    def __init__(self) -> None:
        super().__init__(1)


class PartlyDone(DatabaseAway):
    """Some of what was asked for is written, and the rest is not: the database was away, busy, slow or full."""

    code = "partly_done"

    def __init__(self, sessions_ended: int) -> None:
        super().__init__(
            f"{sessions_ended:,} sessions have ended, the others have not: the database was away, busy, slow or full."
            " Ask for the same again to end them; the history shows what was done."
        )
