"""gunicorn for these tests: the product's own configuration, and in each worker the switches of hooks.py."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

from tests.faults import hooks

_product = run_path(str(Path(__file__).parents[2] / "gunicorn.conf.py"))
globals().update({name: value for name, value in _product.items() if not name.startswith("_")})

# A connection that a test keeps for a worker must still be there when that worker has been paused.
keepalive = 75


def post_worker_init(worker: Any) -> None:
    hooks.install()
    worker.wsgi = hooks.name_the_worker(worker.wsgi)
    _product["post_worker_init"](worker)
