"""The history of a run, and the checker that judges it. It knows no server: only who asked what, when, and the answer.

All times are `time.monotonic_ns()` of the one process that asks: no two clocks are ever compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

ACCEPTED, REFUSED, NOT_NOW, LOST = 200, 401, 503, 0
"""What a worker may say to a token; LOST stands for a request that got no answer."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token: whose it is, and between which moments it was issued."""

    key: str
    subject: str
    asked_ns: int
    got_ns: int
    raw: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A token put to a worker."""

    token: str
    worker: int
    started_ns: int
    ended_ns: int
    status: int

    @property
    def took_s(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation of one subject's tokens, or of everyone's (None). `returned_ns` is None unless it returned as 200.

    One that did not return may still have happened, at any time after its start.
    """

    subject: str | None
    started_ns: int
    returned_ns: int | None
    revocation_id: str = ""

    def is_about(self, token: Token) -> bool:
        return self.subject is None or self.subject == token.subject

    def covers(self, token: Token) -> bool:
        """Surely: its issue had ended when the revocation began."""
        return self.is_about(token) and token.got_ns < self.started_ns

    def may_cover(self, token: Token) -> bool:
        """Perhaps: its issue had begun before the revocation returned."""
        return self.is_about(token) and (self.returned_ns is None or token.asked_ns < self.returned_ns)


class History:
    """What happened. Threads only ever append."""

    def __init__(self) -> None:
        self.tokens: dict[str, Token] = {}
        self.requests: list[Request] = []
        self.revocations: list[Revocation] = []

    def accepted_after_return(self) -> list[str]:
        """Rule 1: no acceptance of a covered token starts after its revocation has returned."""
        gone_ns: dict[str, int] = {}
        for token in self.tokens.values():
            returns = [r.returned_ns for r in self.revocations if r.returned_ns is not None and r.covers(token)]
            if returns:
                gone_ns[token.key] = min(returns)
        return [
            f"worker {request.worker} accepted {request.token} in a request that started"
            f" {(request.started_ns - gone_ns[request.token]) / 1e6:.1f} ms after its revocation had returned"
            for request in self.requests
            if request.status == ACCEPTED and request.started_ns > gone_ns.get(request.token, request.started_ns)
        ]

    def refused_without_cause(self) -> list[str]:
        """Rule 2: no refusal of a token that nothing covers."""
        earliest_ns: dict[str, int] = {}
        for token in self.tokens.values():
            starts = [r.started_ns for r in self.revocations if r.may_cover(token)]
            if starts:
                earliest_ns[token.key] = min(starts)
        return [
            f"worker {request.worker} refused {request.token}, which no revocation can have covered by then"
            for request in self.requests
            if request.status == REFUSED and request.ended_ns < earliest_ns.get(request.token, request.ended_ns + 1)
        ]

    def not_durable(self, found: Collection[str]) -> list[str]:
        """Rule 3: each 200 was durable. `found` are the ids of the revocations that the database knows afterwards."""
        return [
            f"revocation {revocation.revocation_id} has returned, and the database does not know it"
            for revocation in self.revocations
            if revocation.returned_ns is not None and revocation.revocation_id not in found
        ]

    def other_answers(self, allowed: Collection[int] = (ACCEPTED, REFUSED, NOT_NOW)) -> list[str]:
        """Rule 4: a worker accepts, refuses, or says that it can't know at the moment; it says nothing else."""
        return [
            f"worker {request.worker} answered {request.status} for {request.token} after {request.took_s:.1f} s"
            for request in self.requests
            if request.status not in allowed
        ]

    def breaches(
        self, found: Collection[str], allowed: Collection[int] = (ACCEPTED, REFUSED, NOT_NOW)
    ) -> Iterator[str]:
        """All rules; at most five breaches of each are told."""
        for rule in (
            self.accepted_after_return(),
            self.refused_without_cause(),
            self.not_durable(found),
            self.other_answers(allowed),
        ):
            yield from islice(rule, 5)
            if len(rule) > 5:
                yield f"… and {len(rule) - 5} more"

    # ----------------------------------------------------------------------------------------------- figures

    @property
    def returned(self) -> int:
        return sum(revocation.returned_ns is not None for revocation in self.revocations)

    def longest_request_s(self) -> float:
        return max((request.took_s for request in self.requests), default=0.0)

    def staleness_s(self) -> float:
        """The longest time for which a covered token was still accepted, counted from the start of its revocation."""
        started_ns: dict[str, int] = {}
        for token in self.tokens.values():
            starts = [r.started_ns for r in self.revocations if r.covers(token)]
            if starts:
                started_ns[token.key] = min(starts)
        return max(
            (
                (request.started_ns - started_ns[request.token]) / 1e9
                for request in self.requests
                if request.status == ACCEPTED and request.started_ns > started_ns.get(request.token, request.started_ns)
            ),
            default=0.0,
        )

    def workers_that_answered(self, token: str, since_ns: int) -> set[int]:
        """Which workers answered a request for a token that started after a moment."""
        return {r.worker for r in self.requests if r.token == token and r.started_ns > since_ns and r.status != LOST}
