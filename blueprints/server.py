"""What belongs to this process: settings, watch, sightings, changes; and who the current request comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from uuid import UUID

from flask import current_app, request

from lastcall.claims import Claims
from lastcall.flask import Lastcall
from models.audit import Actor
from models.changes import Changes
from models.errors import NotFound
from models.housekeeping import Housekeeper
from models.seen import Seen
from models.sign_in import ClientInfo
from models.worker import WorkerWatch
from settings import Settings


@dataclass(frozen=True, slots=True)
class Server:
    """One a process; made by `app.create_app`."""

    settings: Settings
    lastcall: Lastcall
    watch: WorkerWatch
    seen: Seen
    changes: Changes
    housekeeper: Housekeeper

    def start(self) -> None:
        """Start the threads of this process, once; after the fork."""
        self.lastcall.listener.ensure_running()
        self.housekeeper.ensure_running()

    def drain(self) -> None:
        """The process is going to stop: end the event streams, so that nothing waits for them."""
        self.changes.close()

    def stop(self) -> None:
        """Stop in order; the worker's row goes last."""
        self.drain()
        self.housekeeper.stop()
        self.lastcall.listener.stop()


def server() -> Server:
    return cast(Server, current_app.extensions["lastcall_server"])


def client_of_request(client_id: str | None = None) -> ClientInfo:
    """The address is the peer's, or what a trusted proxy says (LASTCALL_TRUSTED_PROXIES)."""
    # latin-1 is how WSGI hands headers over (PEP 3333); PostgreSQL takes no NUL.
    user_agent = request.headers.get("User-Agent", "").replace("\x00", "")
    user_agent = user_agent.encode("latin-1", "replace").decode("utf-8", "replace")
    return ClientInfo(client_id or "api", request.remote_addr, user_agent[:4096])


def actor(claims: Claims, reason: str | None) -> Actor:
    """The person behind a request's token, for the history."""
    name = claims.username or claims.sub
    return Actor(name=name, user_id=claims.sub, session_id=claims.sid, ip=request.remote_addr, reason=reason or None)


def own_id(claims: Claims) -> UUID:
    """The caller's user id. Raises NotFound for a token that was minted elsewhere for somebody who is no user here."""
    try:
        return UUID(claims.sub)
    except ValueError:
        raise NotFound("Your token names no user of this server.") from None
