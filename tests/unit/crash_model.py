"""The model of model.py, grown: two workers, two revocations, a crash of the database and one of a worker.

Rounds and time are not bounded here: what counts of a time is how much is left of it. It is coarser where model.py has
shown that nothing is gained by looking closer. A request is one look at its most eager moment, so a world is bad when a
revocation has returned and a worker whose lease is valid would accept what it was about. A confirmation is one look
as well, the one that succeeds. And steps are taken at one moment where a pause between them only makes a lease end
sooner or a position come later. (Each step at a moment of its own is as safe: 2,260,000 worlds; so are leases of 2.)

A crash of the database ends its open transactions, and may lose what was not durable. Transaction ids that left
nothing durable come back: nothing here leans on the order in which PostgreSQL writes its log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from tests.unit.model import trace_to, walk

LEASE = 1

# What `CutoffListener._serve` does on a new connection, and then again and again; moment by moment. A look may come
# before any round.
CONNECT = (("register",), ("load",))
ROUND = (("clock", "renew", "commit"), ("read",), ("apply", "lease", "position"))
LOOK = (("read", "apply", "position"),)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the design keeps; each False, and each other order, is something left out."""

    durable_renewals: bool = True
    waits_after_a_crash: bool = True
    old_positions_do_not_count: bool = True
    registering_empties_the_position: bool = True
    connect: tuple[tuple[str, ...], ...] = CONNECT
    round: tuple[tuple[str, ...], ...] = ROUND
    look: tuple[tuple[str, ...], ...] = LOOK


class Row(NamedTuple):
    """A worker's row. Its position is a snapshot: the ids of the transactions that were over, one bit each."""

    left: int = LEASE
    position: int = 0
    incarnation: int = 0


class Worker(NamedTuple):
    """`durable` is what a crash of the database leaves of `row` when it loses all that it may."""

    row: Row = Row()
    durable: Row = Row()
    moment: int = len(CONNECT)
    # In hand during a round: what is left of the lease that its clock gives, the row to be committed, what was read.
    clock_left: int = 0
    written: int = 0
    rows: int = 0
    snapshot: int = 0
    # What lasts: the position that the next read starts from, and what requests see.
    position: int = 0
    memory: int = 0
    lease_left: int = 0


class Revocation(NamedTuple):
    state: str = "waits"
    id: int = 0


class World(NamedTuple):
    """Revocations are bits in `rows` and `memory`; transaction ids are bits in `over`, `snapshot` and `position`."""

    workers: tuple[Worker, ...] = (Worker(), Worker())
    revocations: tuple[Revocation, ...] = (Revocation(), Revocation())
    ids: int = 0
    over: int = 0
    incarnation: int = 0
    settles_in: int = 0
    worker_crashed: bool = False

    def those(self, *states: str) -> int:
        return sum(1 << i for i, revocation in enumerate(self.revocations) if revocation.state in states)

    def visible_since(self, position: int) -> int:
        """The committed revocations whose transaction was not over at that position."""
        committed = self.those("committed", "returned")
        return sum(
            committed & 1 << i for i, revocation in enumerate(self.revocations) if not position & 1 << revocation.id
        )

    def is_bad(self) -> bool:
        """Whether a worker would accept what a revocation was about that has returned."""
        returned = self.those("returned")
        return any(worker.lease_left and returned & ~worker.memory for worker in self.workers)


def worker_step(step: str, worker: Worker, world: World, rules: Rules) -> Worker:
    def writes(row: Row, *, durably: bool = rules.durable_renewals) -> Worker:
        return worker._replace(row=row, durable=row if durably else worker.durable)

    match step:
        case "register":
            position = 0 if rules.registering_empties_the_position else worker.row.position
            return writes(Row(LEASE, position, world.incarnation))
        case "load":
            return worker._replace(memory=worker.memory | world.visible_since(0), position=world.over)
        case "clock":
            return worker._replace(clock_left=LEASE)
        case "renew":
            return worker._replace(written=LEASE)
        case "commit":
            return writes(worker.row._replace(left=worker.written))._replace(written=0)
        case "read":
            return worker._replace(rows=world.visible_since(worker.position), snapshot=world.over)
        case "apply":
            return worker._replace(memory=worker.memory | worker.rows, rows=0)
        case "lease":
            return worker._replace(lease_left=worker.clock_left, clock_left=0)
        case "position":
            position = writes(worker.row._replace(position=worker.snapshot), durably=False)
            return position._replace(position=worker.snapshot, snapshot=0)
    raise ValueError(step)


@cache
def next_moments(worker: Worker, database: World, rules: Rules) -> tuple[tuple[str, Worker], ...]:
    """`database` is a world without its workers: many worlds have the same one."""
    return tuple(_next_moments(worker, database, rules))


def _next_moments(worker: Worker, world: World, rules: Rules) -> Iterator[tuple[str, Worker]]:
    moments = rules.connect + rules.round + rules.look
    between, looks = len(rules.connect), len(rules.connect + rules.round)
    for moment in (between, looks) if rules.look and worker.moment == between else (worker.moment,):
        after = worker
        for step in moments[moment]:
            after = worker_step(step, after, world, rules)
        following = between if moment + 1 in (looks, len(moments)) else moment + 1
        who = "look" if moment >= looks else "worker"
        yield f"{who}: {', '.join(moments[moment])}", after._replace(moment=following)


def is_confirmed(revocation: Revocation, world: World, rules: Rules) -> bool:
    """What `confirm` waits for: in each row the position or the end of the lease, and a lease since the last crash."""
    if rules.waits_after_a_crash and world.settles_in:
        return False
    for row in (worker.row for worker in world.workers):
        counts = row.incarnation == world.incarnation or not rules.old_positions_do_not_count
        if row.left and not (counts and row.position >> revocation.id & 1):
            return False
    return True


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
        elif state == "committed" and is_confirmed(world.revocations[i], world, rules):
            yield f"{who}: return", becomes(i, "returned", id)


def crashes(world: World) -> Iterator[tuple[str, World]]:
    if not world.incarnation:
        revocations = tuple(Revocation("gone") if was.state == "begun" else was for was in world.revocations)
        ids = max((was.id + 1 for was in revocations if was.state in ("committed", "returned")), default=0)
        after = world._replace(revocations=revocations, ids=ids, over=(1 << ids) - 1, incarnation=1, settles_in=LEASE)
        cut = [worker._replace(moment=0, clock_left=0, written=0, rows=0, snapshot=0) for worker in world.workers]
        yield "the database crashes", after._replace(workers=in_order(cut))
        lost = [worker._replace(row=worker.durable) for worker in cut]
        if lost != cut:
            yield "the database crashes and loses what it may", after._replace(workers=in_order(lost))
    if not world.worker_crashed:
        for i, worker in enumerate(world.workers):
            # The process that takes its place writes over its row: more eager than a row that stays behind.
            yield (
                "a worker crashes",
                with_worker(world, i, Worker(worker.row, worker.durable, moment=0))._replace(worker_crashed=True),
            )


@cache
def a_tick_later(worker: Worker) -> Worker:
    return worker._replace(
        row=worker.row._replace(left=max(0, worker.row.left - 1)),
        durable=worker.durable._replace(left=max(0, worker.durable.left - 1)),
        clock_left=max(0, worker.clock_left - 1),
        written=max(0, worker.written - 1),
        lease_left=max(0, worker.lease_left - 1),
    )


def time_passes(world: World) -> World:
    return world._replace(workers=in_order(map(a_tick_later, world.workers)), settles_in=max(0, world.settles_in - 1))


def in_order(workers: Iterable[Worker]) -> tuple[Worker, ...]:
    """Workers differ in nothing but their place: so of two worlds that mirror each other one is enough."""
    return tuple(sorted(workers))


def with_worker(world: World, i: int, worker: Worker) -> World:
    return world._replace(workers=in_order((*world.workers[:i], worker, *world.workers[i + 1 :])))


@dataclass(frozen=True, slots=True)
class Explored:
    """All worlds that can be reached; or, when one of them is bad, the shortest trace to it."""

    worlds: Collection[World]
    trace: tuple[str, ...]


def explore(rules: Rules) -> Explored:
    def next_steps(world: World) -> Iterator[tuple[str, World]]:
        yield "time passes", time_passes(world)
        database = World((), world.revocations, 0, world.over, world.incarnation)
        for i, worker in enumerate(world.workers):
            for label, after in next_moments(worker, database, rules):
                yield label, with_worker(world, i, after)
        yield from steps_of_revocations(world, rules)
        yield from crashes(world)

    next_moments.cache_clear()
    seen: dict[World, tuple[World, str] | None] = {}
    for world in walk(World(), next_steps, seen):
        if world.is_bad():
            return Explored(seen.keys(), trace_to(world, seen))
    return Explored(seen.keys(), ())
