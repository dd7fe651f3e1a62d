"""Settings: one frozen object, made from the environment once. It knows no Flask and no database."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from lastcall.claims import LONGEST_LIFETIME_S
from lastcall.cutoffs import LEASE_S, Stale
from lastcall.tokens import KeyRing, generate_signing_key

Choice = TypeVar("Choice", bound=str)
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
"""As gunicorn names them, in any case; it takes any other for info."""
ARGON2_TIME_COST, ARGON2_MEMORY_KIB = 5, 7_168
"""One of the settings that OWASP names (docs/decisions/0013-libsodium.md)."""
_OTHERS = ("DATABASE_URL", "SECRET_KEY", "HOST", "PORT", "WEB_CONCURRENCY", "LOG_LEVEL")
"""Variables whose names do not begin with LASTCALL_."""


class SettingsError(ValueError):
    """A setting is wrong. The message is one line: the variable, what is wrong with it, what is allowed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the environment decides. Times are seconds."""

    database_url: str
    listen_url: str
    embedded: bool
    data_dir: Path
    secret_key: str
    keys: KeyRing
    host: str
    port: int
    workers: int
    admin_username: str
    admin_password: str | None
    access_ttl: int
    refresh_ttl: int
    session_max_age: int
    lease: float
    stale: Stale
    revoke_on_role_removal: bool
    issuer: str
    audience: str
    argon2_time_cost: int
    argon2_memory_kib: int
    metrics_token: str | None
    trusted_proxies: int
    secure_cookies: bool
    streams_per_worker: int
    demo_sessions: int
    log_level: str

    @property
    def longest_lifetime(self) -> int:
        """No access token lives longer than this, whatever it says (seconds)."""
        return max(LONGEST_LIFETIME_S, self.access_ttl)


def from_environment(environ: Mapping[str, str] | None = None, *, embedded_url: str | None = None) -> Settings:
    """Read and check every variable; `embedded_url` is the embedded server's, used where DATABASE_URL is not set.

    Raises SettingsError for the first bad value.
    """
    env = os.environ if environ is None else environ
    _check_encoding(env)
    data_dir = Path(env.get("LASTCALL_DATA_DIR") or "instance").absolute()
    given_url = env.get("DATABASE_URL") or None
    if given_url is not None:
        _check_url("DATABASE_URL", given_url)
    database_url = given_url or embedded_url or ""
    listen_url = env.get("LASTCALL_LISTEN_URL") or database_url
    if env.get("LASTCALL_LISTEN_URL"):
        _check_url("LASTCALL_LISTEN_URL", listen_url)
    access_ttl = _integer(env, "LASTCALL_ACCESS_TTL", 300, 1, 86_400)
    refresh_ttl = _integer(env, "LASTCALL_REFRESH_TTL", 1_209_600, 1, 31_536_000)
    session_max_age = _integer(env, "LASTCALL_SESSION_MAX_AGE", 7_776_000, 1, 315_360_000)
    return Settings(
        database_url=database_url,
        listen_url=listen_url,
        embedded=given_url is None,
        data_dir=data_dir,
        secret_key=_secret_key(env, data_dir, required=given_url is not None),
        keys=_signing_keys(env, data_dir),
        host=_host(env),
        port=_integer(env, "PORT", 8000, 1, 65_535),
        workers=_integer(env, "WEB_CONCURRENCY", 4, 1, 256),
        admin_username=_username(env),
        admin_password=_admin_password(env),
        access_ttl=access_ttl,
        refresh_ttl=refresh_ttl,
        session_max_age=session_max_age,
        lease=_number(env, "LASTCALL_LEASE", LEASE_S, 0.2, 60.0),
        stale=_choice(env, "LASTCALL_STALE", "ask", get_args(Stale)),
        revoke_on_role_removal=_boolean(env, "LASTCALL_REVOKE_ON_ROLE_REMOVAL", True),
        issuer=env.get("LASTCALL_ISSUER") or "lastcall",
        audience=env.get("LASTCALL_AUDIENCE") or "lastcall",
        argon2_time_cost=_integer(env, "LASTCALL_ARGON2_TIME_COST", ARGON2_TIME_COST, 1, 20),
        argon2_memory_kib=_integer(env, "LASTCALL_ARGON2_MEMORY_KIB", ARGON2_MEMORY_KIB, 8, 1_048_576),
        metrics_token=_metrics_token(env),
        trusted_proxies=_integer(env, "LASTCALL_TRUSTED_PROXIES", 0, 0, 10),
        secure_cookies=_boolean(env, "LASTCALL_SECURE_COOKIES", False),
        streams_per_worker=_integer(env, "LASTCALL_STREAMS_PER_WORKER", 24, 1, 200),
        demo_sessions=_integer(env, "LASTCALL_DEMO_SESSIONS", 0, 0, 10_000_000),
        log_level=_choice(env, "LOG_LEVEL", "info", LOG_LEVELS, any_case=True),
    )


def settings_of_process(embedded_url: str | None = None) -> Settings:
    """From this process's environment, in which `make run` names its embedded server. A wrong value ends the process
    with one line."""
    try:
        return from_environment(embedded_url=embedded_url or os.environ.get("LASTCALL_EMBEDDED_URL"))
    except SettingsError as error:
        sys.exit(f"lastcall: {error}")


def _check_encoding(env: Mapping[str, str]) -> None:
    """Bytes that are not UTF-8 come as surrogates (os.fsdecode), and would fail only once they are used."""
    for name, text in env.items():
        if name.startswith("LASTCALL_") or name in _OTHERS:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise SettingsError(f"{name}: not UTF-8; give text in UTF-8") from None


def _check_url(name: str, value: str) -> None:
    """libpq reads it, whose own messages may repeat the password. It looks at the ports only when it connects."""
    try:
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError
        ports = str(conninfo_to_dict(value).get("port") or "").split(",")
        if not all(port == "" or (port.isdecimal() and 1 <= int(port) <= 65_535) for port in ports):
            raise ValueError
    except (ValueError, ProgrammingError):
        raise SettingsError(
            f"{name}: not a libpq URL; allowed is postgresql://user:password@host:port/database,"
            " with %20 and the like for what is not plain"
        ) from None


def _host(env: Mapping[str, str]) -> str:
    host = env.get("HOST") or "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", host) is None:
            raise SettingsError(
                f"HOST: {_shown(host)} is not allowed; give an address or a name, without the port"
            ) from None
    return host


def _integer(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = env.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12) or not least <= int(text) <= most:
        raise SettingsError(f"{name}: {_shown(text)} is not allowed; give a whole number from {least} to {most}")
    return int(text)


def _number(env: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = env.get(name)
    if text is None or text == "":
        return default
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) is None or not least <= float(text) <= most:
        raise SettingsError(f"{name}: {_shown(text)} is not allowed; give a number of seconds from {least} to {most}")
    return float(text)


def _choice(
    env: Mapping[str, str], name: str, default: Choice, allowed: tuple[Choice, ...], *, any_case: bool = False
) -> Choice:
    text: str = env.get(name) or default
    for choice in allowed:
        if choice == (text.lower() if any_case else text):
            return choice
    raise SettingsError(f"{name}: {_shown(text)} is not allowed; give one of {', '.join(allowed)}")


def _boolean(env: Mapping[str, str], name: str, default: bool) -> bool:
    text = (env.get(name) or str(default)).lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise SettingsError(f"{name}: {_shown(text)} is not allowed; give true or false")


def _username(env: Mapping[str, str]) -> str:
    name = env.get("LASTCALL_ADMIN_USERNAME") or "admin"
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise SettingsError("LASTCALL_ADMIN_USERNAME: not a user name; give 1 to 100 printable characters")
    return name


def _admin_password(env: Mapping[str, str]) -> str | None:
    password = env.get("LASTCALL_ADMIN_PASSWORD") or None
    if password is not None and not 8 <= len(password) <= 1024:
        raise SettingsError("LASTCALL_ADMIN_PASSWORD: too short or too long; give 8 to 1024 characters")
    return password


def _metrics_token(env: Mapping[str, str]) -> str | None:
    token = env.get("LASTCALL_METRICS_TOKEN") or None
    if token is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", token):
        raise SettingsError("LASTCALL_METRICS_TOKEN: it cannot stand in a header; give visible ASCII characters")
    return token


def _secret_key(env: Mapping[str, str], data_dir: Path, *, required: bool) -> str:
    key = env.get("SECRET_KEY")
    if key:
        if len(key) < 16:
            raise SettingsError("SECRET_KEY: too short; give 16 characters or more, the same on every host")
        return key
    if required:
        raise SettingsError(
            "SECRET_KEY: missing; with DATABASE_URL set, give 16 characters or more, the same on every host"
        )
    path = data_dir / "secret_key"
    key = _kept_secret(path, lambda: secrets.token_urlsafe(48))
    if len(key) < 16:
        raise _spoilt(path, "it has less than 16 characters")
    return key


def _signing_keys(env: Mapping[str, str], data_dir: Path) -> KeyRing:
    if given := env.get("LASTCALL_SIGNING_KEY"):
        try:
            return _keys_that_sign(given)
        except ValueError as error:
            raise SettingsError(
                f"LASTCALL_SIGNING_KEY: {error}; give a private JWK or JWK set, a PEM private key (RSA of 2048 bits or"
                " more, P-256, Ed25519), or an HS256 secret of 32 bytes or more; several for rotation, the signing one"
                " first"
            ) from None
    path = data_dir / "signing_key.json"
    kept = _kept_secret(path, lambda: json.dumps(generate_signing_key("RS256")))
    try:
        return _keys_that_sign(kept)
    except ValueError as error:
        raise _spoilt(path, str(error)) from None


def _keys_that_sign(text: str) -> KeyRing:
    """Raises ValueError, also where only the public part of the first key is known."""
    keys = KeyRing.parse(text)
    keys.signing_key  # noqa: B018
    return keys


def _kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The secret kept in `path` (mode 0600), made on first use. Two processes that start at once agree on one."""
    try:
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(make())
            file.flush()
            os.fsync(descriptor)  # a power cut must not leave an empty one
        try:
            os.link(draft, path)  # fails when another process was first: its secret is the one
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(
            f"LASTCALL_DATA_DIR: {str(path.parent)!r} cannot be used ({error.strerror}); give a folder that can be"
            " written"
        ) from None
    except UnicodeDecodeError:
        raise _spoilt(path, "it is not UTF-8") from None


def _spoilt(path: Path, fault: str) -> SettingsError:
    """What to say of a kept secret that is none, be it cut short or written over."""
    return SettingsError(
        f"LASTCALL_DATA_DIR: {str(path)!r} cannot be used ({fault}); give it back from a backup, or delete it:"
        " the next start makes a new one, and what the old one has signed counts no more"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
