"""gunicorn for the bench: the product's own configuration, and each answer says how long it took in the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from runpy import run_path
from typing import Any

_product = run_path(str(Path(__file__).parent.parent / "gunicorn.conf.py"))
globals().update({name: value for name, value in _product.items() if not name.startswith("_")})

HEADER = "X-Took-Ms"
# A connection to one worker must outlast what is prepared between two requests on it.
keepalive = 600


def post_worker_init(worker: Any) -> None:
    worker.wsgi = timed(worker.wsgi)
    _product["post_worker_init"](worker)


def timed(wsgi: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """From the moment gunicorn has read the request until the application has its whole answer."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        began = time.perf_counter()

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            took_ms = (time.perf_counter() - began) * 1000
            return start_response(status, [*headers, (HEADER, f"{took_ms:.3f}")], *more)

        return wsgi(environ, start)

    return application
