"""`make run`: PostgreSQL (embedded unless DATABASE_URL is set), the schema, the first admin, gunicorn; until Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from app import create_app, prepare_database
from lastcall.errors import LastcallError
from models.database_errors import schema_errors
from settings import Settings, SettingsError, from_environment
from tools.postgres import APP, EmbeddedPostgres, PostgresError, dies_with_us

READY_TIMEOUT_S = 60.0
console = Console(stderr=True, highlight=False)


class StartError(Exception):
    """The start was given up. The message is one line: what happened, and what to do."""


def main() -> int:
    try:
        settings = from_environment()
        _check_port(settings)
        with _database(settings) as server:
            return _serve(from_environment(embedded_url=server.url() if server else None), server)
    except (SettingsError, StartError, PostgresError) as error:
        print(f"lastcall: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _database(settings: Settings) -> Iterator[EmbeddedPostgres | None]:
    if not settings.embedded:
        yield None
        return
    with console.status("Starting PostgreSQL …"):
        # A process has a pool of 12, up to 4 connections to ask, the listener's, and the witness's (docs/scaling.md).
        server = EmbeddedPostgres(settings.data_dir, connections=max(300, 18 * settings.workers + 50))
        server.start()
    try:
        yield server
    finally:
        server.stop()


def _serve(settings: Settings, server: EmbeddedPostgres | None) -> int:
    with console.status("Preparing the database …"):
        invented = _prepare(settings)
    if settings.demo_sessions:
        _invent_sessions(settings)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if server is not None:
        server.let_in(APP)
        environment["LASTCALL_EMBEDDED_URL"] = server.url(user=APP)
    # A session of its own: Ctrl-C reaches us alone, and we stop gunicorn first and PostgreSQL after it.
    gunicorn = subprocess.Popen(
        [
            *dies_with_us("TERM"),
            sys.executable,
            "-m",
            "gunicorn",
            "--config",
            "gunicorn.conf.py",
            "--log-level",
            "warning",
        ],
        env=environment,
        start_new_session=True,
    )
    stopping = Event()

    def stop(*_: object) -> None:
        stopping.set()
        if gunicorn.poll() is None:
            gunicorn.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        with console.status(f"Starting {settings.workers} workers …"):
            _wait_until_ready(settings, gunicorn, stopping)
        if not stopping.is_set():
            _welcome(settings, invented)
        status = _watch(gunicorn, server, stopping)
    finally:
        if gunicorn.poll() is None:
            gunicorn.terminate()
            gunicorn.wait()
    if not stopping.is_set():
        raise StartError(f"gunicorn ended by itself (status {status}); its messages stand above")
    console.print("Stopped." + (" The data are kept." if settings.embedded else ""))
    return 0


def _watch(gunicorn: subprocess.Popen[bytes], server: EmbeddedPostgres | None, stopping: Event) -> int:
    """Wait until gunicorn has ended. The embedded PostgreSQL is ours to start again, for the workers can only wait."""
    while (status := gunicorn.poll()) is None:
        if server is not None and server.has_ended() and not stopping.is_set():
            console.print("PostgreSQL has ended by itself, or was killed: starting it again …")
            server.start_again()
            console.print("PostgreSQL is back.")
        with suppress(subprocess.TimeoutExpired):
            gunicorn.wait(0.5)
    return status


def _prepare(settings: Settings) -> str | None:
    try:
        with schema_errors():
            return prepare_database(settings)
    except LastcallError as error:
        raise StartError(error.detail) from None


def _invent_sessions(settings: Settings) -> None:
    from models import demo
    from models.session_filter import SessionFilter
    from models.session_list import list_sessions

    with create_app(settings).app_context():
        missing = settings.demo_sessions - list_sessions(SessionFilter(), limit=1).total
        if missing > 0:
            with console.status(f"Inventing {missing} sessions …"):
                for _ in demo.invent_sessions(missing, settings):
                    pass


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for _ in range(20):  # a run that was just killed may still be letting go of it
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, settings.port))
                return
            except OSError as error:
                reason, taken = error.strerror, error.errno == errno.EADDRINUSE
        if not taken:
            break
        time.sleep(0.1)
    where = f"HOST, PORT: {settings.host}:{settings.port} cannot be used ({reason})"
    raise StartError(f"{where}; stop what runs there, or choose another: make run PORT=8001")


def _address(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _wait_until_ready(settings: Settings, gunicorn: subprocess.Popen[bytes], stopping: Event) -> None:
    url = _address(settings) + "/readyz"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(int(READY_TIMEOUT_S / 0.05)):
        if gunicorn.poll() is not None or stopping.is_set():
            return
        try:
            with direct.open(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            stopping.wait(0.05)
    raise StartError("the workers did not get ready within a minute; their messages stand above")


def _welcome(settings: Settings, invented: str | None) -> None:
    name = escape(settings.admin_username)
    if invented is not None:
        sign_in = f"Sign in as [bold]{name}[/] with [bold]{escape(invented)}[/]  (shown only this once)"
    else:
        sign_in = (
            f"Sign in as [bold]{name}[/] with the password of the first run, shown or given then\n"
            "(or make another admin: .venv/bin/flask --app app create-admin NAME)"
        )
    address = _address(settings)
    text = f"Console  [bold]{address}/console/[/]\nAPI      {address}/docs\n\n{sign_in}\nCtrl-C stops it."
    Console(highlight=False).print(Panel(text, title="Lastcall is running", expand=False))


if __name__ == "__main__":
    sys.exit(main())
