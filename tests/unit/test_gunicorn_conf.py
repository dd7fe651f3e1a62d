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
