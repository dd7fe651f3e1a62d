"""Two smaller models beside tests/unit/model.py: a worker's start with NOTIFY, and forgetting a cutoff."""

from __future__ import annotations

from typing import NamedTuple

# The orders that `CutoffListener._serve`, `Cutoffs.forget` and `Guard.check` keep.
START = ("listen", "read")
FORGET = ("raise horizon", "drop")
LOOK_UP = ("cutoffs?", "horizon?")


class Channel(NamedTuple):
    """What a worker has heard and read, without its periodic read."""

    revoked: bool = False
    listens: bool = False
    notified: bool = False
    knows: bool = False


def channel_step(step: str, world: Channel) -> Channel:
    match step:
        case "listen":
            return world._replace(listens=True)
        case "read":
            return world._replace(knows=world.revoked)
        case "revoke":  # delivered at commit, to whoever listens by then
            return world._replace(revoked=True, notified=world.listens)
        case "revoke, notification lost":
            return world._replace(revoked=True)
    raise ValueError(step)


class Memory(NamedTuple):
    """A cutoff whose time is over, and a look-up for a token without generations that it covers and that lives on."""

    held: bool = True
    horizon: bool = False
    refused: bool = False
    asks: bool = False

    @property
    def accepted(self) -> bool:
        return not self.refused and not self.asks


def memory_step(step: str, world: Memory) -> Memory:
    match step:
        case "raise horizon":
            return world._replace(horizon=True)
        case "drop":
            return world._replace(held=False)
        case "horizon?":
            return world._replace(asks=world.horizon)
        case "cutoffs?":
            return world._replace(refused=world.held)
    raise ValueError(step)
