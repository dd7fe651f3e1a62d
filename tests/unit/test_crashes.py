"""Two workers, two revocations, a crash of the database and of a worker: every interleaving, for ever."""

from __future__ import annotations

import pytest

from tests.unit.crash_model import CONNECT, LOOK, ROUND, Explored, Rules, World, explore
from tests.unit.model import LOOK as STEPS_OF_A_LOOK
from tests.unit.model import WORKER

pytestmark = pytest.mark.usefixtures("untraced")

BOTH = 0b11


@pytest.fixture(scope="module")
def chosen(untraced: None) -> Explored:
    return explore(Rules())


def test_after_a_crash_no_token_is_accepted_whose_revocation_has_returned(chosen: Explored) -> None:
    assert chosen.trace == ()


@pytest.mark.parametrize("crashed", [False, True], ids=["the database stays up", "the database crashes"])
@pytest.mark.parametrize("worker_crashed", [False, True], ids=["the workers stay up", "a worker crashes"])
def test_the_exploration_reaches_what_matters(chosen: Explored, crashed: bool, worker_crashed: bool) -> None:
    found = [
        world
        for world in chosen.worlds
        if (world.incarnation == 1) == crashed and world.worker_crashed == worker_crashed
    ]

    def trusted(world: World) -> int:
        return sum(worker.lease_left > 0 for worker in world.workers)

    returned = [world for world in found if world.those("returned") == BOTH]
    assert any(trusted(world) == 2 for world in returned), "both in force while both workers answer from memory"
    assert any(trusted(world) == 1 for world in returned), "both in force past a worker whose lease is out"
    assert any(trusted(world) and world.those("committed") for world in found), "one that still waits"
    assert any(world.those("gone") and world.those("returned") for world in found), "one that rolled back"
    assert any(
        worker.lease_left and not worker.memory and world.those("committed")
        for world in found
        for worker in world.workers
    ), "a worker that would accept, were it not for the wait"


@pytest.mark.parametrize(
    "rules",
    [
        # Without looks, which renew nothing: with them each takes three times as long.
        pytest.param(Rules(waits_after_a_crash=False, look=()), id="nobody waits, but renewals are durable"),
        pytest.param(Rules(durable_renewals=False, look=()), id="renewals can be lost, but one lease is waited for"),
    ],
)
def test_of_two_guards_against_lost_renewals_each_is_enough(rules: Rules) -> None:
    assert explore(rules).trace == ()


WRONG = {
    "renewals can be lost, and nobody waits one lease": Rules(durable_renewals=False, waits_after_a_crash=False),
    "a position from before the crash counts": Rules(old_positions_do_not_count=False, waits_after_a_crash=False),
    "registering carries the old position over": Rules(registering_empties_the_position=False, look=()),
    "after the crash only what is new is read": Rules(connect=(("register",),), look=()),
}


@pytest.mark.parametrize("rules", [pytest.param(rules, id=name) for name, rules in WRONG.items()])
def test_what_is_left_out_is_found(rules: Rules) -> None:
    trace = explore(rules).trace
    assert trace, "no interleaving was bad"
    assert any(step.startswith("the database crashes") for step in trace), "it is the crash that makes it bad"


def test_a_lost_renewal_is_shown_by_its_shortest_trace() -> None:
    assert explore(WRONG["renewals can be lost, and nobody waits one lease"]).trace == (
        "time passes",
        *(f"worker: {', '.join(moment)}" for moment in ROUND),
        "revocation 1: begin",
        "revocation 1: commit",
        "the database crashes and loses what it may",
        "revocation 1: return",
    )


def test_a_position_from_before_the_crash_is_shown_by_an_id_that_came_back() -> None:
    trace = explore(WRONG["a position from before the crash counts"]).trace
    order = ["revocation 1: roll back", "worker: read", "the database crashes", "revocation 2: begin"]
    assert [step for step in trace if step in order] == order
    assert trace[-1] == "revocation 2: return"


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((("read",), ("clock", "renew", "commit"), ("apply", "lease", "position")), id="read before renew"),
        pytest.param((("clock", "renew"), ("read",), ("commit",), ("apply", "lease", "position")), id="not committed"),
        pytest.param((("renew", "commit"), ("clock",), ("read",), ("apply", "lease", "position")), id="clock late"),
        pytest.param((("clock", "renew", "commit"), ("read",), ("lease",), ("apply", "position")), id="lease early"),
        pytest.param((("clock", "renew", "commit"), ("read", "position"), ("apply", "lease")), id="position early"),
    ],
)
def test_a_wrong_order_of_the_round_is_found_here_too(moments: tuple[tuple[str, ...], ...]) -> None:
    assert explore(Rules(round=moments)).trace


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((("read", "position"), ("apply",)), id="position early"),
        pytest.param((("clock",), ("read",), ("apply", "lease", "position")), id="a lease without a renewed row"),
    ],
)
def test_a_wrong_order_of_the_look_is_found_here_too(moments: tuple[tuple[str, ...], ...]) -> None:
    assert explore(Rules(look=moments)).trace


def test_the_orders_here_are_those_of_the_small_model() -> None:
    assert tuple(step for moment in ROUND for step in moment) == WORKER
    assert tuple(step for moment in LOOK for step in moment) == STEPS_OF_A_LOOK
    assert CONNECT == (("register",), ("load",))
