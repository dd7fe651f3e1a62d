"""The Sessions page, as an admin uses it in an incident."""

from __future__ import annotations

import re

import psycopg
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import MakePerson, SignIn
from tests.conftest import PASSWORD
from tests.gunicorn import Gunicorn

RECEIPT = re.compile(r"In force on 2 of 2 workers in \d+ ms")


def row_of(page: Page, username: str) -> object:
    return page.get_by_role("table", name="Active sessions").get_by_role("row").filter(has_text=username)


def is_in(gunicorn: Gunicorn, person: dict[str, str]) -> bool:
    """Whether any worker accepts his token; they must agree."""
    statuses = {line.ask("GET", "/api/v1/auth/me", token=person["access_token"]).status for line in gunicorn.lines()}
    assert len(statuses) == 1
    return statuses == {200}


def test_the_console_sign_in_is_a_session_like_any_other(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    page = sign_in()
    expect(row_of(page, "this is you")).to_contain_text("console")
    admin = gunicorn.sign_in("admin", PASSWORD)
    path = f"/api/v1/admin/sessions/{admin['user_id']}"
    mine = gunicorn.ask("GET", path + "?client=console", token=admin["access_token"]).json["items"][0]["session_id"]
    assert gunicorn.ask("DELETE", f"{path}/{mine}", token=admin["access_token"]).status == 200
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_text("You were signed out")).to_be_visible()


def test_a_force_logout_shows_whom_it_hits_and_that_it_is_in_force(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    alice, bob = make_person("alice", "viewer"), make_person("bob")
    page = sign_in()
    row_of(page, "alice").get_by_role("button", name="Force logout").click()
    dialog = page.get_by_role("dialog", name="Force logout alice?")
    expect(dialog).to_contain_text("Ends 1 session")
    dialog.get_by_label("Reason").fill("Lost laptop")
    dialog.get_by_role("button", name="Force logout").click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    assert not is_in(gunicorn, alice)
    assert is_in(gunicorn, bob)
    expect(dialog).to_be_hidden()
    expect(row_of(page, "alice")).to_have_count(0)
    page.get_by_role("link", name="History").first.click()
    expect(page.get_by_role("row").filter(has_text="alice")).to_contain_text("Lost laptop")


def test_ending_a_session_leaves_the_others_of_the_user(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    first = make_person("alice")
    second = gunicorn.sign_in("alice", PASSWORD)
    page = sign_in()
    page.locator(f"#end-{first['session_id']}").click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    assert not is_in(gunicorn, first)
    assert is_in(gunicorn, second)


def test_a_button_is_never_pressed_for_another_row_than_the_one_that_was_seen(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    people = [make_person(name) for name in ("alice", "bob", "carol")]  # the newest is the uppermost
    page = sign_in()
    button = page.locator(f"#end-{people[2]['session_id']}")
    box = button.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.dblclick(x, y, delay=200)
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    expect(row_of(page, "carol")).to_have_count(0)
    page.mouse.click(x, y)  # bob has come to her place just now
    expect(page.locator(".moved")).to_have_count(0)
    assert [is_in(gunicorn, person) for person in people] == [True, True, False]

    page.mouse.move(x + 1, y)  # about to press
    make_person("dave")
    page.wait_for_timeout(1000)
    expect(row_of(page, "dave")).to_have_count(0)
    page.mouse.click(x + 1, y)
    expect(row_of(page, "dave")).to_have_count(1)
    assert [is_in(gunicorn, person) for person in people] == [True, False, False]


def test_cancel_and_escape_do_nothing(sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn) -> None:
    alice = make_person("alice")
    page = sign_in()
    button = row_of(page, "alice").get_by_role("button", name="Force logout")
    dialog = page.get_by_role("dialog", name="Force logout alice?")
    button.click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    button.click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    assert is_in(gunicorn, alice)


def test_a_slow_answer_is_waited_for_visibly_and_never_comes_into_another_persons_dialog(
    sign_in: SignIn, make_person: MakePerson
) -> None:
    alice, bob = make_person("alice"), make_person("bob")
    page = sign_in()
    page.route(f"**/{alice['user_id']}/logout", lambda route: None)  # never answered
    button = page.locator(f"#logout-{alice['session_id']}")
    button.click()
    expect(button).to_have_css("cursor", "progress")
    with page.expect_event("requestfailed", lambda request: alice["user_id"] in request.url, timeout=5000):
        page.locator(f"#logout-{bob['session_id']}").click()
    expect(page.get_by_role("dialog", name="Force logout bob?")).to_be_visible()


def test_log_out_all_needs_the_phrase_and_keeps_me(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    alice = make_person("alice")
    page = sign_in()
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog", name="Log out all users?")
    submit = dialog.get_by_role("button", name="Log out all users")
    expect(dialog).to_contain_text("Ends 2 sessions of 2 users (1 admin among them) on every device, at once.")
    expect(submit).to_be_disabled()
    dialog.get_by_role("textbox").fill("log out all")
    expect(submit).to_be_disabled()
    dialog.get_by_role("textbox").fill("log out all users")
    dialog.get_by_role("checkbox", name="Keep me signed in").check()
    submit.click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    assert not is_in(gunicorn, alice)
    expect(row_of(page, "alice")).to_have_count(0)
    expect(row_of(page, "this is you")).to_have_count(1)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.reload()
    expect(row_of(page, "this is you")).to_have_count(1)


def test_log_out_all_without_keep_me_leads_to_the_door(sign_in: SignIn) -> None:
    page = sign_in()
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog", name="Log out all users?")
    dialog.get_by_role("checkbox", name="Keep me signed in").uncheck()
    dialog.get_by_role("textbox").fill("log out all users")
    dialog.get_by_role("button", name="Log out all users").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)


GONE = "INSERT INTO workers (id, service, host, pid, lease_s) VALUES (gen_random_uuid(), 'gone', 'far', 1, 3)"
"""A third worker, which is gone: an answer waits for its lease, and meanwhile the stream says what has changed."""


def test_signing_out_is_told_at_the_door_however_long_it_takes(sign_in: SignIn, psql: psycopg.Connection) -> None:
    page = sign_in()
    psql.execute(GONE)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=15_000)
    expect(page.get_by_role("status")).to_have_text("Signed out.")


def test_no_table_leads_to_the_door_before_the_proof_is_there(sign_in: SignIn, psql: psycopg.Connection) -> None:
    page = sign_in()
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog", name="Log out all users?")
    dialog.get_by_role("checkbox", name="Keep me signed in").uncheck()
    dialog.get_by_role("textbox").fill("log out all users")
    psql.execute(GONE)
    dialog.get_by_role("button", name="Log out all users").click()
    page.keyboard.press("Escape")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_disabled()
    expect(dialog.get_by_text("Waiting until every worker has confirmed…")).to_be_visible()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=15_000)
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    expect(page.get_by_role("status")).to_contain_text("1 worker fenced")


def test_the_search_narrows_the_table_and_the_address_follows(sign_in: SignIn, make_person: MakePerson) -> None:
    make_person("alice")
    make_person("bob")
    page = sign_in()
    expect(row_of(page, "alice")).to_have_count(1)
    page.get_by_role("searchbox", name="Search sessions").fill("bo")
    expect(row_of(page, "alice")).to_have_count(0)
    expect(row_of(page, "bob")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"/console/\?.*q=bo"))
    page.reload()
    expect(row_of(page, "bob")).to_have_count(1)
    expect(row_of(page, "alice")).to_have_count(0)


def test_a_filter_that_cannot_be_read_is_marked_for_as_long_as_it_stands(sign_in: SignIn) -> None:
    page = sign_in()
    field, mistake = page.get_by_label("Address or network"), page.locator("#filter-mistake")
    field.fill("10.0.0.")
    expect(mistake).to_have_text("Not filtered: give an address or a network such as 10.0.0.0/8.")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#sessions[data-stale]")).to_have_count(1)
    expect(page.locator("#toasts")).to_be_empty()
    field.fill("10.0.0.0/8")
    expect(mistake).to_be_empty()
    expect(page.locator("[aria-invalid], [data-stale]")).to_have_count(0)


def test_a_sign_in_elsewhere_arrives_while_search_and_focus_stay(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    make_person("alice")
    page = sign_in()
    search = page.get_by_role("searchbox", name="Search sessions")
    search.fill("alice")
    expect(row_of(page, "this is you")).to_have_count(0)
    button = row_of(page, "alice").get_by_role("button", name="Force logout")
    button.focus()
    gunicorn.sign_in("alice", PASSWORD)
    expect(row_of(page, "alice")).to_have_count(2)
    expect(search).to_have_value("alice")
    expect(page.locator(":focus")).to_have_text("Force logout")


def test_the_focus_stays_on_a_link_that_is_sent_anew(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    make_person("alice")
    page = sign_in()
    page.get_by_role("searchbox", name="Search sessions").fill("alice")
    expect(page.locator("#sessions-count")).to_contain_text("1 active session")
    page.get_by_role("link", name="Clear the filter").focus()
    gunicorn.sign_in("alice", PASSWORD)
    expect(page.locator("#sessions-count")).to_contain_text("2 active sessions")
    expect(page.locator(":focus")).to_have_text("Clear the filter")


def test_a_second_admins_page_follows_by_itself(sign_in: SignIn, make_person: MakePerson) -> None:
    make_person("alice")
    first, second = sign_in(), sign_in()
    expect(row_of(second, "alice")).to_have_count(1)
    row_of(first, "alice").get_by_role("button", name="Force logout").click()
    first.get_by_role("dialog").get_by_role("button", name="Force logout").click()
    expect(first.get_by_role("status")).to_have_text(RECEIPT)
    expect(row_of(second, "alice")).to_have_count(0)


def test_only_what_the_filter_found_is_ended(sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn) -> None:
    alice, bob = make_person("alice", "billing"), make_person("bob", "viewer")
    page = sign_in()
    page.get_by_label("Role").fill("billing")
    expect(row_of(page, "bob")).to_have_count(0)
    page.get_by_role("button", name="End the sessions found").click()
    dialog = page.get_by_role("dialog", name="End the sessions found?")
    expect(dialog).to_contain_text("Ends 1 session")
    dialog.get_by_role("button", name="End sessions").click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    assert not is_in(gunicorn, alice)
    assert is_in(gunicorn, bob)


def test_the_receipt_is_seen_wherever_one_is_on_the_page_and_goes_when_the_next_is_asked_for(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    make_person("alice")
    for _ in range(10):
        gunicorn.sign_in("admin", PASSWORD)
    page = sign_in(viewport={"width": 1280, "height": 400})
    button, status = page.locator("[id^=end-]").last, page.get_by_role("status")
    button.click()
    expect(status).to_have_text(RECEIPT)
    expect(status).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollY") > 0
    expect(page.locator("[id^=session-]")).to_have_count(11)
    page.route("**/end", lambda route: None)  # never answered
    page.locator("[id^=end-]").nth(-2).click()
    expect(status).to_be_empty()


def test_the_next_page_begins_at_its_top_and_stays(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    for _ in range(20):
        gunicorn.sign_in("admin", PASSWORD)
    page = sign_in(viewport={"width": 1280, "height": 400})
    page.goto("/console/?limit=10")
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="First page")).to_have_count(1)
    expect(page.locator("#sessions-count")).to_be_in_viewport()
    rows = page.locator("#sessions-rows > tr")
    shown = [row.get_attribute("id") for row in rows.all()]
    with page.expect_response(lambda response: "/console/sessions?" in response.url):
        page.evaluate("htmx.trigger('#sessions', 'lastcall:changed')")
    assert [row.get_attribute("id") for row in rows.all()] == shown and len(shown) == 10


def test_what_a_link_has_narrowed_stays_so_when_the_table_looks_again(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn, psql: psycopg.Connection
) -> None:
    alice = make_person("alice")
    page = sign_in()
    until = psql.execute("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").fetchone()[0]
    bob = make_person("bob")
    page.goto(f"/console/?user={alice['user_id']}")
    expect(page.get_by_role("link", name="only alice")).to_be_visible()
    page.goto(f"/console/?until={until}")
    with page.expect_response(lambda response: "/console/sessions?" in response.url):
        page.evaluate("htmx.trigger('#sessions', 'lastcall:changed')")
    expect(row_of(page, "alice")).to_have_count(1)
    expect(row_of(page, "bob")).to_have_count(0)
    page.get_by_role("button", name="End the sessions found").click()
    page.get_by_role("dialog").get_by_role("button", name="End sessions").click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    assert not is_in(gunicorn, alice)
    assert is_in(gunicorn, bob)
    page.get_by_role("link", name="until").click()
    expect(row_of(page, "bob")).to_have_count(1)


def test_a_force_logout_works_with_the_keyboard_alone(
    sign_in: SignIn, make_person: MakePerson, gunicorn: Gunicorn
) -> None:
    alice = make_person("alice")
    page = sign_in()
    page.get_by_role("searchbox", name="Search sessions").focus()
    page.keyboard.type("alice")
    expect(row_of(page, "this is you")).to_have_count(0)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.locator(":focus").get_attribute("id") == f"logout-{alice['session_id']}":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Force logout alice?")).to_be_visible()
    page.keyboard.press("Enter")  # the focus is in the reason: Enter sends the form
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    expect(row_of(page, "alice")).to_have_count(0)
    expect(page.get_by_role("status")).to_be_focused()
    assert not is_in(gunicorn, alice)


def test_a_table_that_has_not_changed_is_not_sent_again(sign_in: SignIn, make_person: MakePerson) -> None:
    page = sign_in()

    def look() -> int:
        with page.expect_response(lambda response: "/console/sessions?" in response.url) as found:
            page.evaluate("htmx.trigger('#sessions', 'lastcall:changed')")
        return found.value.status

    while look() != 304:  # the sign-in itself is still being noted
        pass
    expect(row_of(page, "this is you")).to_have_count(1)
    make_person("alice")
    expect(row_of(page, "alice")).to_have_count(1)
    page.get_by_role("searchbox", name="Search sessions").fill("alice")
    expect(row_of(page, "this is you")).to_have_count(0)
    page.get_by_role("searchbox", name="Search sessions").fill("")
    expect(row_of(page, "this is you")).to_have_count(1)


def test_the_focus_is_never_thrown_to_the_top_of_the_page(sign_in: SignIn, make_person: MakePerson) -> None:
    alice = make_person("alice")
    page = sign_in()
    status = page.get_by_role("status")
    page.locator(f"#end-{alice['session_id']}").press("Enter")  # disabled while it is asked for, and gone afterwards
    expect(status).to_have_text(RECEIPT)
    expect(status).to_be_focused()
    expect(row_of(page, "alice")).to_have_count(0)
    expect(status).to_be_focused()
    status.get_by_role("button", name="Dismiss").press("Enter")
    expect(status).to_be_empty()
    expect(status).to_be_focused()


def test_what_went_wrong_is_in_view_beside_the_button_that_was_pressed(sign_in: SignIn) -> None:
    page = sign_in(viewport={"width": 640, "height": 360})  # 1280 by 720 at 200 %
    page.route("**/everyone/logout", lambda route: route.fallback() if route.request.method == "GET" else refuse(route))
    page.get_by_role("button", name="Log out all users").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("to confirm").fill("log out all users")
    button = dialog.get_by_role("button", name="Log out all users")
    button.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("wrong password")
    expect(dialog.get_by_role("alert")).to_be_in_viewport(ratio=1)
    expect(button).to_be_focused()


def refuse(route: Route) -> None:
    route.fulfill(status=401, json={"detail": "wrong password"})


def test_the_receipt_hides_nothing_that_has_the_focus(sign_in: SignIn, gunicorn: Gunicorn) -> None:
    for _ in range(8):
        gunicorn.sign_in("admin", PASSWORD)
    page = sign_in(viewport={"width": 800, "height": 500}, reduced_motion="reduce")
    page.locator("[id^=end-]").last.click()
    expect(page.get_by_role("status")).to_have_text(RECEIPT)
    expect(page.locator("[id^=session-]")).to_have_count(8)
    page.evaluate("scrollTo(0, 0)")
    page.locator("[id^=logout-]").first.focus()
    top = page.get_by_role("status").bounding_box()["y"]
    for _ in range(20):
        box = page.locator(":focus").bounding_box()
        assert box["y"] + box["height"] <= top
        page.keyboard.press("Tab")


def test_an_act_without_an_answer_may_be_done_and_a_look_changes_nothing(
    sign_in: SignIn, make_person: MakePerson
) -> None:
    alice = make_person("alice")
    page = sign_in()
    toast = page.locator("#toasts").get_by_role("alert")
    page.route("**/logout", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    row_of(page, "alice").get_by_role("button", name="Force logout").click()
    expect(toast).to_have_text("The server answered 502. Nothing was changed: try again.")
    page.route("**/end", lambda route: route.fulfill(status=504, body="<h1>Gateway time-out</h1>"))
    page.locator(f"#end-{alice['session_id']}").click()
    expect(toast).to_contain_text("The server answered 504. It may have been done all the same: look at the history")
    toast.get_by_role("button", name="Dismiss").click()
    expect(toast).to_have_count(0)


def test_a_look_that_fails_again_and_again_is_told_once_and_hides_no_other_mistake(
    sign_in: SignIn, make_person: MakePerson
) -> None:
    alice = make_person("alice")
    page = sign_in()
    toasts = page.locator("#toasts").get_by_role("alert")
    away = {"detail": "away"}
    page.route("**/console/sessions?*", lambda route: route.fulfill(status=503, json=away))
    page.route("**/end", lambda route: route.fulfill(status=503, json=away))

    def look() -> None:
        with page.expect_response(lambda response: "/console/sessions?" in response.url):
            page.evaluate("htmx.trigger('#sessions', 'lastcall:changed')")

    look()
    expect(toasts).to_have_text(["away"])
    page.evaluate("told = document.querySelector('#toasts [role=alert]')")
    look()
    page.locator(f"#end-{alice['session_id']}").click()
    expect(toasts).to_have_text(["away", "away"])
    look()
    assert page.evaluate("told.isConnected")
    page.unroute("**/console/sessions?*")
    look()
    expect(toasts).to_have_text(["away"])  # that of the act
    assert not page.evaluate("told.isConnected")
