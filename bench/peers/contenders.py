"""Who is measured: every contender by its name, started, and asked whether it does what it is measured for."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench import wrk
from bench.in_process import payload
from bench.own_server import environment_of, new_database
from bench.peers import servers
from bench.peers.environment import ROOT
from bench.peers.given import EVER_REVOKED, LIFETIME_S
from bench.pubsub import redis_server
from lastcall.tokens import KeyRing, issue
from tests.conftest import PASSWORD
from tests.gunicorn import Gunicorn
from tools.postgres import EmbeddedPostgres

TOKENS = 60_000
"""So many that each has left the memory of tokens (lastcall.guard.MEMO_SIZE) of two workers before it comes again."""

BARE, WARM, COLD = "bare Flask", "Lastcall", "Lastcall, each token seen for the first time"
PYJWT, PYJWT_EACH = "PyJWT alone", "PyJWT alone, each token another one"
EXTENDED, WITH_REDIS = "Flask-JWT-Extended alone", "Flask-JWT-Extended, Redis blocklist"
WITH_SQL, SIMPLEJWT = "Flask-JWT-Extended, SQL blocklist", "simplejwt (Django), blacklist"
INTROSPECTION, SESSION = "introspection (RFC 7662)", "opaque session in Redis"
OWN = "Lastcall's own server, GET /api/v1/auth/me"
# The order of a round: what is compared stands side by side.
APPS = {
    WITH_SQL: "extended:create_app('sql')",
    SIMPLEJWT: "simplejwt:create_app()",
    INTROSPECTION: "introspection:create_app()",
    EXTENDED: "extended:create_app()",
    WITH_REDIS: "extended:create_app('redis')",
    SESSION: "redis_session:create_app()",
    WARM: "guarded:create_app()",
    BARE: "bare:create_app()",
    PYJWT: "pyjwt_alone:create_app()",
    # On its own: the garbage collector looks at all that it remembers, 2 to 3 % more work for each request.
    COLD: "guarded:create_app()",
}
LETS_ALL_IN, KNOWS_NO_REVOCATION = (BARE,), (BARE, PYJWT, EXTENDED, SESSION)


@dataclass
class Tokens:
    """One token for all, a revoked one, and a file of many that nobody has seen."""

    keys: KeyRing
    user: str = field(default_factory=lambda: str(uuid.uuid4()))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    revoked: dict[str, object] = field(default_factory=dict)

    def payload(self) -> dict[str, object]:
        """What Lastcall's tokens say, and the few claims that the peers ask for."""
        said = payload()
        at = int(str(said["iat"]))
        asked_for = {"type": "access", "fresh": False, "token_type": "access"}  # the first two by Flask-JWT-Extended
        return {**said, "sub": self.user, "exp": at + LIFETIME_S, **asked_for}

    def write(self, path: Path) -> int:
        """Write the many, one a line. Returns the length of a line."""
        with path.open("w", encoding="ascii") as file:
            for _ in range(TOKENS):
                length = file.write(issue(self.payload(), self.keys) + "\n")
        assert path.stat().st_size == TOKENS * length
        return length


@contextmanager
def started(
    python: str, workers: int, seconds: int, say: Callable[[str], None]
) -> Iterator[dict[str, Callable[[], wrk.Load]]]:
    """All servers, started and asked whether they do what they are measured for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        say("PostgreSQL, Redis, tokens")
        postgres = stack.enter_context(EmbeddedPostgres(folder, connections=500))
        secret = secrets.token_hex(32)
        tokens = Tokens(KeyRing.parse(secret))
        tokens.revoked = tokens.payload()
        line = tokens.write(folder / "tokens")
        given = {
            "BENCH_SECRET": secret,
            "BENCH_USER": tokens.user,
            "BENCH_SESSION": tokens.session,
            "BENCH_REVOKED": str(tokens.revoked["jti"]),
            "BENCH_REDIS": str(stack.enter_context(redis_server(folder))),
            "BENCH_DATABASE_URL": postgres.create_database("peers"),
        }
        for store in ("redis", "extended", "simplejwt"):
            command = [python, "-m", "bench.peers.prepare", store]
            subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, check=True)
        issuer = servers.gunicorn(python, "introspection:create_issuer()", workers, given, folder / "issuer.log")
        given["BENCH_INTROSPECTION_URL"] = stack.enter_context(issuer) + "/introspect"

        say(OWN)
        own_url = new_database(postgres, "own")
        own = stack.enter_context(_own_server(workers, own_url, folder))
        with psycopg.connect(own_url) as connection:
            ids = [str(tokens.revoked["sid"]), *map(str, range(EVER_REVOKED))]
            raising = "SELECT raise_cutoff('session', id, 0, now() + '1 h') FROM unnest(%s::text[]) AS id"
            connection.execute(raising, [ids])

        urls: dict[str, str] = {}
        for number, (name, app) in enumerate(APPS.items()):
            say(name)
            its = {**given, "BENCH_DATABASE_URL": own_url} if name in (WARM, COLD) else given
            log = folder / f"gunicorn-{number}.log"
            urls[name] = stack.enter_context(servers.gunicorn(python, app, workers, its, log)) + "/me"
            _check(name, urls[name], tokens)

        one = issue(tokens.payload(), tokens.keys)
        asked: dict[str, Callable[[], wrk.Load]] = {}
        for name, url in urls.items():
            token = tokens.session if name == SESSION else one
            asked[name] = lambda url=url, token=token: wrk.run(url, seconds=seconds, token=token)  # type: ignore[misc]
        for name, server in ((PYJWT_EACH, PYJWT), (COLD, COLD)):
            asked[name] = _rotation(urls[server], folder / "tokens", line, seconds)
        asked[OWN] = lambda: wrk.run(
            own.url + "/api/v1/auth/me", seconds=seconds, token=own.sign_in("admin", PASSWORD)["access_token"]
        )
        yield asked


def _own_server(workers: int, url: str, folder: Path) -> Gunicorn:
    return Gunicorn(workers, ("--reuse-port",), environment_of(url, folder), folder / "own.log")


def _rotation(url: str, tokens: Path, line: int, seconds: int) -> Callable[[], wrk.Load]:
    """Each run goes on where the last one ended."""
    at = 0

    def run() -> wrk.Load:
        nonlocal at
        load = wrk.run(url, seconds=seconds, tokens=tokens, at=at * line)
        at = (at + load.requests + 2 * wrk.CONNECTIONS) % TOKENS
        return load

    return run


def _check(name: str, url: str, tokens: Tokens) -> None:
    """Ends the bench when a contender does not do what it is measured for."""
    good = tokens.session if name == SESSION else issue(tokens.payload(), tokens.keys)
    servers.wait_until_good(url, good)
    expected = {"forged": name in LETS_ALL_IN, "revoked": name in KNOWS_NO_REVOCATION}
    forged = issue(tokens.payload(), KeyRing.parse(secrets.token_hex(32)))
    revoked = good if name == SESSION else issue(tokens.revoked, tokens.keys)
    seen = {"forged": servers.lets_in(url, forged), "revoked": servers.lets_in(url, revoked)}
    if seen != expected:
        raise SystemExit(f"bench: {name} does not let in whom it should: {seen} instead of {expected}")
