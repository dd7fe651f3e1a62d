"""The shapes of requests and answers: what validates them, writes them and documents them, in one declaration each."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints

from lastcall.cutoffs import Stale
from models.session_list import Sort, State
from models.times import write_time


def _read_time(value: Any) -> Any:
    """RFC 3339 with an offset; a time without one means something else on every machine. What is finer than a
    microsecond is cut off: Go and Java write nine digits, PostgreSQL keeps six."""
    pattern = r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("give a time such as 2026-11-24T10:00:00Z")


def _read_whole(value: Any) -> Any:
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 9):
            raise ValueError("give a whole number")
        return int(value)
    return value


def _read_flag(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("give true or false")
        return value == "true"
    return value


def _plain_text(value: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("control characters are not allowed")
    return value


def _trimmed(value: str) -> str:
    if value != value.strip():
        raise ValueError("space at the beginning or the end is not allowed")
    return value


def _role(value: str) -> str:
    if not re.fullmatch(_ROLE, value):
        raise ValueError("a role is up to 64 letters, digits and . _ : -, and begins with a letter or a digit")
    return value


def _network(value: str) -> str:
    """IPv4 stays IPv4 in the spelling of a socket of both kinds (::ffff:192.0.2.1), as in `address_of_request`."""
    try:
        if "%" in value:
            raise ValueError("PostgreSQL knows no zone")
        network = ipaddress.ip_network(value, strict=False)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        return f"{mapped}/{network.prefixlen - 96}" if mapped else str(network)
    except ValueError:
        raise ValueError("give an address or a network such as 10.0.0.0/8") from None


def _documented(**keywords: Any) -> Any:
    """What a validator of ours asks for, in the words of the OpenAPI document."""
    return Field(json_schema_extra=keywords)


_CHARACTER, _EDGE = r"[^\x00-\x1f\x7f-\x9f]", r"[^\s\x00-\x1f\x7f-\x9f]"
_PLAIN = _documented(pattern=f"^{_CHARACTER}*$")
_TRIMMED = _documented(pattern=f"^{_EDGE}({_CHARACTER}*{_EDGE})?$")
_ROLE = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}"
_NO_NUL = _documented(pattern=r"^[^\x00]*$")  # lastcall/strict.py refuses it in all JSON
_NETWORK = _documented(format="ip-network", examples=["10.0.0.0/8", "2001:db8::1"])

Time = Annotated[datetime, PlainSerializer(write_time, return_type=str)]
TimeGiven = Annotated[datetime, BeforeValidator(_read_time)]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100),
    AfterValidator(_plain_text),
    AfterValidator(_trimmed),
    _TRIMMED,
]
ClientName = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_plain_text), _PLAIN]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_plain_text), _PLAIN]
Reason = Annotated[str, StringConstraints(max_length=500), AfterValidator(_plain_text), _PLAIN]
NewPassword = Annotated[str, StringConstraints(min_length=8, max_length=1024), _NO_NUL]
Password = Annotated[str, StringConstraints(min_length=1, max_length=1024), _NO_NUL]
Role = Annotated[str, AfterValidator(_role), _documented(pattern=f"^{_ROLE}$")]
Roles = Annotated[list[Role], Field(max_length=32)]
Network = Annotated[str, StringConstraints(max_length=50), AfterValidator(_network), _NETWORK]
Limit = Annotated[int, Field(ge=1, le=200), BeforeValidator(_read_whole)]
Flag = Annotated[bool, BeforeValidator(_read_flag)]
Cursor = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Given(BaseModel):
    """What a client sends. An unknown name is refused: a typo must never widen what is revoked."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, regex_engine="python-re")


class Answer(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(from_attributes=True)


# ------------------------------------------------------------------------------------------------------ requests


class Nothing(Given):
    pass


class SignIn(Given):
    username: Name
    password: Password
    client_id: ClientName | None = None


class Refresh(Given):
    refresh_token: Annotated[str, StringConstraints(max_length=8192), _NO_NUL]


class PasswordChange(Given):
    current: Password
    new: NewPassword


class Because(Given):
    reason: Reason | None = None


class KeepCurrent(Given):
    keep_current: Flag = False


class Paging(Given):
    limit: Limit = 50
    cursor: Cursor | None = None


class Filter(Given):
    """The filters of the session list."""

    user: Text | None = None
    q: Text | None = None
    role: Text | None = None
    client: Text | None = None
    ip: Network | None = None
    since: TimeGiven | None = None
    until: TimeGiven | None = None


class SessionQuery(Filter, Paging):
    state: State = "active"
    sort: Sort = "-created_at"


class SessionsToEnd(Filter, KeepCurrent):
    state: Literal["active"] = "active"


class UserQuery(Paging):
    q: Text | None = None
    role: Text | None = None


class NewUser(Given):
    username: Name
    password: NewPassword
    roles: Roles = []


class UserChange(Given):
    disabled: bool | None = None
    password: NewPassword | None = None
    reason: Reason | None = None


class RolesGiven(Given):
    roles: Roles
    revoke: bool | None = None
    reason: Reason | None = None


class RevocationGiven(Given):
    scope: Literal["user", "session", "everyone", "filter"]
    subject: Text | None = None
    filter: Filter | None = None
    issued_before: TimeGiven | None = None
    reason: Reason | None = None
    dry_run: bool = False


# ------------------------------------------------------------------------------------------------------- answers


class FieldError(Answer):
    field: str
    message: str


class Problem(Answer):
    """Problem details (RFC 9457). `code` is stable. Only some have `errors` (which fields do not fit, and why), or the
    `reason` that was given for a revocation."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []
    reason: str = ""


class TokensAnswer(Answer):
    access_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    session_id: str
    user_id: str


class SessionAnswer(Answer):
    session_id: str
    user_id: str
    username: str
    roles: list[str]
    client_id: str
    ip: str | None
    last_ip: str | None
    user_agent: str
    device: str
    created_at: Time
    last_seen_at: Time
    token_expires_at: Time
    expires_at: Time
    state: Literal["active", "ended", "expired"]
    ended_at: Time | None
    ended_by: str | None
    end_reason: str | None
    current: bool = False


class SessionList(Answer):
    items: list[SessionAnswer]
    next: str | None
    total: int
    total_is_exact: bool


class OwnSession(Answer):
    """What the token itself says of its session."""

    session_id: str | None
    client_id: str
    created_at: Time | None
    token_expires_at: Time
    current: bool = True


class Me(Answer):
    user_id: str
    username: str
    roles: list[str]
    session: OwnSession


class WorkersConfirmed(Answer):
    live: int
    confirmed: int
    fenced: int
    elapsed_ms: float
    unconfirmed: list[str] = []


class ReceiptAnswer(Answer):
    """What a revocation did, and where it is in force. With keep_current it holds the caller's new tokens."""

    revocation_id: str
    scope: Literal["everyone", "user", "session", "filter"]
    subject: str
    reason: str | None
    cutoff: Time
    sessions_ended: int
    already_ended: bool
    workers: WorkersConfirmed
    in_force: bool
    tokens: TokensAnswer | None = None


class PreviewAnswer(Answer):
    dry_run: Literal[True] = True
    sessions: int
    users: int
    admins: int
    includes_you: bool


class RevocationAnswer(Answer):
    revocation_id: str
    created_at: Time
    scope: Literal["everyone", "user", "session", "filter"]
    subject: str
    subject_name: str
    filter: dict[str, Any] | None
    reason: str | None
    actor_id: str | None
    actor_name: str
    actor_session: str | None
    actor_ip: str | None
    trigger: str
    cutoff: Time
    sessions_ended: int
    expires_at: Time


class RevocationList(Answer):
    items: list[RevocationAnswer]
    next: str | None


class UserAnswer(Answer):
    user_id: str
    username: str
    roles: list[str]
    created_at: Time
    disabled_at: Time | None
    active_sessions: int


class UserList(Answer):
    items: list[UserAnswer]
    next: str | None


class WorkerAnswer(Answer):
    id: str
    service: str
    host: str
    pid: int
    version: str
    state: Literal["starting", "live", "fenced"]
    lease_age_ms: int
    behind: int
    started_at: Time
    this_one: bool = False


class WorkerList(Answer):
    items: list[WorkerAnswer]
    next: str | None


class SettingsAnswer(Answer):
    """The lifetimes in force (seconds), and what they mean."""

    access_ttl: int
    refresh_ttl: int
    session_max_age: int
    longest_lifetime: int
    lease: float
    stale: Stale
    revoke_on_role_removal: bool
    algorithm: str
    window: str
