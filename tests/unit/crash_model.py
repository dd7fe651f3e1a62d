"""The model of model.py, grown: two workers, two revocations, a crash of the database and one of a worker.

It is coarser where model.py has shown that nothing is lost: a request is one look, and a confirmation that succeeds is
one look too, both at the most eager moment. So a world is bad when a revocation has returned and some worker, by a
lease that is valid, would accept what it was about.

A crash of the database ends its open transactions, and may lose what was not durable. Transaction ids that left
nothing durable come back: the model does not lean on the order in which PostgreSQL writes its log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.unit.model import WORKER, trace_to, walk

LEASE = 1
LATEST = 2
ROUNDS = 2

# What `CutoffListener._serve` does on a new connection, and the round of model.py; each renewal commits at once.
CONNECT = ("register", "load")
ROUND = tuple(step for step in WORKER if step != "commit")


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept of the design; each False is something left out."""

    durable_renewals: bool = True
    waits_after_a_crash: bool = True
    old_positions_do_not_count: bool = True
    registering_empties_the_position: bool = True
    connect: tuple[str, ...] = CONNECT
    round: tuple[str, ...] = ROUND


class Row(NamedTuple):
    """A worker's row. A position is a snapshot: the ids of the transactions that are over, one bit each."""

    until: int = LEASE
    position: int = 0
    incarnation: int = 0


class Worker(NamedTuple):
    """`durable` is what a crash of the database leaves of `row` when it loses all that it may."""

    row: Row = Row()
    durable: Row = Row()
    step: int = len(CONNECT)
    rounds: int = 0
    clock: int = 0
    rows: int = 0
    snapshot: int = 0
    position: int = 0
    memory: int = 0
    lease_until: int = 0


class Revocation(NamedTuple):
    state: str = "waits"
    id: int = 0


class World(NamedTuple):
    """Revocations are bits in `rows` and `memory`, transaction ids are bits in `over`, `snapshot` and `position`."""

    time: int = 0
    workers: tuple[Worker, ...] = (Worker(), Worker())
    revocations: tuple[Revocation, ...] = (Revocation(), Revocation())
    ids: int = 0
    over: int = 0
    crashed_at: int | None = None
    worker_crashed: bool = False

    @property
    def incarnation(self) -> int:
        return int(self.crashed_at is not None)

    @property
    def returned(self) -> int:
        return self.those("returned")

    def those(self, *states: str) -> int:
        return sum(1 << i for i, revocation in enumerate(self.revocations) if revocation.state in states)

    def visible(self, since: int) -> int:
        """The committed revocations whose id is not below the oldest one that the position `since` does not include."""
        oldest = (~since & since + 1).bit_length() - 1
        found = self.those("committed", "returned")
        return sum(found & 1 << i for i, revocation in enumerate(self.revocations) if revocation.id >= oldest)

    def accepting(self) -> list[Worker]:
        """The workers that would accept what a revocation was about that has returned."""
        returned = self.returned
        return [worker for worker in self.workers if self.time < worker.lease_until and returned & ~worker.memory]


def worker_step(step: str, worker: Worker, world: World, rules: Rules) -> Worker:
    def written(row: Row) -> Worker:
        return worker._replace(row=row, durable=row if rules.durable_renewals else worker.durable)

    match step:
        case "register":
            position = 0 if rules.registering_empties_the_position else worker.row.position
            return written(Row(world.time + LEASE, position, world.incarnation))
        case "load":
            return worker._replace(memory=worker.memory | world.visible(0), position=world.over)
        case "clock":
            return worker._replace(clock=world.time)
        case "renew":
            return written(worker.row._replace(until=world.time + LEASE))
        case "read":
            return worker._replace(rows=world.visible(worker.position), snapshot=world.over)
        case "apply":
            return worker._replace(memory=worker.memory | worker.rows, rows=0)
        case "lease":
            return worker._replace(lease_until=worker.clock + LEASE, clock=0, position=worker.snapshot)
        case "position":
            return written(worker.row._replace(position=worker.snapshot))._replace(snapshot=0)
    raise ValueError(step)


def steps_of(worker: Worker, world: World, rules: Rules) -> Iterator[tuple[str, Worker]]:
    """The next step of a worker, unless it has done enough."""
    steps = rules.connect + rules.round
    if worker.rounds < ROUNDS:
        after = worker_step(steps[worker.step], worker, world, rules)
        ends = worker.step + 1 == len(steps)
        yield (
            steps[worker.step],
            after._replace(step=len(rules.connect) if ends else worker.step + 1, rounds=worker.rounds + ends),
        )


def in_force(revocation: Revocation, world: World, rules: Rules) -> bool:
    """What `confirm` waits for: each row is confirmed, or its lease is out, and the last crash is a lease ago."""
    if rules.waits_after_a_crash and world.crashed_at is not None and world.time < world.crashed_at + LEASE:
        return False
    return all(
        row.until <= world.time
        or (
            row.position >> revocation.id & 1
            and (row.incarnation == world.incarnation or not rules.old_positions_do_not_count)
        )
        for row in (worker.row for worker in world.workers)
    )


def steps_of_revocations(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    def becomes(i: int, state: str, id: int, **changes: int) -> World:
        revocations = (*world.revocations[:i], Revocation(state, id), *world.revocations[i + 1 :])
        return world._replace(revocations=revocations, **changes)

    for i, (state, id) in enumerate(world.revocations):
        who = f"revocation {i + 1}"
        if state == "waits" and (i == 0 or world.revocations[i - 1].state != "waits"):  # else: the same, renamed
            yield f"{who}: begin", becomes(i, "begun", world.ids, ids=world.ids + 1)
        elif state == "begun":
            yield f"{who}: commit", becomes(i, "committed", id, over=world.over | 1 << id)
            yield f"{who}: roll back", becomes(i, "gone", 0, over=world.over | 1 << id)
        elif state == "committed" and in_force(world.revocations[i], world, rules):
            yield f"{who}: return", becomes(i, "returned", id)


def crashes(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    if world.crashed_at is None:
        revocations = tuple(
            Revocation("gone") if revocation.state == "begun" else revocation for revocation in world.revocations
        )
        ids = max((r.id + 1 for r in revocations if r.state in ("committed", "returned")), default=0)
        after = world._replace(revocations=revocations, ids=ids, over=(1 << ids) - 1, crashed_at=world.time)
        cut = [worker._replace(step=0, clock=0, rows=0, snapshot=0) for worker in world.workers]
        yield "the database crashes", after._replace(workers=tuple(sorted(cut)))
        lost = [worker._replace(row=worker.durable) for worker in cut]
        if lost != cut:
            yield "the database crashes, and loses what it may", after._replace(workers=tuple(sorted(lost)))
    if not world.worker_crashed:
        for i, worker in enumerate(world.workers):
            # The process that takes its place writes over its row: more eager than a row that is left behind.
            dead = Worker(worker.row, worker.durable, step=0, rounds=worker.rounds)
            yield f"worker {i + 1} crashes", with_worker(world, i, dead)._replace(worker_crashed=True)


def with_worker(world: World, i: int, worker: Worker) -> World:
    """Sorted, because workers differ in nothing but their names; so a trace may change a worker's number."""
    return world._replace(workers=tuple(sorted((*world.workers[:i], worker, *world.workers[i + 1 :]))))


@dataclass(frozen=True, slots=True)
class Explored:
    """`trace` leads to an acceptance after the return, and is empty when there is none. `reached` names what was."""

    worlds: int
    trace: tuple[str, ...]
    reached: frozenset[str]


def explore(rules: Rules = Rules()) -> Explored:  # noqa: B008
    def next_steps(world: World) -> Iterator[tuple[str, World]]:
        if world.time < LATEST:
            yield "time passes", world._replace(time=world.time + 1)
        for i, worker in enumerate(world.workers):
            for step, after in steps_of(worker, world, rules):
                yield f"worker {i + 1}: {step}", with_worker(world, i, after)
        yield from steps_of_revocations(world, rules)
        yield from crashes(world, rules)

    seen: dict[World, tuple[World, str] | None] = {}
    for world in walk(World(), next_steps, seen):
        if world.accepting():
            return Explored(len(seen), trace_to(world, seen), frozenset())
    return Explored(len(seen), (), frozenset())
