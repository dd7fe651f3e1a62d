"""Stories: random sequences of all that can happen, against a model in plain Python; a failure shrinks to a short one.

Real are the database, the use cases, two workers with their listeners, guards and confirmations. After each step both
guards are asked about every access token there ever was, each refresh token that died is tried, and the list of
sessions is read. The database's clock stands still, so that the model knows exactly what time has ended.
LASTCALL_STORIES is how many there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lastcall.errors import Revoked
from models import force_logout, own_password, passwords, refreshing, sign_in
from models import user as users
from models.errors import Conflict, NotFound
from models.purge import purge
from models.refreshing import RefreshReused
from models.session_filter import SessionFilter
from tests.database.story_bench import TEMPLATE, key_ring, make_template
from tests.database.story_machine import SOMEBODY, Telling, here
from tests.database.story_model import Session
from tools.postgres import EmbeddedPostgres

STORIES = int(os.environ.get("LASTCALL_STORIES") or 12)
STEPS = 25

NAMES = st.sampled_from(["ann", "bob", "cid"])
CLIENTS = st.sampled_from(["web", "cli"])
ROLES = st.sampled_from([[], ["viewer"], ["editor"], ["editor", "viewer"]])
FILTERS = st.sampled_from(
    [{"client": "web"}, {"role": "viewer"}, {"role": "editor"}, {"user": "ann"}, {"client": "cli", "user": "bob"}]
)
WORKERS = st.sampled_from([0, 1])

USER_ACTS = {
    "disable": "UPDATE users SET disabled_at = clock_timestamp() WHERE id = %(id)s AND disabled_at IS NULL",
    "raise": "UPDATE users SET gen = gen + 1 WHERE id = %(id)s",
    "cutoff": "INSERT INTO cutoffs AS c (scope, subject, min_gen) SELECT 'user', id::text, gen + 1 FROM users"
    " WHERE id = %(id)s ON CONFLICT (scope, subject) DO UPDATE SET min_gen = excluded.min_gen",
    "take roles": "DELETE FROM user_roles WHERE user_id = %(id)s",
    "delete": "DELETE FROM users WHERE id = %(id)s",
}
SESSION_ACTS = {
    "end": "UPDATE login_sessions SET ended_at = clock_timestamp() WHERE id = %(id)s AND ended_at IS NULL",
    "cutoff": "INSERT INTO cutoffs (scope, subject) VALUES ('session', %(id)s)"
    " ON CONFLICT (scope, subject) DO UPDATE SET min_gen = 0",
    "delete": "DELETE FROM login_sessions WHERE id = %(id)s",
}
EVERYONE_ACTS = {
    "raise": "UPDATE everyone SET gen = gen + 1",
    "truncate users": "TRUNCATE users CASCADE",
    "truncate roles": "TRUNCATE user_roles",
}


class Story(Telling):
    """What can happen, one step at a time."""

    sessions = Bundle("sessions")

    # ------------------------------------------------------------------------------------------------------- signing in

    @rule(target=sessions, name=NAMES, client=CLIENTS)
    def sign_in(self, name: str, client: str) -> Session | MultipleResults[Session]:
        user = self.world.user(name)
        if user is None or user.disabled:
            self.fail_to_sign_in(name, user.password if user else "whatever it was")
            return multiple()
        tokens = sign_in.sign_in(name, user.password, here(client), self.settings)
        session = self.world.sign_in(tokens.session_id, user, client)
        self.world.mint(session, tokens.access_token)
        self.world.rotate(session, tokens.refresh_token)
        return session

    @initialize(target=sessions)
    def ann_and_bob_sign_in(self) -> MultipleResults[Session]:
        found = [self.sign_in(*who) for who in (("ann", "web"), ("ann", "cli"), ("bob", "web"))]
        return multiple(*[session for session in found if isinstance(session, Session)])

    @rule(name=NAMES)
    def sign_in_with_an_old_password(self, name: str) -> None:
        user = self.world.user(name)
        if user is not None and user.past:
            self.fail_to_sign_in(name, user.past[-1])

    @rule(session=sessions, back=st.integers(0, 3))
    def refresh(self, session: Session, back: int) -> None:
        """With the newest refresh token of a session, or one from so many before."""
        known = session.orphans + session.refresh
        raw = known[max(0, len(known) - 1 - back)]
        match self.world.trade(session, raw):
            case "refused":
                self.refresh_in_vain(raw)
            case "reuse":
                with pytest.raises(RefreshReused) as reused:
                    refreshing.refresh(raw, here("web"), self.settings)
                self.world.end(session)
                self.confirm(reused.value.receipt.position)
            case what:
                tokens = refreshing.refresh(raw, here("web"), self.settings)
                self.world.mint(session, tokens.access_token)
                if what == "same":
                    assert tokens.refresh_token == session.refresh[-1]
                else:
                    self.world.rotate(session, tokens.refresh_token)
                assert tokens.session_id == session.id

    @rule(session=sessions)
    def change_own_password(self, session: Session) -> None:
        token = self.world.good_token(session)
        if token is None:
            return
        claims = self.workers[0].check(token.raw)
        old, new = session.user.password, self.new_password()
        tokens, position = own_password.change_password(claims, old, new, here("web"), self.settings)
        self.world.end_users([session.user], keep=session)
        self.world.change_password(session.user, new)
        self.renewed(session, tokens)
        self.confirm(position)

    # ------------------------------------------------------------------------------------------------- what admins do

    @rule(name=NAMES, roles=ROLES)
    def create_user(self, name: str, roles: list[str]) -> None:
        if self.world.user(name) is None:
            self.add_user(name, roles)
            return
        with pytest.raises(Conflict):
            users.create_user(name, self.new_password(), roles)

    @rule(name=NAMES)
    def change_password(self, name: str) -> None:
        password = self.new_password()
        if self.change(name, password=password):
            self.world.change_password(self.world.users[name], password)

    @rule(name=NAMES, disabled=st.booleans())
    def set_disabled(self, name: str, disabled: bool) -> None:
        if self.change(name, disabled=disabled):
            self.world.users[name].disabled = disabled

    def change(self, name: str, *, disabled: bool | None = None, password: str | None = None) -> bool:
        user = self.world.user(name)
        if user is None:
            self.nobody(
                name, lambda gone: users.change_user(gone, disabled=disabled, password=password, actor=SOMEBODY)
            )
            return False
        changed = users.change_user(UUID(user.id), disabled=disabled, password=password, actor=SOMEBODY)
        ended = self.world.end_users([user]) if password or (disabled and not user.disabled) else 0
        assert changed.sessions_ended == ended
        self.confirm(changed.position)
        return True

    @rule(name=NAMES, roles=ROLES, revoke=st.booleans())
    def set_roles(self, name: str, roles: list[str], revoke: bool) -> None:
        user = self.world.user(name)
        if user is None:
            self.nobody(name, lambda gone: users.set_roles(gone, roles, revoke=revoke, actor=SOMEBODY))
            return
        changed = users.set_roles(UUID(user.id), roles, revoke=revoke, actor=SOMEBODY)
        ended = self.world.end_users([user]) if revoke and user.roles - set(roles) else 0
        user.roles = set(roles)
        assert changed.sessions_ended == ended
        self.confirm(changed.position)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        user = self.world.user(name)
        if user is None:
            self.nobody(name, lambda gone: users.delete_user(gone, SOMEBODY))
            return
        changed = users.delete_user(UUID(user.id), SOMEBODY)
        user.exists = False
        assert changed.sessions_ended == self.world.end_users([user])
        self.confirm(changed.position)

    def nobody(self, name: str, act: Any) -> None:
        gone = self.world.users.get(name)
        with pytest.raises(NotFound):
            act(UUID(gone.id if gone else "00000000-0000-4000-8000-000000000000"))

    # ------------------------------------------------------------------------------------------------------ revocations

    @rule(name=NAMES)
    def revoke_user(self, name: str) -> None:
        user = self.world.users.get(name)
        if user is not None and (user.exists or self.world.remembers(user)):
            receipt = force_logout.revoke_user(UUID(user.id), SOMEBODY)
            self.ended(receipt, self.world.end_users([user]))

    @rule(session=sessions)
    def revoke_session(self, session: Session) -> None:
        if session.on_record:
            receipt = force_logout.revoke_session(UUID(session.id), SOMEBODY)
            was_active = self.world.state(session) == "active"
            self.world.end(session)
            self.ended(receipt, int(was_active))

    @rule(session=sessions)
    def end_own_other_sessions(self, session: Session) -> None:
        if self.world.good_token(session) is not None:
            wanted = SessionFilter(user_id=session.user.id)
            receipt = force_logout.revoke_matching(wanted, SOMEBODY, keep_session=session.id)
            self.ended(receipt, self.world.end_where(lambda s: s.user is session.user, keep=session))

    @rule()
    def revoke_everyone(self) -> None:
        receipt = force_logout.revoke_everyone(SOMEBODY)
        self.ended(receipt, self.world.end_everyone())

    @rule(session=sessions)
    def revoke_everyone_but(self, session: Session) -> None:
        """Whoever is kept goes on under new tokens; who is out by then does nothing."""
        if self.world.state(session) == "expired":
            return
        if session.ended:
            with pytest.raises(Revoked):
                force_logout.revoke_everyone(SOMEBODY, keep_session=session.id)
            return
        receipt = force_logout.revoke_everyone(SOMEBODY, keep_session=session.id)
        ended = self.world.end_everyone(keep=session)
        self.renewed(session, refreshing.renew(session.id, here("web"), self.settings))
        self.ended(receipt, ended)

    @rule(wanted=FILTERS, whole_users=st.booleans())
    def revoke_matching(self, wanted: dict[str, str], whole_users: bool) -> None:
        def fits(session: Session) -> bool:
            return (
                wanted.get("client", session.client) == session.client
                and wanted.get("user", session.user.name) == session.user.name
                and ("role" not in wanted or wanted["role"] in session.roles)
            )

        shown = SessionFilter(user=wanted.get("user"), role=wanted.get("role"), client=wanted.get("client"))
        if whole_users:
            found = [s.user for s in self.world.sessions if self.world.state(s) == "active" and fits(s)]
            receipt = force_logout.revoke_users_matching(shown, SOMEBODY)
            self.ended(receipt, self.world.end_users(found))
        else:
            receipt = force_logout.revoke_matching(shown, SOMEBODY)
            self.ended(receipt, self.world.end_where(fits))

    @rule(session=sessions, of_the_user=st.booleans())
    def revoke_what_is_older_than(self, session: Session, of_the_user: bool) -> None:
        wanted = SessionFilter(until=datetime.fromtimestamp(session.created, UTC))
        if of_the_user:
            wanted = replace(wanted, user_id=session.user.id)
        receipt = force_logout.revoke_matching(wanted, SOMEBODY)
        self.ended(
            receipt,
            self.world.end_where(
                lambda s: s.created < session.created and (not of_the_user or s.user is session.user),
            ),
        )

    # ---------------------------------------------------------------------------------------------------- plain SQL

    @rule(name=NAMES, act=st.sampled_from(sorted(USER_ACTS)))
    def by_sql_to_a_user(self, act: str, name: str) -> None:
        user = self.world.user(name)
        if user is None:
            return
        self.by_sql(USER_ACTS[act], {"id": user.id})
        if (act != "disable" or not user.disabled) and (act != "take roles" or user.roles):
            self.world.end_users([user])
        if act == "disable":
            user.disabled = True
        elif act == "delete":
            user.exists = False
        elif act == "take roles":
            user.roles = set()

    @rule(name=NAMES)
    def bring_back_by_sql(self, name: str) -> None:
        """The same row again, with the same id, as from a backup."""
        user = self.world.users.get(name)
        if user is not None and not user.exists:
            insert = "INSERT INTO users (id, username, password_hash) VALUES (%(id)s, %(name)s, %(hash)s)"
            self.by_sql(insert, {"id": user.id, "name": name, "hash": passwords.hash_password(user.password)})
            user.exists, user.disabled, user.roles = True, False, set()

    @rule(session=sessions, act=st.sampled_from(sorted(SESSION_ACTS)))
    def by_sql_to_a_session(self, act: str, session: Session) -> None:
        if session.on_record:
            self.by_sql(SESSION_ACTS[act], {"id": session.id})
            self.world.end(session)
            session.on_record = act != "delete"
            if act == "delete":
                self.world.excuse(session)  # no row tells of it any more

    @rule(act=st.sampled_from(sorted(EVERYONE_ACTS)))
    def by_sql_to_everyone(self, act: str) -> None:
        self.by_sql(EVERYONE_ACTS[act])
        self.world.end_everyone()
        for user in self.world.users.values():
            if act == "truncate users":
                user.exists = False
            if act.startswith("truncate"):
                user.roles = set()

    # ------------------------------------------------------------------------------------ time, keys, workers, purges

    def all_listen(self) -> bool:
        return all(worker.listening for worker in self.workers)

    @precondition(all_listen)
    @rule(seconds=st.sampled_from([11, 120, 345]), tidy=st.booleans())
    def wait(self, seconds: int, tidy: bool) -> None:
        """The grace ends after 10 s, a token's life after 300, and its cutoff is forgotten soon after."""
        self.set_clock(self.world.now + seconds)
        if tidy:
            purge()
            self.server.housekeeper.tick()

    @precondition(all_listen)
    @rule(seconds=st.sampled_from([5, 60]))
    def step_the_clock_back(self, seconds: int) -> None:
        self.set_clock(self.world.now - seconds)

    @precondition(all_listen)
    @rule(back=st.sampled_from([60, 400]))
    def step_back_to_what_was_forgotten(self, back: int) -> None:
        """Cutoffs whose time was over have been purged, and the clock says that it is not over."""
        self.wait(345, True)
        self.all_agree()
        self.world.went_back = True
        self.set_clock(self.world.now - back)

    def set_clock(self, now: int) -> None:
        self.world.now = now
        self.by_sql("SELECT set_clock(%(now)s)", {"now": str(now)})

    @rule()
    def rotate_keys(self) -> None:
        self.take_keys((self.world.keys[0] + 1, *self.world.keys))

    @rule()
    def drop_old_keys(self) -> None:
        self.take_keys(self.world.keys[:1])

    def take_keys(self, keys: tuple[int, ...]) -> None:
        self.world.keys = keys
        self.settings = replace(self.settings, keys=key_ring(keys))
        for worker in self.workers:
            worker.take_keys(self.settings)

    @rule(worker=WORKERS)
    def stop_listening(self, worker: int) -> None:
        self.workers[worker].stop()

    @rule(worker=WORKERS, afresh=st.booleans())
    def start_listening(self, worker: int, afresh: bool) -> None:
        self.workers[worker].stop()
        if afresh:
            self.workers[worker].start_afresh()
        else:
            self.workers[worker].start()

    # Stories are mostly made of these.
    sign_in_often = sign_in_more_often = sign_in
    refresh_often = refresh_more_often = refresh_most_often = refresh
    wait_often = wait_more_often = wait
    change_own_password_often = change_own_password


@pytest.fixture(scope="module")
def story_postgres(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    make_template(postgres)
    yield postgres
    postgres.drop_database(TEMPLATE)


@pytest.mark.timeout(900 + 2 * STORIES)  # to find a short story takes longer than to tell a long one
def test_every_story_goes_as_the_model_says(
    story_postgres: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "lastcall")  # that the clock stepped back is part of the story
    Story.postgres, Story.folder = story_postgres, tmp_path
    run_state_machine_as_test(
        Story,
        settings=hypothesis_settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=STORIES,
            stateful_step_count=STEPS,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_token_from_before_a_new_password_is_good_again_when_the_clock_steps_back(
    story_postgres: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "lastcall")
    Story.postgres, Story.folder = story_postgres, tmp_path
    story = Story()
    try:
        story.sign_in("bob", "web")
        story.change_own_password(story.world.sessions[0])
        story.step_back_to_what_was_forgotten(60)
        story.all_agree()
    finally:
        story.teardown()
