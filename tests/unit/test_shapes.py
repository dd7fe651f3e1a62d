"""What the shapes of requests refuse: a typo must never widen what is revoked, and nothing is guessed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from blueprints import shapes
from blueprints.shapes import Filter, Given, Paging, RevocationGiven, SessionQuery, SessionsToEnd
from models.times import write_time

GIVEN = [shape for shape in vars(shapes).values() if isinstance(shape, type) and issubclass(shape, Given)]
NEEDED: dict[type[Given], dict[str, Any]] = {
    shapes.SignIn: {"username": "ann", "password": "x"},
    shapes.Refresh: {"refresh_token": "x"},
    shapes.PasswordChange: {"current": "x", "new": "12345678"},
    shapes.NewUser: {"username": "ann", "password": "12345678"},
    shapes.RolesGiven: {"roles": []},
    shapes.RevocationGiven: {"scope": "everyone"},
}


def refused(shape: type[Given], **given: Any) -> str:
    with pytest.raises(ValidationError) as error:
        shape.model_validate(given)
    return str(error.value.errors()[0]["loc"][0])


@pytest.mark.parametrize("shape", GIVEN, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize("name", ["usr", "User", "user ", "", "limit2", "__class__", "\N{CYRILLIC SMALL LETTER U}ser"])
def test_an_unknown_name_is_refused(shape: type[Given], name: str) -> None:
    good = NEEDED.get(shape, {})
    shape.model_validate(good)
    assert refused(shape, **good, **{name: "x"}) == name


def test_an_unknown_name_within_a_filter_is_refused() -> None:
    assert refused(RevocationGiven, scope="filter", filter={"usr": "ann"}) == "filter"


@pytest.mark.parametrize("shape", list(NEEDED), ids=lambda shape: shape.__name__)
def test_what_is_needed_and_missing_is_refused(shape: type[Given]) -> None:
    for name in NEEDED[shape]:
        given = {**NEEDED[shape]}
        del given[name]
        assert refused(shape, **given) == name


@pytest.mark.parametrize("value", [None, 5, True, ["ann"], {"ann": 1}, b"ann"])
@pytest.mark.parametrize("name", ["username", "password"])
def test_a_wrong_type_is_not_made_to_fit(name: str, value: Any) -> None:
    assert refused(shapes.SignIn, **{**NEEDED[shapes.SignIn], name: value}) == name


@pytest.mark.parametrize("value", ["true", "false", 1, 0, None, "yes", []])
def test_a_dry_run_must_be_a_boolean(value: Any) -> None:
    """`dry_run: "true"` taken for false would revoke."""
    assert refused(RevocationGiven, scope="everyone", dry_run=value) == "dry_run"


@pytest.mark.parametrize("scope", ["", "User", "all", "users", None, 5, ["user"]])
def test_a_scope_is_one_of_four(scope: Any) -> None:
    assert refused(RevocationGiven, scope=scope) == "scope"


# --------------------------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1e9", "1000000000", "ten", "", " 5", "5.0", "+5", "٥", "0x10"])
def test_a_limit_that_is_no_number_from_1_to_200_is_refused(limit: str) -> None:
    assert refused(Paging, limit=limit) == "limit"


@pytest.mark.parametrize(("limit", "read"), [("1", 1), ("200", 200), ("050", 50)])
def test_a_limit_from_1_to_200_is_read(limit: str, read: int) -> None:
    assert Paging.model_validate({"limit": limit}).limit == read
    assert Paging().limit == 50


@pytest.mark.parametrize("flag", ["True", "1", "yes", "", "on", "TRUE", "true "])
def test_a_flag_is_true_or_false(flag: str) -> None:
    assert refused(SessionsToEnd, keep_current=flag) == "keep_current"


def test_a_flag_is_read() -> None:
    assert SessionsToEnd.model_validate({"keep_current": "true"}).keep_current is True
    assert SessionsToEnd.model_validate({"keep_current": "false"}).keep_current is False


@pytest.mark.parametrize("state", ["ended", "expired", "all", "Active", ""])
def test_only_active_sessions_can_be_ended(state: str) -> None:
    assert refused(SessionsToEnd, state=state) == "state"


@pytest.mark.parametrize(("name", "value"), [("state", "alive"), ("sort", "name"), ("sort", "-id"), ("cursor", "")])
def test_a_choice_that_is_not_there_is_refused(name: str, value: str) -> None:
    assert refused(SessionQuery, **{name: value}) == name


@pytest.mark.parametrize("name", ["user", "q", "role", "client"])
@pytest.mark.parametrize("value", ["", "x" * 201, "a\x00b", "a\nb", "\x7f", "\ud800"])
def test_a_filter_of_no_text_or_of_control_characters_is_refused(name: str, value: str) -> None:
    assert refused(Filter, **{name: value}) == name


@pytest.mark.parametrize("value", ["%", "_", "\\", "' OR 1=1 --", "<script>", "\u202eabc", "😀"])
def test_a_filter_takes_any_visible_text_as_it_is(value: str) -> None:
    assert Filter(q=value).q == value


# ------------------------------------------------------------------------------------------- addresses and times


@pytest.mark.parametrize(
    "ip",
    [
        "10.0.0.0/33",
        "::/129",
        "10.0.0.256",
        "10.0.0",
        "010.0.0.1",
        "4",
        "",
        "localhost",
        "10.0.0.1 ",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
        "1" * 51,
        "fe80::1%eth0",
    ],
)
def test_an_address_that_postgresql_would_not_take_is_refused(ip: str) -> None:
    assert refused(Filter, ip=ip) == "ip"


@pytest.mark.parametrize(
    ("ip", "read"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("2001:DB8::1/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:9.9.9.9", "9.9.9.9/32"),
        ("::FFFF:9.9.9.7/120", "9.9.9.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:9.9.9.9/95", "::fffe:0:0/95"),
    ],
)
def test_an_address_or_a_network_is_read(ip: str, read: str) -> None:
    assert Filter(ip=ip).ip == read


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-24",
        "2026-11-24T10:00:00",
        "2026-11-24 10:00:00Z",
        "2026-11-24T10:00Z",
        "2026-13-24T10:00:00Z",
        "2026-11-31T10:00:00Z",
        "2026-11-24T24:00:00Z",
        "2026-11-24T10:00:60Z",
        "2026-11-24T10:00:00+24:00",
        "2026-11-24T10:00:00.Z",
        "2026-11-24T10:00:00,5Z",
        "2026-11-24T10:00:00Z\n",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "٢٠٢٦-11-24T10:00:00Z",
        "1795514400",
        "now",
        "",
        1795514400,
        None.__class__,
    ],
    ids=str,
)
def test_a_time_that_is_not_rfc_3339_with_an_offset_is_refused(time: Any) -> None:
    assert refused(Filter, since=time) == "since"


@pytest.mark.parametrize("time", ["2026-11-24T10:00:00Z", "2026-11-24t10:00:00z", "2026-11-24T11:30:00.0+01:30"])
def test_a_time_is_read_as_utc(time: str) -> None:
    assert Filter.model_validate({"since": time}).since == datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize("digits", ["1234567", "123456789", "1234569999", "123456" + "9" * 50])
def test_what_is_finer_than_a_microsecond_is_cut_off(digits: str) -> None:
    time = f"2026-11-24T10:00:00.{digits}+00:00"
    assert Filter.model_validate({"since": time}).since == datetime(2026, 11, 24, 10, 0, 0, 123456, tzinfo=UTC)


def test_a_time_is_written_in_utc_with_z_and_microseconds() -> None:
    moment = datetime(2026, 11, 24, 11, 0, 0, 123456, tzinfo=timezone(timedelta(hours=1)))
    assert write_time(moment) == "2026-11-24T10:00:00.123456Z"
    assert write_time(datetime(2026, 11, 24, tzinfo=UTC)) == "2026-11-24T00:00:00.000000Z"


# --------------------------------------------------------------------------------------------- users and reasons


@pytest.mark.parametrize("name", ["", " ann", "ann ", "a\tb", "a\x00", "x" * 101, "\ud800", "\u2028ann", " "])
def test_a_user_name_that_looks_like_another_is_refused(name: str) -> None:
    assert refused(shapes.NewUser, username=name, password="12345678") == "username"


@pytest.mark.parametrize("role", ["", "-x", "a b", "admin\n", "ädmin", "x" * 65, "a/b", "a\x00", 5, None])
def test_a_role_that_is_no_plain_word_is_refused(role: Any) -> None:
    assert refused(shapes.RolesGiven, roles=["user", role]) == "roles"


def test_33_roles_are_refused() -> None:
    assert len(shapes.RolesGiven(roles=[f"r{i}" for i in range(32)]).roles) == 32
    assert refused(shapes.RolesGiven, roles=[f"r{i}" for i in range(33)]) == "roles"


@pytest.mark.parametrize("password", ["1234567", "x" * 1025, ""])
def test_a_new_password_of_a_wrong_length_is_refused(password: str) -> None:
    assert refused(shapes.NewUser, username="ann", password=password) == "password"
    assert refused(shapes.PasswordChange, current="x", new=password) == "new"


@pytest.mark.parametrize("password", ["x" * 8, "letters only", "1" * 64, "пароль с пробелом", "x" * 1024])
def test_a_password_needs_length_alone(password: str) -> None:
    assert shapes.NewUser(username="ann", password=password).password == password
    assert shapes.PasswordChange(current="x", new=password).new == password


@pytest.mark.parametrize("reason", ["x" * 501, "a\x00b", "\ud800", "a\x1b[31m"])
def test_a_reason_that_is_too_long_or_not_text_is_refused(reason: str) -> None:
    assert refused(shapes.Because, reason=reason) == "reason"


@pytest.mark.parametrize("reason", ["x" * 500, "<script>alert(1)</script>", "\u202eevil", "😀" * 500])
def test_a_reason_of_500_characters_is_kept_as_it_is(reason: str) -> None:
    assert shapes.Because(reason=reason).reason == reason
