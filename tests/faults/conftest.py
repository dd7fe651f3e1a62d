"""Benches for the tests of faults."""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from models.database import apply_schema
from tests.conftest import FAST_ENVIRONMENT, TEMPLATE
from tests.faults.bench import Bench, Host
from tests.faults.hooks import FOLDER, Hooks
from tests.faults.proxy import Proxy
from tests.faults.report import REPORT
from tests.gunicorn import DEADLINE_S, Gunicorn
from tools.postgres import APP, EmbeddedPostgres

_names = (f"faults_{number}" for number in itertools.count())

StartBench = Callable[..., Bench]
StartHost = Callable[..., Host]


class Unready(Gunicorn):
    """A gunicorn whose workers can't get ready, on a database that is left as it is."""

    def prepare(self) -> None:
        pass

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.is_alive():
            try:
                self.ask("GET", "/healthz")
                return
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)  # nothing tells from outside
        raise AssertionError("gunicorn did not start:\n" + self.log.read_text()[-3000:])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A durable PostgreSQL of this test alone, to be killed."""
    with EmbeddedPostgres(tmp_path / "cluster") as server:
        yield server


@pytest.fixture
def start_host(signing_key: str, tmp_path: Path) -> Iterator[StartHost]:
    """Start one gunicorn behind a proxy: `start_host(database, "name", 4, "--preload")`."""
    with ExitStack() as stack:
        numbers = itertools.count()

        def start(
            database: EmbeddedPostgres,
            name: str,
            workers: int,
            *options: str,
            ready: bool = True,
            **more: str,
        ) -> Host:
            number = next(numbers)
            proxy = stack.enter_context(Proxy(database.url))
            hooks = Hooks(tmp_path / f"hooks-{number}")
            environment = {
                **FAST_ENVIRONMENT,
                "DATABASE_URL": proxy.url(name),
                "LASTCALL_SIGNING_KEY": signing_key,
                "LASTCALL_DATA_DIR": str(tmp_path / "instance"),
                # Longer than any run: a token that expires would look like one that was refused.
                "LASTCALL_ACCESS_TTL": "86400",
                FOLDER: str(hooks.folder),
                **more,
            }
            options = ("--config", "tests/faults/faulty_conf.py", "--no-control-socket", *options)
            log = tmp_path / f"gunicorn-{number}.log"
            kind = Gunicorn if ready else Unready
            server = stack.enter_context(kind(workers, options, environment, log))
            stack.callback(proxy.heal)
            return Host(server, proxy, hooks)

        yield start


@pytest.fixture
def start_bench(postgres: EmbeddedPostgres, start_host: StartHost) -> Iterator[StartBench]:
    """Start a bench: `start_bench("fault", "what must happen", workers=(4,))`, one number for each host. `where` says
    where its processes find the database of a name, when not by the proxy."""
    with ExitStack() as stack:

        def start(
            fault: str,
            must: str,
            *,
            database: EmbeddedPostgres | None = None,
            workers: Sequence[int] = (4,),
            options: Sequence[str] = ("--preload",),  # a quicker start, on two cores
            users: int = 8,
            where: Callable[[str], dict[str, str]] | None = None,
            **more: str,
        ) -> Bench:
            figures = REPORT.begin(fault, must)
            name = next(_names)
            if database is None:
                database = postgres
                database.create_database(name, TEMPLATE)
            else:
                apply_schema(database.create_database(name))
                database.let_in(APP)
            if where is not None:
                more |= where(name)
            hosts = [start_host(database, name, count, *options, **more) for count in workers]
            bench = Bench(database, name, hosts, figures, users)
            stack.callback(bench.finish)
            return bench

        yield start
