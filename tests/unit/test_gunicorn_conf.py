"""gunicorn.conf.py: what each worker does once it is there."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from runpy import run_path
from types import SimpleNamespace

import pytest

from tests.gunicorn import ROOT


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    stop = signal.getsignal(signal.SIGTERM)
    yield
    gc.unfreeze()
    signal.signal(signal.SIGTERM, stop)


def test_what_a_worker_starts_with_is_not_searched_for_garbage(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    at_start, searched = len(gc.get_objects()), []
    server = SimpleNamespace(start=lambda: searched.append(len(gc.get_objects())))
    worker = SimpleNamespace(app=SimpleNamespace(callable=SimpleNamespace(extensions={"lastcall_server": server})))
    run_path(str(ROOT / "gunicorn.conf.py"))["post_worker_init"](worker)
    assert len(searched) == 1 and searched[0] < at_start / 100


def test_the_log_level_is_gunicorns_and_a_wrong_one_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in {**environment, "LOG_LEVEL": "Error"}.items():
        monkeypatch.setenv(name, value)
    assert run_path(str(ROOT / "gunicorn.conf.py"))["loglevel"] == "error"
    monkeypatch.setenv("LOG_LEVEL", "verbose")
    with pytest.raises(SystemExit, match=r"^lastcall: LOG_LEVEL: 'verbose' is not allowed; give one of debug, info,"):
        run_path(str(ROOT / "gunicorn.conf.py"))
