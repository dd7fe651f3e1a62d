"""The checker itself: it finds each breach, and finds none in what is allowed."""

from __future__ import annotations

import pytest

from tests.faults.history import ACCEPTED, LOST, NOT_NOW, REFUSED, History, Request, Revocation, Token


def history(*requests: Request, tokens: tuple[Token, ...] = (), revocations: tuple[Revocation, ...] = ()) -> History:
    made = History()
    made.tokens = {token.key: token for token in tokens}
    made.requests += requests
    made.revocations += revocations
    return made


OLD = Token("old", "alice", asked_ns=10, got_ns=20)
NEW = Token("new", "alice", asked_ns=300, got_ns=310)
DURING = Token("during", "alice", asked_ns=150, got_ns=160)
BOB = Token("bob", "bob", asked_ns=10, got_ns=20)
FORCE_LOGOUT = Revocation("alice", started_ns=100, returned_ns=200, revocation_id="1")
LOG_OUT_ALL = Revocation(None, started_ns=100, returned_ns=200, revocation_id="2")
LOST_LOGOUT = Revocation("alice", started_ns=100, returned_ns=None)


def asked(token: Token, started_ns: int, status: int, took_ns: int = 5) -> Request:
    return Request(token.key, 7, started_ns, started_ns + took_ns, status)


def breaches(token: Token, request: Request, revocation: Revocation) -> list[str]:
    return list(history(request, tokens=(token,), revocations=(revocation,)).breaches({"1", "2"}))


@pytest.mark.parametrize("revocation", [FORCE_LOGOUT, LOG_OUT_ALL])
def test_an_acceptance_that_starts_after_the_return_is_found(revocation: Revocation) -> None:
    (found,) = breaches(OLD, asked(OLD, 201, ACCEPTED), revocation)
    assert "worker 7 accepted old" in found


def test_an_acceptance_that_was_in_flight_at_the_return_is_allowed() -> None:
    assert breaches(OLD, asked(OLD, 199, ACCEPTED, took_ns=1000), FORCE_LOGOUT) == []
    assert breaches(OLD, asked(OLD, 200, ACCEPTED), FORCE_LOGOUT) == []


def test_a_token_issued_while_the_revocation_ran_may_live_or_die() -> None:
    assert breaches(DURING, asked(DURING, 400, ACCEPTED), FORCE_LOGOUT) == []
    assert breaches(DURING, asked(DURING, 400, REFUSED), FORCE_LOGOUT) == []


def test_a_refusal_of_anothers_token_is_found() -> None:
    (found,) = breaches(BOB, asked(BOB, 400, REFUSED), FORCE_LOGOUT)
    assert "refused bob" in found
    assert breaches(BOB, asked(BOB, 400, REFUSED), LOG_OUT_ALL) == []


def test_a_refusal_of_a_token_that_came_after_the_return_is_found() -> None:
    (found,) = breaches(NEW, asked(NEW, 400, REFUSED), FORCE_LOGOUT)
    assert "refused new" in found
    assert breaches(NEW, asked(NEW, 400, ACCEPTED), FORCE_LOGOUT) == []


def test_a_refusal_that_ended_before_the_revocation_began_is_found() -> None:
    assert breaches(OLD, asked(OLD, 90, REFUSED), FORCE_LOGOUT)
    assert breaches(OLD, asked(OLD, 97, REFUSED), FORCE_LOGOUT) == [], "it was under way when the revocation began"


def test_a_revocation_that_did_not_return_may_have_happened_or_not() -> None:
    assert breaches(OLD, asked(OLD, 400, ACCEPTED), LOST_LOGOUT) == []
    assert breaches(OLD, asked(OLD, 400, REFUSED), LOST_LOGOUT) == []
    assert breaches(NEW, asked(NEW, 400, REFUSED), LOST_LOGOUT) == [], "it may happen late"


def test_a_token_of_two_revocations_is_gone_with_the_first_that_returned() -> None:
    later = Revocation("alice", started_ns=120, returned_ns=900, revocation_id="3")
    made = history(asked(OLD, 300, ACCEPTED), tokens=(OLD,), revocations=(later, FORCE_LOGOUT))
    assert len(made.accepted_after_return()) == 1


def test_a_returned_revocation_that_the_database_has_lost_is_found() -> None:
    made = history(revocations=(FORCE_LOGOUT, LOST_LOGOUT))
    assert made.not_durable({"1"}) == []
    assert made.not_durable(set()) == ["revocation 1 has returned, and the database does not know it"]


@pytest.mark.parametrize("status", [500, 502, LOST])
def test_any_other_answer_is_found(status: int) -> None:
    assert len(breaches(BOB, asked(BOB, 400, status), FORCE_LOGOUT)) == 1


def test_not_now_is_always_allowed() -> None:
    for token in (OLD, NEW, BOB):
        assert breaches(token, asked(token, 400, NOT_NOW), FORCE_LOGOUT) == []


def test_many_breaches_are_told_in_short() -> None:
    made = history(*[asked(OLD, 300 + n, ACCEPTED) for n in range(50)], tokens=(OLD,), revocations=(FORCE_LOGOUT,))
    assert len(list(made.breaches({"1"}))) == 6


def test_the_figures_come_from_the_history() -> None:
    second = 10**9
    requests = (asked(OLD, 150, ACCEPTED, took_ns=second), asked(OLD, 160, ACCEPTED), asked(OLD, 190, REFUSED))
    made = history(*requests, tokens=(OLD,), revocations=(FORCE_LOGOUT, LOST_LOGOUT))
    assert made.returned == 1
    assert made.longest_request_s() == 1.0
    assert made.staleness_s() == 60 / 1e9
    assert made.workers_that_answered("old", 155) == {7}
    assert made.workers_that_answered("old", 195) == set()
