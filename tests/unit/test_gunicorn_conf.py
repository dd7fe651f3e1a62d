"""gunicorn.conf.py: what each worker does once it is there."""

from __future__ import annotations

import gc
import http.client
import json
import logging
import signal
import socket
from collections.abc import Iterator
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http import errors

from tests.gunicorn import ROOT


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    stop = signal.getsignal(signal.SIGTERM)
    yield
    gc.unfreeze()
    signal.signal(signal.SIGTERM, stop)


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> dict[str, Any]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return run_path(str(ROOT / "gunicorn.conf.py"))


def test_what_a_worker_starts_with_is_not_searched_for_garbage(conf: dict[str, Any]) -> None:
    at_start, searched = len(gc.get_objects()), []
    server = SimpleNamespace(start=lambda: searched.append(len(gc.get_objects())))
    worker = SimpleNamespace(app=SimpleNamespace(callable=SimpleNamespace(extensions={"lastcall_server": server})))
    conf["post_worker_init"](worker)
    assert len(searched) == 1 and searched[0] < at_start / 100


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidHeader("Authorization Bearer Kx7"), "400 Bad Request", "bad_request"),
        (errors.LimitRequestHeaders("Kx7"), "431 Request Header Fields Too Large", "header_too_large"),
    ],
)
def test_what_is_no_http_gets_problem_details_too(
    conf: dict[str, Any], caplog: pytest.LogCaptureFixture, error: Exception, status: str, code: str
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            worker = SimpleNamespace(log=logging.getLogger("gunicorn.error"))
            conf["Worker"].handle_error(worker, None, ours, ("192.0.2.1", 1), error)
        answer = http.client.HTTPResponse(theirs)
        answer.begin()
        body = json.loads(answer.read())
    assert f"{answer.status} {answer.reason}" == status == f"{body['status']} {body['title']}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.headers["Connection"], answer.headers["Cache-Control"]) == ("close", "no-store")
    assert (body["code"], body["type"]) == (code, "about:blank")
    assert "Kx7" not in str(body) + caplog.text


def test_the_log_level_is_gunicorns_and_a_wrong_one_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in {**environment, "LOG_LEVEL": "Error"}.items():
        monkeypatch.setenv(name, value)
    assert run_path(str(ROOT / "gunicorn.conf.py"))["loglevel"] == "error"
    monkeypatch.setenv("LOG_LEVEL", "verbose")
    with pytest.raises(SystemExit, match=r"^lastcall: LOG_LEVEL: 'verbose' is not allowed; give one of debug, info,"):
        run_path(str(ROOT / "gunicorn.conf.py"))
