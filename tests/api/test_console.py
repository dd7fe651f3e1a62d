"""The console's door, without a browser: cookies, other sites, the way after the sign-in, the password asked again."""

from __future__ import annotations

import html
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from lastcall.errors import CutoffsStale, DatabaseAway, LastcallError
from models import force_logout, throttle
from models import user as users
from models.confirmation import Confirmation
from settings import from_environment
from tests.actors import Actor
from tests.conftest import PASSWORD, running_app


@pytest.fixture
def browser(app: Flask, root: Actor) -> FlaskClient:
    """A browser in which root has signed in to the console."""
    browser = app.test_client()
    assert enter(browser).status_code == 302
    return browser


def enter(browser: FlaskClient, password: str = PASSWORD, username: str = "root", **more: str) -> TestResponse:
    return browser.post("/console/login", data={"username": username, "password": password, **more})


def is_in(browser: FlaskClient) -> bool:
    return browser.get("/console/").status_code == 200


def console_session(root: Actor) -> str:
    found = root.get("/admin/sessions?client=console").json["items"]
    assert len(found) == 1
    return str(found[0]["session_id"])


def test_the_front_page_leads_to_the_door_and_back_to_the_page_that_was_wanted(
    client: FlaskClient, root: Actor
) -> None:
    assert client.get("/").location == "/console/"
    door = client.get("/console/users").location
    assert door == "/console/login?next=/console/users"
    assert enter(client, next="/console/users").location == "/console/users"


@pytest.mark.parametrize(
    "elsewhere",
    ["//elsewhere.example", "https://elsewhere.example/console/", "/\\elsewhere.example", "/console/\\..\\", "/docs",
     "javascript:alert(1)", "/console/\r\nSet-Cookie: a=b", "/consoleelsewhere", ""],
)  # fmt: skip
def test_after_the_sign_in_nobody_is_led_elsewhere(client: FlaskClient, root: Actor, elsewhere: str) -> None:
    assert enter(client, next=elsewhere).location == "/console/"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client: FlaskClient, root: Actor) -> None:
    cookie = enter(client).headers["Set-Cookie"]
    assert cookie.startswith("lastcall=") and "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie


def test_only_the_console_looks_at_the_cookie(browser: FlaskClient, root: Actor) -> None:
    assert "Cookie" in browser.get("/console/").headers["Vary"]
    for path in ("/api/v1/auth/me", "/console-of-nobody", "/healthz", "/"):
        answer = browser.get(path)
        assert "Vary" not in answer.headers and "Set-Cookie" not in answer.headers


def test_where_tls_ends_in_front_the_cookie_is_a_host_cookie(environment: dict[str, str]) -> None:
    settings = from_environment({**environment, "LASTCALL_SECURE_COOKIES": "true"})
    with running_app(settings) as app:
        cookie = app.test_client().get("/console/users", base_url="https://lastcall.example")
        assert app.config["SESSION_COOKIE_NAME"] == "__Host-lastcall" and app.config["SESSION_COOKIE_SECURE"]
        assert cookie.headers["Strict-Transport-Security"]


@pytest.mark.parametrize("path", ["/console/login", "/console/logout", "/console/everyone/logout", "/console/users"])
@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://elsewhere.example"},
     {"Origin": "null"}, {"Origin": "http://localhost.elsewhere.example"}, {"Origin": "http://[localhost"},
     {"Referer": "https://elsewhere.example/localhost"}, {"Origin": "", "Referer": "https://localhost@elsewhere.example"}],
)  # fmt: skip
def test_a_form_of_another_site_does_nothing(browser: FlaskClient, path: str, headers: dict[str, str]) -> None:
    response = browser.post(path, headers=headers, data={"phrase": "log out all users", "username": "x"})
    assert (response.status_code, response.json["code"]) == (403, "cross_site")
    assert is_in(browser)


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}, {"Referer": "http://localhost/x"}, {}],
)
def test_the_consoles_own_forms_are_carried_out(browser: FlaskClient, headers: dict[str, str]) -> None:
    assert browser.post("/console/logout", headers=headers).status_code == 302
    assert not is_in(browser)


def test_no_page_may_be_framed_nor_run_anything_inline(browser: FlaskClient) -> None:
    for path in ("/console/", "/console/login", "/docs", "/healthz", "/api/v1/auth/me"):
        headers = browser.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"


def test_no_page_tells_other_sites_its_address(browser: FlaskClient) -> None:
    assert browser.get("/console/?q=alice").headers["Referrer-Policy"] == "same-origin"


def test_passwords_are_masked_and_may_come_from_a_manager(client: FlaskClient, root: Actor) -> None:
    page = client.get("/console/login").text
    field = re.search(r"<input[^>]*name=\"password\"[^>]*>", page)
    assert field is not None and 'type="password"' in field[0] and 'autocomplete="current-password"' in field[0]
    assert "onpaste" not in page and "readonly" not in field[0]


@pytest.mark.parametrize("page", ["", "users", "history", "workers"])
def test_every_page_has_the_way_out(browser: FlaskClient, page: str) -> None:
    assert re.search(r"<form[^>]*action=\"/console/logout\"", browser.get("/console/" + page).text)


def test_without_scripts_a_page_says_what_it_cannot_do(browser: FlaskClient) -> None:
    assert re.search(r"<noscript>[^<]*<p[^>]*>[^<]*signs nobody out", browser.get("/console/").text)


def test_a_sign_in_is_answered_by_a_redirect_that_does_not_carry_the_password_on(
    client: FlaskClient, root: Actor
) -> None:
    assert enter(client).status_code in (302, 303)  # 307 and 308 would send the form again (RFC 9700, 4.12)


def test_a_stolen_cookie_is_dead_after_the_sign_out(app: Flask, browser: FlaskClient) -> None:
    stolen = browser.get_cookie("lastcall")
    assert stolen is not None
    browser.post("/console/logout")
    thief = app.test_client()
    thief.set_cookie("lastcall", stolen.value)
    assert not is_in(thief)


def test_a_cookie_from_before_the_sign_in_is_not_the_one_after_it(client: FlaskClient, root: Actor) -> None:
    client.get("/console/users")
    before = client.get_cookie("lastcall")
    enter(client)
    after = client.get_cookie("lastcall")
    assert after is not None and (before is None or before.value != after.value)


def test_ending_the_consoles_session_over_the_api_puts_the_browser_out(browser: FlaskClient, root: Actor) -> None:
    response = root.delete(f"/admin/sessions/{root.user_id}/{console_session(root)}", json={"reason": "Lost laptop"})
    assert response.status_code == 200
    assert browser.get("/console/").status_code == 302
    assert "Lost laptop" in browser.get("/console/login").text


def test_htmx_is_led_to_the_door_as_a_whole_page(browser: FlaskClient, root: Actor) -> None:
    root.delete(f"/admin/sessions/{root.user_id}/{console_session(root)}")
    response = browser.get("/console/sessions", headers={"HX-Request": "true"})
    assert response.status_code == 401 and response.headers["HX-Redirect"].startswith("/console/login")


@pytest.mark.parametrize(("method", "told"), [("GET", False), ("POST", True)])
def test_whoever_was_signed_out_meanwhile_is_told_that_his_act_was_not_done(
    browser: FlaskClient, root: Actor, alice: Actor, method: str, told: bool
) -> None:
    root.delete(f"/admin/sessions/{root.user_id}/{console_session(root)}")
    browser.open(f"/console/sessions/{alice.user_id}/logout", method=method, headers={"HX-Request": "true"})
    door = browser.get("/console/login").text
    assert "You were signed out" in door and ("What you had just asked for was not done." in door) == told
    assert alice.is_in()


def test_an_expired_access_token_is_refreshed_and_the_session_goes_on(environment: dict[str, str]) -> None:
    ttl_s = 2  # `exp` has whole seconds: with one, a token may be over as soon as it is there
    with running_app(from_environment({**environment, "LASTCALL_ACCESS_TTL": str(ttl_s)})) as app:
        with app.app_context():
            users.create_user("root", PASSWORD, ["admin"])
        browser = app.test_client()
        enter(browser)
        before = browser.get_cookie("lastcall")
        cutoffs = app.extensions["lastcall_server"].lastcall.cutoffs
        ends_s = cutoffs.now_s() + ttl_s + 0.1
        while cutoffs.now_s() < ends_s:
            assert is_in(browser)
        assert is_in(browser)
        after = browser.get_cookie("lastcall")
        assert before is not None and after is not None and before.value != after.value


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody gave his password longer ago than it counts."""
    monkeypatch.setattr("blueprints.console.PROOF_LASTS_S", 0)


PHRASE = {"phrase": "log out all users", "keep_me": "yes"}


def test_a_fresh_sign_in_may_log_out_all(browser: FlaskClient) -> None:
    response = browser.post("/console/everyone/logout", data=PHRASE)
    assert response.status_code == 200 and "In force on 1 of 1 workers" in response.text
    assert is_in(browser), "kept"


@pytest.mark.usefixtures("long_ago")
def test_what_cannot_be_undone_asks_for_the_password_again(browser: FlaskClient, alice: Actor) -> None:
    for password in ({}, {"your_password": "wrong"}):
        for path, form in (
            ("/console/everyone/logout", PHRASE),
            ("/console/shown/logout", {"user": "alice"}),
            (f"/console/users/{alice.user_id}/roles", {"roles": "admin"}),
            (f"/console/users/{alice.user_id}/password", {"password": "another password"}),
            (f"/console/users/{alice.user_id}/delete", {}),
            ("/console/users", {"username": "mallory", "password": PASSWORD, "roles": "admin"}),
        ):
            response = browser.post(path, data={**form, **password})
            assert (response.status_code, response.json["code"]) == (401, "wrong_credentials"), path
    assert alice.is_in()
    for dialog in (
        "/console/everyone/logout",
        "/console/shown/logout?user=alice",
        *(f"/console/users/{alice.user_id}/{change}" for change in ("roles", "password", "delete")),
    ):
        assert 'name="your_password"' in browser.get(dialog).text
    assert browser.post("/console/everyone/logout", data={**PHRASE, "your_password": PASSWORD}).status_code == 200
    assert not alice.is_in()


@pytest.mark.parametrize("phrase", ["", "log out all", "LOG OUT ALL USERS!", "log out all users please"])
def test_without_the_phrase_nobody_is_logged_out(browser: FlaskClient, alice: Actor, phrase: str) -> None:
    response = browser.post("/console/everyone/logout", data={**PHRASE, "phrase": phrase})
    assert response.status_code == 400
    assert alice.is_in()


def test_ending_what_the_filter_found_needs_a_filter(browser: FlaskClient, alice: Actor) -> None:
    assert browser.post("/console/shown/logout", data={"state": "active"}).status_code == 400
    assert alice.is_in()
    assert browser.post("/console/shown/logout", data={"user": "alice"}).status_code == 200
    assert not alice.is_in()


@pytest.mark.parametrize(("most", "says"), [(2, "at once"), (1, "thousands at a time")])
def test_the_dialog_says_whether_what_the_filter_found_ends_at_once(
    browser: FlaskClient, alice: Actor, monkeypatch: pytest.MonkeyPatch, most: int, says: str
) -> None:
    alice.again()
    monkeypatch.setattr(force_logout, "AT_ONCE", most)
    assert f"on every device, {says}." in browser.get("/console/shown/logout?user=alice").text
    assert "on every device, at once." in browser.get("/console/everyone/logout").text
    of_alice = f"/console/sessions/{alice.user_id}/logout"
    assert "on every device, at once." in browser.get(of_alice).text
    browser.post(of_alice)
    assert "No session is active at the moment" in browser.get(of_alice).text


@pytest.mark.parametrize("what", ["everyone", "shown", "user", "session", "password"])
def test_whoever_signs_himself_out_is_told_at_the_door_that_it_is_in_force(
    browser: FlaskClient, root: Actor, what: str
) -> None:
    path, form = {
        "everyone": ("/console/everyone/logout", {"phrase": PHRASE["phrase"]}),
        "shown": ("/console/shown/logout", {"user": "root"}),
        "user": (f"/console/sessions/{root.user_id}/logout", {}),
        "session": (f"/console/sessions/{root.user_id}/{console_session(root)}/end", {}),
        "password": (f"/console/users/{root.user_id}/password", {"password": "another password"}),
    }[what]
    response = browser.post(path, data=form, headers={"HX-Request": "true"})
    assert response.status_code == 204 and response.headers["HX-Redirect"] == "/console/login"
    told = browser.get("/console/login").text
    assert "In force on 1 of 1 workers in " in told and "You are signed out as well." in told


UNSETTLED, UNCONFIRMED = Confirmation(4, 4, settled=False), Confirmation(4, 3, unconfirmed=("the-deaf-one",))


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        (UNSETTLED, "4 of 4 workers have confirmed, but the database restarted less than one lease ago"),
        (UNCONFIRMED, "3 of 4 workers have confirmed<"),
    ],
)
def test_what_is_not_in_force_yet_says_why(
    browser: FlaskClient, alice: Actor, monkeypatch: pytest.MonkeyPatch, workers: Confirmation, says: str
) -> None:
    for place in ("models.force_logout.confirm", "blueprints.console_users.confirm"):
        monkeypatch.setattr(place, lambda *_, **__: workers)
    receipt = browser.post(f"/console/sessions/{alice.user_id}/logout").text
    change = browser.post(f"/console/users/{alice.user_id}/disable").text
    for text in (receipt, change):
        assert "Written. Not in force everywhere yet: " + says in text
    assert ("no word yet from" in receipt) == ("the-deaf-one" in receipt) == bool(workers.unconfirmed)


def test_whoever_ends_all_but_his_own_session_stays(browser: FlaskClient, alice: Actor) -> None:
    form = {"role": "admin", "keep_me": "yes"}
    assert "In force on 1 of 1 workers" in browser.post("/console/shown/logout", data=form).text
    assert is_in(browser)


@pytest.mark.parametrize("change", ["roles", "password", "disable", "delete"])
def test_whoever_changes_himself_is_warned_before(browser: FlaskClient, root: Actor, alice: Actor, change: str) -> None:
    assert "This includes you: " in browser.get(f"/console/users/{root.user_id}/{change}").text
    assert "This includes you: " not in browser.get(f"/console/users/{alice.user_id}/{change}").text


@pytest.mark.parametrize("state", ["active", "ended", "all"])
def test_every_part_of_the_filter_is_shown_with_a_way_out(browser: FlaskClient, alice: Actor, state: str) -> None:
    given = f"q=nobody&since=2026-01-02T03:04:05.678901Z&until=2999-01-01T00:00:00Z&state={state}"
    page = html.unescape(browser.get(f"/console/?user={alice.user_id}&{given}").text)
    assert "No session fits the filter." in page and "Clear the filter" in page
    assert "only <bdi>alice</bdi>" in page and "since <bdi>2026-01-02 03:04:05 UTC</bdi>" in page
    for name, value in (
        ("user", alice.user_id),
        ("since", "2026-01-02T03:04:05.678901Z"),
        ("until", "2999-01-01T00:00:00Z"),
    ):
        assert f'<input type="hidden" name="{name}" value="{value}">' in page
    ways_out = [re.findall(r"[?&](\w+)=", link) for link in re.findall(r'href="(/console/\?[^"]*)"', page)]
    every = ["user", "q", "since", "until", "state"]
    assert [sorted({*every} - {*kept}) for kept in ways_out] == [["user"], ["since"], ["until"]]
    assert "Clear the filter" not in browser.get(f"/console/?state={state}").text


def test_a_bad_filter_is_an_error_that_names_the_field(browser: FlaskClient) -> None:
    response = browser.get("/console/?ip=nowhere", headers={"Accept": "text/html"})
    assert response.status_code == 400 and "ip:" in response.text and response.mimetype == "text/html"
    response = browser.get("/console/sessions?limit=ten", headers={"HX-Request": "true"})
    assert response.status_code == 400 and response.json["code"] == "bad_request"


@pytest.mark.parametrize("error", [CutoffsStale, DatabaseAway])
def test_a_page_says_so_while_nobody_can_know_who_is_signed_in(
    app: Flask, browser: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: type[LastcallError]
) -> None:
    def check(raw: str) -> None:
        raise error

    with monkeypatch.context() as away:
        away.setattr(app.extensions["lastcall_server"].lastcall.guard, "check", check)
        for path in ("/console/", "/console/users", "/console/history", "/console/workers", "/console/login"):
            response = browser.get(path, headers={"Accept": "text/html"})
            assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0, path
            assert response.mimetype == "text/html" and "try again shortly" in response.text, path
    assert is_in(browser), "the cookie is kept"


def test_the_stream_of_a_tab_beats_so_that_scripts_can_hear_it(
    browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blueprints.events.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("blueprints.events.BEAT_EVERY_S", 0.0)
    stream = browser.get("/console/events")
    parts = stream.iter_encoded()
    assert [next(parts), next(parts)] == [b"retry: 2000\n\n", b"event: beat\ndata: {}\n\n"]
    stream.close()


def test_guessing_is_throttled_at_the_door_as_well(client: FlaskClient, root: Actor) -> None:
    statuses = [enter(client, "wrong password").status_code for _ in range(throttle.FAILURES_ALLOWED)]
    assert statuses == [401] * (throttle.FAILURES_ALLOWED - 1) + [429]
    response = enter(client)
    seconds = response.headers["Retry-After"]
    assert response.status_code == 429 and int(seconds) > 0 and f"Try again in {seconds} s." in response.text


def test_who_signs_in_while_the_database_is_away_keeps_the_form(
    client: FlaskClient, root: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise DatabaseAway

    monkeypatch.setattr("blueprints.console.sign_in.sign_in", away)
    response = enter(client, next="/console/users?q=carol")
    assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
    assert "try again shortly" in response.text and 'value="root"' in response.text
    assert 'value="/console/users?q=carol"' in response.text


def test_a_fragment_leads_back_to_the_page_that_asked_and_nowhere_else(client: FlaskClient) -> None:
    for asked, back in (
        ("http://localhost/console/users?q=carol", "/console/login?next=/console/users?q%3Dcarol"),
        ("http://[", "/console/login"),
        ("", "/console/login"),
    ):
        headers = {"HX-Request": "true", "HX-Current-URL": asked}
        assert client.get("/console/users/table", headers=headers).headers["HX-Redirect"] == back
    assert 'name="next" value="/console/"' in client.get("/console/login?next=//evil.example/console/").text


def test_a_fragment_that_has_not_changed_is_a_304(browser: FlaskClient) -> None:
    first = browser.get("/console/workers/table")
    assert first.status_code == 200
    for path in ("/console/sessions?q=nobody", "/console/users/table"):
        table = browser.get(path)
        again = browser.get(path, headers={"If-None-Match": table.headers["ETag"]})
        assert again.status_code == 304, path


def test_nothing_of_the_console_is_stored_by_anybody(client: FlaskClient, root: Actor) -> None:
    """Contract: every answer that holds a token or a session. The cookie holds tokens, and may come with any."""
    assert client.get("/console/").headers["Cache-Control"] == "no-store"
    assert enter(client).headers["Cache-Control"] == "no-store"
    for path in ("/console/", "/console/sessions", "/console/users", "/console/history", "/console/workers"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store", path


@pytest.mark.parametrize(("page", "rows"), [("/console/", "session-"), ("/console/users", "user-")])
def test_the_pages_of_a_table_lead_on_and_back(browser: FlaskClient, alice: Actor, page: str, rows: str) -> None:
    first = browser.get(f"{page}?limit=1").text
    assert "First page" not in first
    following = re.search(r'href="([^"]*cursor=[^"]*)"', first)
    assert following is not None
    second = browser.get(html.unescape(following[1])).text
    assert "First page" in second and re.findall(f'id="{rows}[^"]*"', second) != re.findall(f'id="{rows}[^"]*"', first)
