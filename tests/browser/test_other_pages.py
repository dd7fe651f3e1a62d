"""Sign-in, Users, History, Workers and the API's page; what other people wrote is shown as text."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import MakePerson, OpenPage, SignIn
from tests.conftest import PASSWORD
from tests.gunicorn import ROOT, Gunicorn


def go_to(page: Page, name: str) -> None:
    """Another page of the console, once its scripts are at work."""
    page.get_by_role("navigation", name="Console").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()


def test_a_wrong_password_says_so_and_a_user_without_the_role_stays_out(
    open_page: OpenPage, make_person: MakePerson
) -> None:
    make_person("alice", "viewer")
    page = open_page()
    page.goto("/console/users")
    for username, password, answer in (
        ("admin", "wrong password", "The user name or the password is wrong"),
        ("alice", PASSWORD, "needs the role admin"),
    ):
        page.get_by_label("Username").fill(username)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text(answer)
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Users")).to_be_visible()


def test_users_are_created_changed_and_deleted(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    page = sign_in()
    go_to(page, "Users")
    page.get_by_role("button", name="Create user").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Username").fill("carol")
    dialog.get_by_label("Password").fill(PASSWORD)
    dialog.get_by_label("Roles").fill("viewer, billing")
    dialog.get_by_role("button", name="Create user").click()
    row = page.get_by_role("row").filter(has_text="carol")
    expect(row).to_contain_text("billing")
    carol = gunicorn.sign_in("carol", PASSWORD)

    row.get_by_role("button", name="Roles").click()
    dialog.get_by_label("Roles, separated by spaces").fill("viewer")
    dialog.get_by_role("button", name="Set roles").click()
    expect(page.get_by_role("status")).to_contain_text("In force on 2 of 2 workers")
    expect(row).not_to_contain_text("billing")
    assert gunicorn.ask("GET", "/api/v1/auth/me", token=carol["access_token"]).status == 401

    row.get_by_role("button", name="Disable").click()
    dialog.get_by_role("button", name="Disable").click()
    expect(row).to_contain_text("disabled")
    row.get_by_role("button", name="Enable").click()
    dialog.get_by_role("button", name="Enable").click()
    expect(row).not_to_contain_text("disabled")

    row.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status")).to_contain_text("carol was deleted")
    expect(row).to_have_count(0)


def test_a_change_of_a_user_is_told_as_a_receipt_is(sign_in: SignIn, make_person: MakePerson) -> None:
    make_person("carol", "viewer")
    page = sign_in()
    go_to(page, "Users")
    row, dialog = page.get_by_role("row").filter(has_text="carol"), page.get_by_role("dialog")
    row.get_by_role("button", name="Roles").click()
    roles = dialog.get_by_label("Roles, separated by spaces")
    roles.fill("viewer größe")
    dialog.get_by_role("button", name="Set roles").click()
    expect(dialog.get_by_role("alert")).to_contain_text("a role is up to 64 letters, digits and . _ : -")
    roles.fill("")
    dialog.get_by_role("button", name="Set roles").click()
    status = page.get_by_role("status")
    expect(status).to_have_text(
        re.compile(r"In force on 2 of 2 workers in \d+ ms\s+carol has no role.\s+1 session ended.")
    )
    expect(status.get_by_role("link", name="History")).to_be_visible()
    status.get_by_role("button", name="Dismiss").click()
    expect(status).to_be_empty()


def test_neither_a_held_enter_nor_a_second_click_answers_the_dialog_that_it_opened(
    sign_in: SignIn, make_person: MakePerson
) -> None:
    make_person("carol")
    page = sign_in()
    go_to(page, "Users")
    page.get_by_role("row").filter(has_text="carol").get_by_role("button", name="Delete").focus()
    page.keyboard.down("Enter")
    dialog = page.get_by_role("dialog", name="Delete carol?")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    changes: list[str] = []
    page.on("request", lambda request: changes.append(request.url) if request.method == "POST" else None)
    page.keyboard.down("Enter")  # again without an up: a repeat
    dialog.get_by_role("button", name="Delete").hover()
    page.mouse.down(click_count=2)
    page.mouse.up(click_count=2)
    page.keyboard.up("Enter")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert changes == []


def test_what_another_admin_changes_is_seen_at_the_next_beat(sign_in: SignIn, psql: psycopg.Connection) -> None:
    page = sign_in()
    go_to(page, "Users")
    page.evaluate("kept = stream; disconnect()")  # or the admin's own sign-in would tell of it
    while page.evaluate("waiting.size > 0 || document.querySelector('.htmx-request') !== null"):
        pass
    psql.execute("INSERT INTO users (username, password_hash) VALUES ('carol', '')")
    page.evaluate("kept.dispatchEvent(new Event('beat'))")
    expect(page.get_by_role("row").filter(has_text="carol")).to_be_visible()


def test_the_last_admin_is_told_why_he_cannot_be_deleted(sign_in: SignIn) -> None:
    page = sign_in()
    go_to(page, "Users")
    page.get_by_role("row").filter(has_text="this is you").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("alert")).to_contain_text("This is the last admin")


def test_the_workers_page_shows_every_worker_live(sign_in: SignIn) -> None:
    page = sign_in()
    go_to(page, "Workers")
    expect(page.get_by_text("2 of 2 live")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="answers this page")).to_have_count(1)


def test_a_stream_that_has_fallen_silent_is_not_called_live(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    page = sign_in()
    page.clock.install()
    page.reload()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("kept = stream")
    for _ in range(2):
        page.clock.fast_forward(8000)
        page.evaluate("stream.dispatchEvent(new Event('beat'))")
    assert page.evaluate("kept === stream"), "what beats is kept"
    pids = [line.worker_pid() for line in gunicorn.lines()]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        page.clock.fast_forward(12_000)
        expect(page.get_by_text("Reconnecting", exact=True)).to_be_visible()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert page.evaluate("kept !== stream")


def test_a_table_that_fails_behind_a_dialog_does_not_speak_for_it(sign_in: SignIn) -> None:
    page = sign_in()
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.route("**/console/sessions?*", lambda route: route.fulfill(status=503, json={"detail": "away"}))
    page.evaluate("htmx.trigger('#sessions', 'lastcall:changed')")
    expect(page.locator("#toasts")).to_have_text("away")
    expect(dialog).not_to_contain_text("away")


def test_a_table_that_is_not_answered_says_as_of_when_it_is(sign_in: SignIn) -> None:
    page = sign_in()
    go_to(page, "Workers")
    stale = page.locator("#workers[data-stale]")
    expect(stale).to_have_count(0)
    page.route("**/workers/table", lambda route: route.fulfill(status=503, json={"detail": "away"}))
    page.evaluate("htmx.trigger('#workers', 'lastcall:changed')")
    expect(stale).to_have_attribute("data-stale", re.compile(r"As of \d\d:\d\d:\d\d UTC"))
    assert page.evaluate("getComputedStyle(document.querySelector('#workers'), '::before').content") != "none"
    expect(stale.get_by_role("table")).to_have_css("opacity", "1")  # its buttons still work, and are read
    page.unroute_all()
    page.evaluate("htmx.trigger('#workers', 'lastcall:changed')")
    expect(stale).to_have_count(0)


def test_what_others_wrote_is_shown_as_text(sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn) -> None:
    name = "<script>alert(1)</script>\u202eevil"
    make_person(name)
    body = {"username": name, "password": PASSWORD}
    gunicorn.ask("POST", "/api/v1/auth/login", body=body, headers={"User-Agent": "<img src=x onerror=alert(1)>" * 100})
    page = sign_in()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    expect(page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    assert page.locator("tbody img").count() == 0
    page.get_by_role("row").filter(has_text="<script>").first.get_by_role("button", name="Force logout").click()
    expect(page.get_by_role("dialog")).to_contain_text("Force logout <script>alert(1)</script>")
    expect(page.get_by_role("dialog").get_by_role("heading").locator("bdi")).to_have_text(name)  # the «?» stays behind


def test_the_api_page_loads_from_this_server_alone(sign_in: SignIn) -> None:
    page = sign_in()
    page.goto("/docs")
    expect(page.get_by_text("/api/v1/auth/login")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_accessible(sign_in: SignIn, make_person: MakePerson, scheme: str) -> None:
    make_person("alice", "viewer")
    page = sign_in(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    for path in ("/console/", "/console/?user=alice", "/console/users", "/console/history", "/console/workers"):
        page.goto(path)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    page.goto("/console/")
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    dialog.get_by_role("textbox").fill("log out all users")
    dialog.get_by_role("button", name="Log out all users").click()
    expect(page.get_by_role("status")).to_contain_text("In force")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_what_has_the_focus_is_outlined_even_where_colours_are_forced(sign_in: SignIn) -> None:
    page = sign_in(forced_colors="active")
    page.get_by_role("link", name="API").focus()
    kinds = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_css("outline-width", "2px")
        expect(page.locator(":focus")).to_have_css("outline-style", "solid")
        kinds.add(page.evaluate("document.activeElement.tagName"))
    assert kinds >= {"A", "BUTTON", "INPUT", "SELECT"}


@pytest.mark.parametrize("width", [800, 1000, 1280])
def test_the_state_and_the_order_are_not_cut_off(sign_in: SignIn, width: int) -> None:
    page = sign_in(viewport={"width": width, "height": 800})
    for name in ("State", "Order"):
        widths = page.get_by_label(name).evaluate(
            "(field) => [field.offsetWidth, (field.style.width = 'max-content', field.offsetWidth)]"
        )
        assert widths[0] >= widths[1], name


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_the_page(sign_in: SignIn, make_person: MakePerson, width: int) -> None:
    make_person("x" * 100, *(f"role-number-{number}" for number in range(8)))
    page = sign_in(viewport={"width": width, "height": 800})
    for path in ("/console/", "/console/users", "/console/history", "/console/workers"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_the_picture_of_the_readme_shows_a_receipt(sign_in: SignIn, make_person: MakePerson) -> None:
    """`make pictures` keeps what this test sees as docs/images/sessions.png."""
    for name in ("ada", "grace", "barbara", "edsger", "linus"):
        make_person(name, "editor" if name != "linus" else "billing")
    page = sign_in(viewport={"width": 1280, "height": 640})
    page.get_by_role("row").filter(has_text="linus").get_by_role("button", name="Force logout").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("Lost laptop")
    page.get_by_role("dialog").get_by_role("button", name="Force logout").click()
    expect(page.get_by_role("status")).to_contain_text("In force on 2 of 2 workers")
    expect(page.get_by_role("row").filter(has_text="linus")).to_have_count(0)
    folder = os.environ.get("LASTCALL_PICTURES")
    if folder:
        Path(ROOT / folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=ROOT / folder / "sessions.png", animations="disabled")


def test_who_comes_back_finds_what_he_had_searched_for(sign_in: SignIn, make_person: MakePerson) -> None:
    for name in ("alice", "bob"):
        make_person(name)
    page = sign_in()
    go_to(page, "Users")
    page.get_by_role("searchbox", name="Search users").fill("ali")
    expect(page.get_by_role("row").filter(has_text="bob")).to_have_count(0)
    page.get_by_role("link", name="1 session").click()
    expect(page.get_by_role("link", name="only alice")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("searchbox", name="Search users")).to_have_value("ali")
    expect(page.get_by_role("row").filter(has_text="alice")).to_have_count(1)
    expect(page.get_by_role("row").filter(has_text="bob")).to_have_count(0)


def test_who_was_signed_out_comes_back_to_the_page_with_its_filter(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    page = sign_in()
    page.get_by_role("searchbox", name="Search sessions").fill("curl")
    expect(page).to_have_url(re.compile("q=curl"))
    admin = gunicorn.sign_in("admin", PASSWORD)
    path = f"/api/v1/admin/sessions/{admin['user_id']}"
    assert gunicorn.ask("DELETE", path, token=admin["access_token"]).status == 200
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("searchbox", name="Search sessions")).to_have_value("curl")


def test_who_mistypes_his_password_types_only_that_again(open_page: OpenPage) -> None:
    page = open_page()
    page.goto("/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    expect(page.get_by_label("Username")).to_have_value("admin")
    expect(page.get_by_label("Password")).to_be_focused()


def test_what_a_search_has_found_is_read_aloud_and_what_arrives_is_not(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    make_person("alice")
    page = sign_in()
    told = page.locator("[aria-live=polite]:not([role=status])")
    page.get_by_role("searchbox", name="Search sessions").fill("ali")
    expect(told).to_have_text("1 active session, as filtered")
    gunicorn.sign_in("alice", PASSWORD)
    expect(page.locator("#sessions-count")).to_contain_text("2 active sessions")
    expect(told).to_have_text("1 active session, as filtered")
    go_to(page, "Users")
    page.get_by_role("searchbox", name="Search users").fill("nobody like that")
    expect(told).to_have_text("0 users")
    expect(page.locator("#users-count")).to_have_text("0 users")
