"""What every story needs, and what must hold after each of its steps; the steps are in tests/database/test_story.py."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from json import dumps
from pathlib import Path

import psycopg
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
)

from app import create_app
from blueprints.server import Server
from lastcall.errors import Expired, Invalid, Revoked, TokenRejected
from models import force_logout, refreshing, sign_in
from models import user as users
from models.audit import Actor as Who
from models.confirmation import confirm
from models.database import db
from models.errors import RefreshRejected, WrongCredentials
from models.minting import ClientInfo, Tokens
from models.refreshing import RefreshReused
from models.session_filter import SessionFilter
from models.session_list import list_sessions
from settings import from_environment
from tests.conftest import FAST_ENVIRONMENT
from tests.database.conftest import one
from tests.database.story_bench import (
    START,
    Worker,
    database_of_a_story,
    signing_key,
    stop_all,
)
from tests.database.story_model import ACCESS_TTL, MAX_AGE, REFRESH_TTL, Access, Session, User, World
from tools.postgres import EmbeddedPostgres

SOMEBODY = Who("the story")
REASONS = {"expired": Expired, "unknown key": Invalid, "revoked": Revoked, "any": TokenRejected}

_names = (f"story_{number}" for number in itertools.count())


class Telling(RuleBasedStateMachine):
    """One story, on a database of its own."""

    postgres: EmbeddedPostgres
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        with self.stack:
            self.begin()
            self.stack = self.stack.pop_all()

    def begin(self) -> None:
        url = self.stack.enter_context(database_of_a_story(self.postgres, next(_names)))
        environment = {
            **FAST_ENVIRONMENT,
            "DATABASE_URL": url,
            "LASTCALL_SIGNING_KEY": dumps(signing_key(0)),
            "LASTCALL_DATA_DIR": str(self.folder),
            "LASTCALL_ACCESS_TTL": str(ACCESS_TTL),
            "LASTCALL_REFRESH_TTL": str(REFRESH_TTL),
            "LASTCALL_SESSION_MAX_AGE": str(MAX_AGE),
        }
        self.settings = from_environment(environment)
        app = create_app(self.settings)
        self.server: Server = app.extensions["lastcall_server"]
        self.psql = self.stack.enter_context(psycopg.connect(url, autocommit=True))
        self.stack.enter_context(app.app_context())
        self.stack.callback(db.engine.dispose)
        self.workers: list[Worker] = []
        self.stack.callback(lambda: stop_all(self.workers, self.psql))
        self.workers += [Worker(self.settings) for _ in range(2)]
        self.world = World(START)
        self.number = 0
        self.tried: set[str] = set()
        for name, roles in (("ann", ["viewer"]), ("bob", ["editor", "viewer"])):
            self.add_user(name, roles)

    def teardown(self) -> None:
        self.stack.close()

    # ---------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def all_agree(self) -> None:
        self.every_guard_says_what_the_model_says()
        self.the_list_shows_what_the_model_says()
        self.dead_refresh_tokens_do_nothing()

    def every_guard_says_what_the_model_says(self) -> None:
        for session in self.world.sessions:
            for number, token in enumerate(session.access):
                for place, worker in enumerate(self.workers):
                    what = f"worker {place}, token {number} of {session}"
                    self.judge(worker, session, token, what)

    def judge(self, worker: Worker, session: Session, token: Access, what: str) -> None:
        expected = self.world.verdict(token)
        try:
            claims = worker.check(token.raw)
        except TokenRejected as refusal:
            assert expected != "accepted", f"{what} is refused: {refusal!r}"
            if expected == "refused":
                reason = self.world.why_refused(token)
                assert isinstance(refusal, REASONS[reason]), f"{what} is refused, but not as {reason}: {refusal!r}"
        else:
            assert expected != "refused", f"{what} is accepted, though {self.world.why_refused(token)}"
            assert (claims.sub, claims.sid, claims.roles) == (session.user.id, session.id, token.roles), what

    def the_list_shows_what_the_model_says(self) -> None:
        active = [item.session_id for item in list_sessions(SessionFilter(), limit=200).items]
        assert sorted(active) == sorted(self.world.active())
        everything = list_sessions(SessionFilter(state="all"), limit=200).items
        assert {item.session_id: (item.state, tuple(item.roles)) for item in everything} == {
            session.id: (self.world.state(session), session.roles)
            for session in self.world.sessions
            if session.on_record
        }

    def dead_refresh_tokens_do_nothing(self) -> None:
        for raw in set(self.world.dead_refresh_tokens()) - self.tried:
            self.refresh_in_vain(raw)
            self.tried.add(raw)

    # ------------------------------------------------------------------------------------------------------ small steps

    def new_password(self) -> str:
        self.number += 1
        return f"password number {self.number}"

    def add_user(self, name: str, roles: list[str]) -> None:
        password = self.new_password()
        user = users.create_user(name, password, roles)
        self.world.users[name] = User(user.user_id, name, password, set(roles))

    def fail_to_sign_in(self, name: str, password: str) -> None:
        with pytest.raises(WrongCredentials):
            sign_in.sign_in(name, password, here("web"), self.settings)
        self.psql.execute("DELETE FROM sign_in_attempts")

    def refresh_in_vain(self, raw: str) -> None:
        with pytest.raises((RefreshRejected, Revoked)) as refused:
            refreshing.refresh(raw, here("web"), self.settings)
        assert not isinstance(refused.value, RefreshReused)

    def by_sql(self, statement: str, parameters: dict[str, str] | None = None) -> None:
        with self.psql.transaction():
            self.psql.execute(statement, parameters)
            position = one(self.psql, "SELECT pg_current_xact_id()::text")
        self.confirm(position)

    def renewed(self, session: Session, tokens: Tokens) -> None:
        assert tokens.session_id == session.id
        self.world.renew(session, tokens.access_token, tokens.refresh_token)

    def ended(self, receipt: force_logout.Receipt, sessions: int) -> None:
        assert receipt.sessions_ended == sessions
        self.confirm(receipt.position)

    def confirm(self, position: str | None) -> None:
        """In force on both workers, or on who of them listens. What took nothing away was announced to nobody."""
        if position is not None and not confirm(position, self.server.watch, patience_s=0.03).in_force:
            self.psql.execute("SELECT pg_notify('lastcall_cutoffs', '')")
            assert confirm(position, self.server.watch).in_force


def here(client: str) -> ClientInfo:
    return ClientInfo(client, "192.0.2.1", "")
