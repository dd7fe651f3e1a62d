"""Settings: each variable's default, what it refuses, and the secrets that are made once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lastcall.tokens import KeyRing, generate_signing_key
from settings import Settings, SettingsError, from_environment
from tests.unit.by_hand import SECRET

URL = "postgresql://ann:Kx7-password@db.example:5432/lastcall"
COOKIE_KEY = "Kx7-cookie-key-of-the-tests"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Settings]:
    """Settings from these variables alone, with the secrets in a folder of the test's own."""

    def read(**variables: str) -> Settings:
        given = {"LASTCALL_DATA_DIR": str(tmp_path / "data"), "LASTCALL_SIGNING_KEY": SECRET, **variables}
        return from_environment(given)

    return read


DEFAULTS: dict[str, Any] = {
    "embedded": True,
    "host": "127.0.0.1",
    "port": 8000,
    "workers": 4,
    "admin_username": "admin",
    "admin_password": None,
    "access_ttl": 300,
    "refresh_ttl": 1_209_600,
    "session_max_age": 7_776_000,
    "lease": 2.0,
    "stale": "ask",
    "revoke_on_role_removal": True,
    "longest_lifetime": 900,
    "log_level": "info",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_variable_that_is_missing_or_empty_means_its_default(read: Callable[..., Settings], name: str) -> None:
    empty = dict.fromkeys(GOOD, "")
    assert getattr(read(), name) == DEFAULTS[name]
    assert getattr(read(**{**empty, "LASTCALL_SIGNING_KEY": SECRET}), name) == DEFAULTS[name]


GOOD: dict[str, tuple[str, str, Any]] = {
    "HOST": ("0.0.0.0", "host", "0.0.0.0"),  # noqa: S104
    "PORT": ("65535", "port", 65535),
    "WEB_CONCURRENCY": ("1", "workers", 1),
    "LASTCALL_ADMIN_USERNAME": ("Zoë", "admin_username", "Zoë"),
    "LASTCALL_ADMIN_PASSWORD": ("12345678", "admin_password", "12345678"),
    "LASTCALL_ACCESS_TTL": ("60", "access_ttl", 60),
    "LASTCALL_REFRESH_TTL": ("60", "refresh_ttl", 60),
    "LASTCALL_SESSION_MAX_AGE": ("60", "session_max_age", 60),
    "LASTCALL_LEASE": ("0.5", "lease", 0.5),
    "LASTCALL_STALE": ("refuse", "stale", "refuse"),
    "LASTCALL_REVOKE_ON_ROLE_REMOVAL": ("false", "revoke_on_role_removal", False),
    "LASTCALL_LISTEN_URL": (URL, "listen_url", URL),
    "LASTCALL_DEMO_SESSIONS": ("2000", "demo_sessions", 2000),
    "LOG_LEVEL": ("Warning", "log_level", "warning"),
    "SECRET_KEY": (COOKIE_KEY, "secret_key", COOKIE_KEY),
    "LASTCALL_METRICS_TOKEN": ("Kx7-._~ +/=", "metrics_token", "Kx7-._~ +/="),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_variable_that_is_set_counts(read: Callable[..., Settings], name: str) -> None:
    text, attribute, value = GOOD[name]
    assert getattr(read(**{name: text}), attribute) == value


BAD: dict[str, list[str]] = {
    "DATABASE_URL": ["mysql://db/x", "db.example", "sqlite:///x", "postgresql:", "postgresql://[::1/db", "postgresql"],
    "LASTCALL_LISTEN_URL": ["http://db/x", "5432", "postgresql://[::1/db"],
    "LASTCALL_SIGNING_KEY": ["short", "{}", "{", "[]", "-----BEGIN PRIVATE KEY-----", '{"kty": ["oct"]}', "a/key.pem"],
    "HOST": ["not a host", "http://127.0.0.1", "127.0.0.1:8000", "a\nb"],
    "PORT": ["0", "65536", "-1", "+80", " 80", "80 ", "8e3", "eighty", "80.0", "٨٠", "9" * 5000, "8_0"],
    "WEB_CONCURRENCY": ["0", "257", "-4", "four", "1.5"],
    "LASTCALL_ADMIN_USERNAME": [" ", " admin", "admin\n", "a\x07b", "a" * 101],
    "LASTCALL_ADMIN_PASSWORD": ["1234567", "x" * 1025],
    "LASTCALL_ACCESS_TTL": ["0", "-300", "5m", "86401", "300.5", "inf"],
    "LASTCALL_REFRESH_TTL": ["0", "-1", "two weeks", "31536001"],
    "LASTCALL_SESSION_MAX_AGE": ["0", "-1", "never", "315360001"],
    "LASTCALL_LEASE": [
        "0",
        "0.1",
        "-2",
        "61",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "2s",
        "two",
        "2,0",
        "1_0",
        "1e1",
        " 2",
        "2.",
        "٢",
    ],
    "LASTCALL_DEMO_SESSIONS": ["many", "-1", "10000001"],
    "LASTCALL_STALE": ["Ask", "accept", "ask refuse", " ask"],
    "LASTCALL_REVOKE_ON_ROLE_REMOVAL": ["maybe", "2", "ja", "true false", "none"],
    "LOG_LEVEL": ["verbose", "warn", "20", " info", "in\nfo"],
    "SECRET_KEY": ["Kx7", "Kx7" * 5],
    "LASTCALL_METRICS_TOKEN": ["Schlüssel", " Kx7", "Kx7\n", "\t"],
}
NOT_UTF_8 = "postgresql://Kx7-\udcff-with-32-characters-and-more/x"
for name in ("LASTCALL_ISSUER", "LASTCALL_AUDIENCE", "LASTCALL_METRICS_TOKEN", "LASTCALL_DATA_DIR", *BAD):
    BAD.setdefault(name, []).append(NOT_UTF_8)


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}={value[:20]!r}") for name, values in BAD.items() for value in values],
)
def test_a_bad_value_is_refused_in_one_line_that_begins_with_its_name(
    read: Callable[..., Settings], name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        read(**{"SECRET_KEY": COOKIE_KEY, name: value})
    message = str(refused.value)
    assert message.startswith(f"{name}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    assert "give" in message or "allowed is" in message, "it must say what is allowed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://ann:Kx7-password@db/x"),
        ("LASTCALL_LISTEN_URL", "Kx7-password"),
        ("LASTCALL_SIGNING_KEY", "Kx7-secret"),
        ("LASTCALL_ADMIN_PASSWORD", "Kx7"),
        ("SECRET_KEY", "Kx7"),
        ("SECRET_KEY", NOT_UTF_8),
        ("LASTCALL_METRICS_TOKEN", NOT_UTF_8),
        ("LASTCALL_METRICS_TOKEN", "Kx7-é"),
    ],
)
def test_a_bad_secret_is_not_shown(read: Callable[..., Settings], name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(**{name: value})
    assert "Kx7" not in str(refused.value)


def test_a_public_key_is_refused_because_a_server_must_sign(read: Callable[..., Settings]) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(SettingsError, match=r"^LASTCALL_SIGNING_KEY: "):
        read(LASTCALL_SIGNING_KEY=text)


def test_a_public_key_may_follow_the_one_that_signs(read: Callable[..., Settings]) -> None:
    old, new = generate_signing_key("ES256"), generate_signing_key("EdDSA")
    public = KeyRing.parse(json.dumps(old)).jwks()["keys"][0]
    assert len(read(LASTCALL_SIGNING_KEY=json.dumps([new, public])).keys.keys) == 2


# ------------------------------------------------------------------------------------------------- what goes with what


def test_the_database_is_embedded_unless_a_url_is_given(read: Callable[..., Settings], tmp_path: Path) -> None:
    given = read(DATABASE_URL=URL, SECRET_KEY=COOKIE_KEY)
    assert (given.embedded, given.database_url, given.listen_url) == (False, URL, URL)
    env = {"LASTCALL_DATA_DIR": str(tmp_path), "LASTCALL_SIGNING_KEY": SECRET}
    embedded = from_environment(env, embedded_url="postgresql://here/x")
    assert (embedded.embedded, embedded.database_url, embedded.listen_url) == (True, *["postgresql://here/x"] * 2)


def test_the_listener_may_have_a_url_of_its_own(read: Callable[..., Settings]) -> None:
    found = read(DATABASE_URL=URL, LASTCALL_LISTEN_URL="postgres://direct/x", SECRET_KEY=COOKIE_KEY)
    assert (found.database_url, found.listen_url) == (URL, "postgres://direct/x")


def test_with_a_database_of_ones_own_the_cookie_key_is_required(read: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^SECRET_KEY: missing"):
        read(DATABASE_URL=URL)
    assert not (tmp_path / "data" / "secret_key").exists()


def test_a_longer_access_ttl_raises_the_cap_and_a_shorter_one_does_not_lower_it(read: Callable[..., Settings]) -> None:
    assert read(LASTCALL_ACCESS_TTL="3600").longest_lifetime == 3600
    assert read(LASTCALL_ACCESS_TTL="10").longest_lifetime == 900


def test_settings_cannot_be_changed_afterwards(read: Callable[..., Settings]) -> None:
    with pytest.raises(AttributeError):
        read().port = 1  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- secrets


def test_secrets_are_made_once_and_kept_where_only_the_owner_reads(tmp_path: Path) -> None:
    env = {"LASTCALL_DATA_DIR": str(tmp_path / "new" / "data")}
    first, second = from_environment(env), from_environment(env)
    assert first.secret_key == second.secret_key
    assert first.keys.signing_key.kid == second.keys.signing_key.kid
    assert first.keys.signing_key.alg == "RS256"
    kept = sorted((tmp_path / "new" / "data").iterdir())
    assert [file.name for file in kept] == ["secret_key", "signing_key.json"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in kept} == {0o600}
    assert stat.S_IMODE((tmp_path / "new" / "data").stat().st_mode) == 0o700


def test_two_folders_have_two_secrets(tmp_path: Path) -> None:
    one, other = (from_environment({"LASTCALL_DATA_DIR": str(tmp_path / name)}) for name in "ab")
    assert one.secret_key != other.secret_key
    assert one.keys.signing_key.kid != other.keys.signing_key.kid


def test_what_is_given_is_not_written_down(read: Callable[..., Settings], tmp_path: Path) -> None:
    read(SECRET_KEY=COOKIE_KEY)
    assert not (tmp_path / "data").exists()


def test_another_process_that_was_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found no file; the other one's is there by the time that ours is put in place."""
    folder = tmp_path / "data"

    def token_urlsafe(_: int) -> str:
        (folder / "secret_key").write_text("the secret of the other process")
        return "ours"

    monkeypatch.setattr("settings.secrets.token_urlsafe", token_urlsafe)
    found = from_environment({"LASTCALL_DATA_DIR": str(folder), "LASTCALL_SIGNING_KEY": SECRET})
    assert found.secret_key == "the secret of the other process"
    assert [file.name for file in folder.iterdir()] == ["secret_key"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("secret_key", b"", "less than 16 characters"),
        ("secret_key", b"Kx7-too-short\n", "less than 16 characters"),
        ("secret_key", b"Kx7-\xff-of-more-than-16-bytes", "not UTF-8"),
        ("signing_key.json", b"", "no key"),
        ("signing_key.json", b"Kx7-too-short", "less than 32 bytes"),
        ("signing_key.json", b'{"kty": "RSA", "n": "Kx7', "not valid JSON"),
        ("signing_key.json", b"\xff" * 40, "not UTF-8"),
    ],
)
def test_a_kept_secret_that_is_spoilt_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        from_environment({"LASTCALL_DATA_DIR": str(tmp_path)})
    message = str(refused.value)
    assert message.startswith(f"LASTCALL_DATA_DIR: {str(tmp_path / name)!r} cannot be used (") and fault in message
    assert len(message.splitlines()) == 1 and "Kx7" not in message
    assert (tmp_path / name).read_bytes() == content, "only a person may throw it away"


def test_a_secret_is_on_the_disk_before_it_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut would leave an empty file, which is no secret."""
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > 0
        done.append("fsync")
        fsync(descriptor)

    def note_link(draft: Path, path: Path) -> None:
        done.append("link")
        link(draft, path)

    monkeypatch.setattr("settings.os.fsync", note_fsync)
    monkeypatch.setattr("settings.os.link", note_link)
    from_environment({"LASTCALL_DATA_DIR": str(tmp_path / "data")})
    assert done == ["fsync", "link"] * 2


@pytest.mark.parametrize("name", ["file", "file/below", "fi\nle"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "fi\nle").write_text("")
    with pytest.raises(SettingsError) as refused:
        from_environment({"LASTCALL_DATA_DIR": str(tmp_path / name)})
    assert str(refused.value).startswith("LASTCALL_DATA_DIR: ")
    assert len(str(refused.value).splitlines()) == 1
