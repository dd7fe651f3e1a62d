"""Whoever revokes and signs in at once ends without a deadlock: every lock is taken in the same order."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from blueprints.server import Server
from models import force_logout, sign_in
from models.confirmation import confirm
from settings import Settings
from tests.conftest import PASSWORD
from tests.database.conftest import InThread, accepts, all_at_once
from tests.database.racing import HERE, MARKS, ROUNDS, SOMEBODY, name_of, new_user, revoke

pytestmark = MARKS


def test_two_revocations_and_ten_sign_ins_at_once_end_without_a_deadlock(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread
) -> None:
    user_id = new_user()
    name = name_of(psql, user_id)
    for _ in range(max(10, ROUNDS // 15)):
        before = sign_in.sign_in(name, PASSWORD, HERE, settings)
        results = all_at_once(
            *[in_thread(revoke, server, "user", user_id, "")] * 2,
            *[in_thread(sign_in.sign_in, name, PASSWORD, HERE, settings)] * 10,
        )
        assert [result for result in results if isinstance(result, Exception)] == []
        assert not accepts(server, before.access_token)
        assert accepts(server, sign_in.sign_in(name, PASSWORD, HERE, settings).access_token)


@pytest.mark.parametrize("scope", ["user", "session", "everyone", "filter", "users"])
def test_overlapping_revocations_of_many_end_without_a_deadlock(
    server: Server, settings: Settings, psql: psycopg.Connection, in_thread: InThread, scope: str
) -> None:
    names = [name_of(psql, new_user()) for _ in range(4)]
    wanted = force_logout.SessionFilter(client="race")
    for _ in range(max(10, ROUNDS // 15)):
        tokens = [sign_in.sign_in(name, PASSWORD, HERE, settings) for name in names * 3]
        if scope == "filter":
            others = [in_thread(force_logout.revoke_matching, wanted, SOMEBODY)] * 2
        elif scope == "users":
            others = [in_thread(force_logout.revoke_users_matching, wanted, SOMEBODY)] * 2
        else:
            others = [in_thread(revoke, server, scope, UUID(token.user_id), token.session_id) for token in tokens[:3]]
        results = all_at_once(in_thread(force_logout.revoke_matching, wanted, SOMEBODY), *others)
        assert [result for result in results if isinstance(result, Exception)] == []
        position = force_logout.revoke_everyone(SOMEBODY).position
        assert confirm(position, server.watch).in_force
        assert not any(accepts(server, token.access_token) for token in tokens)
