"""gunicorn: several workers, many threads each, and a listener in every worker after the fork."""

from __future__ import annotations

import gc
import logging
import signal
from http import HTTPStatus
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from settings import settings_of_process

_settings = settings_of_process()

_REFUSALS = {
    errors.ForbiddenProxyRequest: 403,
    errors.LimitRequestLine: 414,
    errors.ExpectationFailed: 417,
    errors.LimitRequestHeaders: 431,
    errors.UnsupportedTransferCoding: 501,
}


class Worker(ThreadWorker):  # type: ignore[misc]
    """gthread, but what is no HTTP gets problem details as its answer, and no word of it is logged: where a colon is
    missing, it may be a token."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        ours = isinstance(exc, errors.InvalidResponseHeader | errors.InvalidResponseHeaderName)
        if ours or not isinstance(exc, errors.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("Refused a request from %s: %s", addr[0] if addr else "a socket", type(exc).__name__)
        # In the worker: what the arbiter has imported, a HUP would bring back as it was.
        from blueprints.problems import CODES
        from lastcall.flask import problem

        status = _REFUSALS.get(type(exc), 400)
        detail = "This is not a request that HTTP/1.1 allows, or it is too large."
        refusal = problem(status, CODES[status], detail, {"Connection": "close"})
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{refusal.headers}"
        try:
            util.write_nonblock(client, head.encode("ascii") + refusal.get_data())
        except OSError:
            self.log.debug("Nobody waits for the refusal.")


class _WithoutDetail(logging.Filter):
    """At log level debug gunicorn writes down what it had read when a client hung up: of errors only the name stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            read = (errors.ParseException, errors.NoMoreData)
            record.args = tuple(type(arg).__name__ if isinstance(arg, read) else arg for arg in record.args)
        return True


logging.getLogger("gunicorn.error").addFilter(_WithoutDetail())

wsgi_app = "app:create_app()"
bind = f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
workers = _settings.workers
# Imported once, then forked: a start takes half as long. New code needs a restart (or USR2), not HUP.
preload_app = True
worker_class = Worker
# An event stream holds a thread: 24 of them (LASTCALL_STREAMS_PER_WORKER) must leave room for the API.
threads = max(64, _settings.streams_per_worker + 40)
backlog = 2048
keepalive = 5
timeout = 30
graceful_timeout = 10
# It would be opened in the home folder, where several instances clash over it.
control_socket_disable = True
# Whom to believe about addresses and TLS is LASTCALL_TRUSTED_PROXIES' to say, also on this host.
forwarded_allow_ips = ""
limit_request_line = 8190  # gunicorn's most
# A token that is far too long is the application's to refuse: 401.
limit_request_field_size = 131_072
accesslog = None
loglevel = _settings.log_level


def post_worker_init(worker: Any) -> None:
    """After the fork, also under --preload: threads that were started before it do not exist here."""
    # What is here now stays. To search all of it for garbage, now and then, would hold every thread up (gc, Python
    # manual), the listener's as well. What requests leave behind is searched in pieces of a millisecond or two: of
    # 10,000 objects at once it took 12, and 29 the next generation; of 700, the default, all were searched six times as
    # often.
    gc.freeze()
    gc.set_threshold(2_000)
    server = worker.app.callable.extensions["lastcall_server"]
    server.start()
    stop = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: Any) -> None:
        server.drain()
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, drain)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """A worker that has served its --max-requests gets no signal: its event streams end here, or hold it up."""
    if not worker.alive:
        worker.app.callable.extensions["lastcall_server"].drain()


def worker_exit(server: Any, worker: Any) -> None:
    """In order: what was seen is written, and the worker's row goes last."""
    if getattr(worker.app, "callable", None) is not None:
        worker.app.callable.extensions["lastcall_server"].stop()
