"""A real Chromium on real gunicorn workers."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect, sync_playwright

from tests.conftest import PASSWORD, StartGunicorn
from tests.gunicorn import Gunicorn
from tools.browser import find_chromium

# Without the last three Chromium asks its maker's hosts for updates at every start.
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# Chromium and htmx report each answer of 4xx and 5xx, which the tests look at themselves, and htmx each request that a
# newer one has replaced.
EXPECTED = ("Failed to load resource", "Response Status Error Code", "htmx:sendAbort", "htmx:afterRequest")


def stay_in_line() -> None:
    """As root Chromium puts itself before everyone else (nice -8), and the workers that it asks, or those of another
    test, do not run for up to half a second. Whom we start from here on may not (prctl(2), capabilities(7))."""
    if sys.platform == "linux":
        drop_from_bounding_set, sys_nice = 24, 23
        ctypes.CDLL(None).prctl(drop_from_bounding_set, sys_nice, 0, 0, 0)  # refused to whoever is not root: no need


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    stay_in_line()
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=find_chromium(playwright), args=[*CHROMIUM, "--disable-sync"])
    yield browser
    browser.close()


@pytest.fixture
def gunicorn(start_gunicorn: StartGunicorn) -> Gunicorn:
    return start_gunicorn(2)


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, gunicorn: Gunicorn) -> Iterator[OpenPage]:
    """A page of a browser that knows nothing yet. What its scripts complain about, and any request to another host,
    fails the test."""
    contexts, complaints = [], []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            complaints.append(message.text)

    def watch(request: Request) -> None:
        if not request.url.startswith((gunicorn.url, "data:")):
            complaints.append(f"asked another host: {request.url}")

    def open_page(**options: object) -> Page:
        context = browser.new_context(base_url=gunicorn.url, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", watch)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


SignIn = Callable[..., Page]


@pytest.fixture
def sign_in(open_page: OpenPage) -> SignIn:
    """An admin's page, signed in and live."""

    def sign_in(username: str = "admin", **options: object) -> Page:
        page = open_page(**options)
        page.goto("/")
        page.get_by_label("Username").fill(username)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        return page

    return sign_in


MakePerson = Callable[..., dict[str, str]]


@pytest.fixture
def make_person(gunicorn: Gunicorn) -> MakePerson:
    """A user made over the API, signed in elsewhere: his tokens."""

    def make(username: str, *roles: str) -> dict[str, str]:
        admin = gunicorn.sign_in("admin", PASSWORD)["access_token"]
        body = {"username": username, "password": PASSWORD, "roles": list(roles)}
        assert gunicorn.ask("POST", "/api/v1/admin/users", token=admin, body=body).status == 201
        assert gunicorn.ask("POST", "/api/v1/auth/logout", token=admin).status == 204
        return gunicorn.sign_in(username, PASSWORD)

    return make
