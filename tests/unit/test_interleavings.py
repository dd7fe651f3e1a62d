"""The order of the steps is the whole proof: every interleaving of the chosen order, and of each wrong one."""

from __future__ import annotations

import pytest

from tests.unit.model import REQUEST, WORKER, Explored, ends, explore
from tests.unit.small_models import FORGET, LOOK_UP, START, Channel, Memory, channel_step, memory_step

pytestmark = pytest.mark.usefixtures("untraced")


def steps(text: str) -> tuple[str, ...]:
    return tuple(text.split(" > "))


@pytest.fixture(scope="module")
def chosen(untraced: None) -> Explored:
    return explore()


def test_in_the_chosen_order_no_request_after_the_return_is_accepted(chosen: Explored) -> None:
    assert chosen.trace == ()


def test_the_exploration_of_the_chosen_order_reaches_what_matters(chosen: Explored) -> None:
    assert chosen.worlds > 10_000
    assert chosen.answers == {"asks the database", "refused from memory"}
    assert chosen.returns_while_trusted, "a revocation must be able to return while the worker answers from memory"
    assert chosen.returns_when_fenced, "a revocation must be able to return past a worker whose lease is over"


@pytest.mark.parametrize(
    ("worker", "request_order"),
    [
        pytest.param("clock > renew > commit > read > apply > position > lease", REQUEST, id="position before lease"),
        pytest.param(
            "clock > renew > commit > read position > read rows > apply > lease > position",
            REQUEST,
            id="position read before the rows",
        ),
        pytest.param(" > ".join(WORKER), ("lease? now", "cutoffs?"), id="lease judged by a later clock"),
    ],
)
def test_an_order_that_is_just_as_safe_stays_open(worker: str, request_order: tuple[str, ...]) -> None:
    assert explore(worker=steps(worker), request=request_order).trace == ()


WRONG_WORKERS = {
    "read before renew": "clock > read > renew > commit > apply > lease > position",
    "renew not committed before reading": "clock > renew > read > commit > apply > lease > position",
    "one transaction for all": "clock > renew > read > apply > lease > position > commit",
    "renew last": "clock > read > apply > lease > renew > commit > position",
    "never renewed": "clock > read > apply > lease > position",
    "lease counted after sending": "renew > clock > commit > read > apply > lease > position",
    "lease counted after the answer": "renew > commit > clock > read > apply > lease > position",
    "lease counted after reading": "renew > commit > read > clock > apply > lease > position",
    "lease counted after applying": "renew > commit > read > apply > clock > lease > position",
    "lease set before apply": "clock > renew > commit > read > lease > apply > position",
    "lease set before reading": "clock > renew > commit > lease > read > apply > position",
    "lease longer than the row says": "clock > renew > commit > read > apply > longer lease > position",
    "position written before apply": "clock > renew > commit > read > position > apply > lease",
    "position read after the rows": "clock > renew > commit > read rows > read position > apply > lease > position",
    "never applied": "clock > renew > commit > read > lease > position",
}


@pytest.mark.parametrize("worker", [pytest.param(order, id=name) for name, order in WRONG_WORKERS.items()])
def test_a_worker_in_a_wrong_order_is_found(worker: str) -> None:
    found = explore(worker=steps(worker))
    assert found.trace, "no interleaving was bad"
    assert found.trace.index("revocation: return") < found.trace.index("request: now")


@pytest.mark.parametrize(
    "look",
    [
        pytest.param("read > position > apply", id="position written before apply"),
        pytest.param("read rows > read position > apply > position", id="position read after the rows"),
        pytest.param("read > position", id="never applied"),
        pytest.param("clock > read > apply > lease > position", id="a lease without a renewed row"),
        pytest.param("read > apply > lease > position", id="the lease of the round before, set anew"),
        pytest.param("clock > read > renew > commit > apply > lease > position", id="read before renew"),
    ],
)
def test_a_look_in_a_wrong_order_is_found(look: str) -> None:
    assert explore(look=steps(look)).trace


def test_without_looks_the_rounds_are_as_safe() -> None:
    """All hints may be lost."""
    assert explore(look=()).trace == ()


@pytest.mark.parametrize(
    "request_order",
    [
        pytest.param("now > cutoffs? > lease?", id="look-up before lease"),
        pytest.param("cutoffs? > now > lease?", id="look-up first of all"),
        pytest.param("cutoffs? > lease? now", id="look-up before lease, by a later clock"),
        pytest.param("cutoffs?", id="lease ignored"),
        pytest.param("now > lease?", id="look-up dropped"),
    ],
)
def test_a_request_in_a_wrong_order_is_found(request_order: str) -> None:
    assert explore(request=steps(request_order)).trace


@pytest.mark.parametrize(
    "revocation",
    [
        pytest.param("commit > return", id="confirmation dropped"),
        pytest.param("return > commit", id="return before commit"),
        pytest.param("commit > return > confirm: clock > confirm: rows", id="confirmed after the return"),
    ],
)
def test_a_revocation_in_a_wrong_order_is_found(revocation: str) -> None:
    assert explore(revocation=steps(revocation)).trace


def test_a_wrong_order_is_shown_by_its_shortest_trace() -> None:
    assert explore(revocation=("commit", "return")).trace == (
        *(f"worker: {step}" for step in WORKER[:-1]),
        "revocation: commit",
        "revocation: return",
        *(f"request: {step}" for step in REQUEST),
    )


# ------------------------------------------------------------------------------------------------ a worker's start


def deaf(start: tuple[str, ...], revoke: str = "revoke") -> set[Channel]:
    """Worlds at rest in which the worker neither knows the cutoff nor is told to look."""
    return {
        world for world in ends(Channel(), channel_step, start, (revoke,)) if not world.knows and not world.notified
    }


def test_a_worker_that_listens_before_it_reads_misses_no_revocation() -> None:
    assert deaf(START) == set()


def test_a_worker_that_reads_before_it_listens_misses_one() -> None:
    assert deaf(("read", "listen"))


def test_a_lost_notification_is_made_up_for_by_the_periodic_read() -> None:
    missed = deaf(START, "revoke, notification lost")
    assert missed
    assert all(channel_step("read", world).knows for world in missed)


# --------------------------------------------------------------------------------------------- forgetting a cutoff


def accepted(forget: tuple[str, ...], look_up: tuple[str, ...]) -> set[Memory]:
    return {world for world in ends(Memory(), memory_step, forget, look_up) if world.accepted}


def test_a_cutoff_forgotten_during_a_look_up_leads_to_the_database() -> None:
    assert accepted(FORGET, LOOK_UP) == set()


@pytest.mark.parametrize(
    ("forget", "look_up"),
    [
        pytest.param(FORGET, ("horizon?", "cutoffs?"), id="horizon before look-up"),
        pytest.param(("drop", "raise horizon"), LOOK_UP, id="dropped before the horizon is raised"),
    ],
)
def test_forgetting_in_a_wrong_order_is_found(forget: tuple[str, ...], look_up: tuple[str, ...]) -> None:
    assert accepted(forget, look_up)
