"""gunicorn for every contender: those settings of the project's own gunicorn.conf.py that count here, and its hooks."""

from __future__ import annotations

from typing import Any

worker_class = "gthread"
threads = 64
backlog = 2048
keepalive = 5
# A socket for each worker: with one for all, every kept-alive connection can land on the same worker.
reuse_port = True
control_socket_disable = True
accesslog = None
loglevel = "warning"


def _lastcall_of(worker: Any) -> Any:
    return getattr(getattr(worker.app, "callable", None), "extensions", {}).get("lastcall")


def post_worker_init(worker: Any) -> None:
    if (lastcall := _lastcall_of(worker)) is not None:
        lastcall.listener.ensure_running()


def worker_exit(server: Any, worker: Any) -> None:
    if (lastcall := _lastcall_of(worker)) is not None:
        lastcall.stop()
