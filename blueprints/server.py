"""What belongs to this process: settings, watch, sightings, changes; and who the current request comes from."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from flask import current_app, request

from lastcall.claims import Claims, is_uuid
from lastcall.flask import Lastcall
from models.audit import Actor
from models.changes import Changes
from models.errors import BadRequest, NotFound
from models.housekeeping import Housekeeper
from models.login_session import get_session
from models.minting import ClientInfo
from models.patience import Patience
from models.seen import Seen
from models.worker import WorkerWatch
from settings import Settings

_WITH_PORT = re.compile(r"\[(.+)\](?::[0-9]+)?|([0-9.]+):[0-9]+")


@dataclass(frozen=True, slots=True)
class Server:
    """One a process; made by `app.create_app`."""

    settings: Settings
    lastcall: Lastcall
    watch: WorkerWatch
    seen: Seen
    changes: Changes
    housekeeper: Housekeeper
    patience: Patience

    def start(self) -> None:
        """Start the threads of this process, once; after the fork."""
        self.lastcall.listener.ensure_running()
        self.housekeeper.ensure_running()
        self.patience.ensure_running()

    def drain(self) -> None:
        """The process is going to stop: end the event streams, so that nothing waits for them."""
        self.changes.close()

    def stop(self) -> None:
        """Stop in order; the worker's row goes last."""
        self.drain()
        self.housekeeper.stop()
        self.lastcall.stop()
        self.patience.stop()


def server() -> Server:
    return cast(Server, current_app.extensions["lastcall_server"])


def address_of_request() -> str | None:
    """The peer's address, or what a trusted proxy says (LASTCALL_TRUSTED_PROXIES); None where that is no address.

    IPv4 stays IPv4 on a socket of both kinds (::ffff:192.0.2.1), and PostgreSQL knows no zone (fe80::1%eth0). Some
    proxies say the port, too: 192.0.2.1:5678, [2001:db8::1]:443.
    """
    said = request.remote_addr or ""
    if with_port := _WITH_PORT.fullmatch(said):
        said = with_port[1] or with_port[2]
    try:
        address = ipaddress.ip_address(said.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def client_of_request(client_id: str | None = None) -> ClientInfo:
    """Where a sign-in comes from."""
    # latin-1 is how WSGI hands headers over (PEP 3333); PostgreSQL takes no NUL.
    user_agent = request.headers.get("User-Agent", "").replace("\x00", "")
    user_agent = user_agent.encode("latin-1", "replace").decode("utf-8", "replace")
    return ClientInfo(client_id or "api", address_of_request(), user_agent[:4096])


def actor(claims: Claims, reason: str | None) -> Actor:
    """The person behind a request's token, for the history."""
    name = claims.username or claims.sub
    return Actor(name=name, user_id=claims.sub, session_id=claims.sid, ip=address_of_request(), reason=reason or None)


def own_id(claims: Claims) -> UUID:
    """The caller's user id. Raises NotFound for a token that was minted elsewhere for somebody who is no user here. In
    another spelling a user's id is another subject (RFC 7519, section 4.1.2)."""
    if not is_uuid(claims.sub):
        raise NotFound("Your token names no user of this server.")
    return UUID(claims.sub)


def own_session_id(claims: Claims) -> UUID:
    """The caller's session id. Raises NotFound for a token that was minted elsewhere, for no session of ours."""
    if not is_uuid(claims.sid):
        raise NotFound("Nothing was changed. Your token belongs to no session of this server.")
    return UUID(claims.sid)


def session_to_keep(claims: Claims) -> str:
    """The caller's session, when all others end. Raises BadRequest where there is none: he would be signed out too."""
    found = get_session(UUID(claims.sid)) if is_uuid(claims.sid) else None
    if found is None or found.user_id != claims.sub:
        raise BadRequest("Nothing was changed. keep_current: your token belongs to no session that could be kept.")
    return found.session_id
