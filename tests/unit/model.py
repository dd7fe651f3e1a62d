"""The model behind the promise: one worker, one revocation, one request, and time, as steps in any order.

Each party is a list of named steps. `explore` walks through every interleaving of them, breadth first, so that the
trace it finds is the shortest. The worker has two lists: a round, and a look that a NOTIFY may bring before any round,
true or forged. The request starts after the revocation has returned: it must not be accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

LEASE = 2
ROUNDS = 2
LOOKS = 1
LATEST = 5

# The orders that lastcall/listener.py, models/force_logout.py and lastcall/guard.py keep.
WORKER = ("clock", "renew", "commit", "read", "apply", "lease", "position")
LOOK = ("read", "apply", "position")
REVOCATION = ("commit", "confirm: clock", "confirm: rows", "return")
REQUEST = ("now", "lease?", "cutoffs?")


class World(NamedTuple):
    """All that the parties know. Times are ticks of one clock; the cutoff is one bit: there, or not."""

    time: int = 0
    # The database: the cutoff; the worker's row, with the end of its lease and whether its position has the cutoff.
    revoked: bool = False
    row_until: int = 0
    row_has_it: bool = False
    # The worker: its next step, what it holds in hand during a round, and what its requests see.
    rounds: int = 0
    looks: int = 0
    looking: bool = False
    worker: int = 0
    clock: int = 0
    written: int = 0
    rows_have_it: bool = False
    snapshot_has_it: bool = False
    memory_has_it: bool = False
    lease_until: int = 0
    # The revocation, and the clock by which its confirmation judges.
    revocation: int = 0
    asked: int = 0
    returned: bool = False
    # The request.
    request: int = 0
    now: int = 0
    believes: bool = True
    finds_it: bool = False
    answer: str = ""


def worker_step(step: str, world: World) -> World:
    match step:
        case "clock":
            return world._replace(clock=world.time)
        case "renew":  # stamped when written, before anyone can see it: no observer judges more eagerly
            return world._replace(written=world.time + LEASE)
        case "commit":
            return world._replace(row_until=world.written)
        case "read":  # one statement, so the position is of the same snapshot as the rows
            return world._replace(rows_have_it=world.revoked, snapshot_has_it=world.revoked)
        case "read rows":
            return world._replace(rows_have_it=world.revoked)
        case "read position":
            return world._replace(snapshot_has_it=world.revoked)
        case "apply":
            return world._replace(memory_has_it=world.memory_has_it or world.rows_have_it)
        case "lease":
            return world._replace(lease_until=world.clock + LEASE)
        case "longer lease":
            return world._replace(lease_until=world.clock + LEASE + 1)
        case "position":
            return world._replace(row_has_it=world.snapshot_has_it)
    raise ValueError(step)


def revocation_step(step: str, world: World) -> World:
    match step:
        case "commit":
            return world._replace(revoked=True)
        case "confirm: clock":
            return world._replace(asked=world.time)
        case "confirm: rows":  # in force: no row whose lease still counts has a position without the cutoff
            if world.row_has_it or world.row_until <= world.asked:
                return world
            return world._replace(revocation=REVOCATION.index("confirm: clock") - 1)
        case "return":
            return world._replace(returned=True)
    raise ValueError(step)


def request_step(step: str, world: World) -> World:
    match step:
        case "now":
            return world._replace(now=world.time)
        case "lease?":
            return world._replace(believes=world.now < world.lease_until)
        case "lease? now":  # the other way round: the lease first, then the clock
            return world._replace(believes=world.time < world.lease_until)
        case "cutoffs?":
            return world._replace(finds_it=world.memory_has_it)
    raise ValueError(step)


def answer_of(world: World) -> str:
    if not world.believes:
        return "asks the database"
    return "refused from memory" if world.finds_it else "accepted"


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found. `trace` leads to an acceptance after the return, and is empty when there is none."""

    worlds: int
    trace: tuple[str, ...]
    answers: frozenset[str]
    returns_while_trusted: bool
    returns_when_fenced: bool


def explore(
    worker: tuple[str, ...] = WORKER,
    revocation: tuple[str, ...] = REVOCATION,
    request: tuple[str, ...] = REQUEST,
    look: tuple[str, ...] = LOOK,
) -> Explored:
    def next_steps(world: World) -> Iterator[tuple[str, World]]:
        if world.time < LATEST:
            yield "time passes", world._replace(time=world.time + 1)
        between = world.worker == 0
        if world.rounds < ROUNDS and (between or not world.looking):
            step = worker[world.worker]
            after = worker_step(step, world)
            ends = world.worker + 1 == len(worker)
            yield f"worker: {step}", after._replace(worker=0 if ends else world.worker + 1, rounds=world.rounds + ends)
        if look and world.looks < LOOKS and (between or world.looking):
            step = look[world.worker]
            after = worker_step(step, world)._replace(looks=world.looks + (world.worker + 1 == len(look)))
            on = world.worker + 1 < len(look)
            yield f"look: {step}", after._replace(worker=world.worker + 1 if on else 0, looking=on)
        if world.revocation < len(revocation):
            step = revocation[world.revocation]
            after = revocation_step(step, world)
            yield f"revocation: {step}", after._replace(revocation=after.revocation + 1)
        if world.returned and world.request < len(request):
            step = request[world.request]
            after = request_step(step, world)._replace(request=world.request + 1)
            yield f"request: {step}", after._replace(answer=answer_of(after) if after.request == len(request) else "")

    answers: set[str] = set()
    trusted = fenced = False
    seen: dict[World, tuple[World, str] | None] = {}
    for world in walk(World(), next_steps, seen):
        if world.returned and world.request == 0:
            trusted |= world.time < world.lease_until
            fenced |= world.lease_until <= world.time
        if world.answer:
            answers.add(world.answer)
        if world.answer == "accepted":
            return Explored(len(seen), trace_to(world, seen), frozenset(answers), trusted, fenced)
    return Explored(len(seen), (), frozenset(answers), trusted, fenced)


def walk(start: Any, next_steps: Callable[[Any], Iterable[tuple[str, Any]]], seen: dict[Any, Any]) -> Iterator[Any]:
    """Every world that can be reached, the nearest first; `seen` says from where, and by which step."""
    seen[start] = None
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        yield here
        for label, there in next_steps(here):
            if there not in seen:
                seen[there] = (here, label)
                waiting.append(there)


def trace_to(world: Any, seen: dict[Any, Any]) -> tuple[str, ...]:
    labels = []
    while seen[world] is not None:
        world, label = seen[world]
        labels.append(label)
    return tuple(reversed(labels))


def ends(start: Hashable, step: Callable[[str, Any], Any], *parties: tuple[str, ...]) -> set[Any]:
    """All worlds in which every party has done all its steps, over all interleavings."""

    def next_steps(at: tuple[tuple[int, ...], Any]) -> Iterator[tuple[str, Any]]:
        done, world = at
        for i, party in enumerate(parties):
            if done[i] < len(party):
                yield party[done[i]], ((*done[:i], done[i] + 1, *done[i + 1 :]), step(party[done[i]], world))

    all_done = tuple(len(party) for party in parties)
    places = walk(((0,) * len(parties), start), next_steps, {})
    return {world for done, world in places if done == all_done}
