"""The guard: the one place where a token is accepted or refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from lastcall.claims import LONGEST_LIFETIME_S, Claims
from lastcall.clock import boottime_ns
from lastcall.cutoffs import Cutoffs, Scope
from lastcall.errors import CutoffsStale, Expired, Invalid, Malformed, Missing, Revoked
from lastcall.tokens import LARGEST_TOKEN, KeyRing, verify

MEMO_SIZE = 16_384
FAST_CLOCK_S = 60
"""How fast an issuer's clock may be (seconds)."""
LOOK_S = 0.1
"""How long a check waits at most for a look of the listener (seconds): past it, the lease alone decides."""


def hash_function() -> Callable[[bytes], Any]:
    """For tokens. In a request BLAKE2b is quicker (docs/decisions/0015); a Python in FIPS mode has none, or refuses."""
    try:
        quicker = partial(hashlib.blake2b, digest_size=32)
        quicker(b"")
    except (AttributeError, ValueError):
        return hashlib.sha256
    return quicker


_hash = hash_function()


class Answers(Protocol):
    """Who answers for a worker whose lease is out, by the database's cutoffs and clock: `lastcall.ask.Asker`."""

    def refuses(self, claims: Claims) -> Scope | None: ...

    def now_s(self) -> float: ...

    def close(self) -> None: ...


class Guard:
    """Checks access tokens against keys and cutoffs. One a process; any number of threads.

    `asker` answers while the lease is out (LASTCALL_STALE=ask); None refuses then (LASTCALL_STALE=refuse).
    """

    def __init__(
        self,
        keys: KeyRing,
        cutoffs: Cutoffs,
        *,
        issuer: str,
        audience: str,
        longest_lifetime_s: int = LONGEST_LIFETIME_S,
        asker: Answers | None = None,
        clock_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        self.keys = keys
        self.cutoffs = cutoffs
        self.issuer = issuer
        self.audience = audience
        self.longest_lifetime_s = longest_lifetime_s
        """A token whose `exp - iat` is more is refused, whatever it says (seconds)."""
        self._asker = asker
        self._clock_ns = clock_ns
        self._memo: dict[bytes, Claims] = {}

    def close(self) -> None:
        """The process is going to stop."""
        if self._asker is not None:
            self._asker.close()

    def check(self, raw: str | None) -> Claims:
        """The claims of an access token that is good now.

        Raises TokenRejected (Missing, Malformed, Invalid, Expired, Revoked), or CutoffsStale when it can't be known.
        """
        if not raw:
            raise Missing
        if len(raw) > LARGEST_TOKEN or not raw.isascii():
            raise Malformed
        digest = _hash(raw.encode("ascii")).digest()
        claims = self._memo.get(digest)
        # What is compared by time is good from its second on, also after the clock has stepped back behind that.
        if claims is None or (claims.user_gen is None and claims.iat > self.cutoffs.now_s()):
            claims = self._verify(raw, digest)
        cutoffs = self.cutoffs
        if (look := cutoffs.look) is not None:
            self._wait_for(look)
        now_ns = self._clock_ns()
        if claims.exp * 1_000_000_000 <= now_ns + cutoffs.wall_offset_ns:
            self._memo.pop(digest, None)
            raise Expired
        # First the lease, then the cutoffs: the other way round a token can slip through between the two
        # (tests/unit/test_interleavings.py).
        if now_ns < cutoffs.lease_until_ns:
            scope = cutoffs.refuses(claims)
            # After the look-up: what is forgotten in between has moved the horizon first.
            if scope is None and cutoffs.horizon_us and cutoffs.must_be_asked(claims):
                scope = self._refused_by_the_database(claims)
        else:
            # Memory may only add to the answer: a restored database knows less than this process.
            scope = self._refused_by_the_database(claims) or cutoffs.refuses(claims)
        if scope is not None:
            subject = {"user": claims.sub, "session": claims.sid or ""}.get(scope, "")
            raise Revoked(scope, subject, session_id=claims.sid)
        return claims

    def _wait_for(self, look: threading.Event) -> None:
        """Whoever has waited in vain lets the others go on: the lease keeps the promise without any look."""
        if not look.wait(LOOK_S) and self.cutoffs.look is look:
            self.cutoffs.look = None

    def _verify(self, raw: str, digest: bytes) -> Claims:
        claims = verify(
            raw, self.keys, issuer=self.issuer, audience=self.audience, longest_lifetime_s=self.longest_lifetime_s
        )
        if not self.cutoffs.loaded:
            raise CutoffsStale  # nor is the database's clock known, by which times are judged
        self._refuse_what_is_ahead(claims)
        if len(self._memo) >= MEMO_SIZE:
            for oldest in list(self._memo)[: MEMO_SIZE // 8]:
                self._memo.pop(oldest, None)
        self._memo[digest] = claims
        return claims

    def _refuse_what_is_ahead(self, claims: Claims) -> None:
        """Refuse times in the future: an issuer's clock may be a little fast where generations decide. A token without
        them is compared by its `iat`, which must not outrun a cutoff. Raises Malformed or Invalid."""
        now_s = self.cutoffs.now_s()
        if claims.user_gen is not None:  # from before the clock stepped back
            now_s = max(now_s, self.cutoffs.newest_us / 1e6)
        if self._is_ahead(claims, now_s) and self._asker is not None:
            now_s = max(now_s, self._asker.now_s())  # the clock may have stepped since it was read last
        if claims.exp > now_s + self.longest_lifetime_s + FAST_CLOCK_S:
            raise Malformed
        if self._is_ahead(claims, now_s):
            raise Invalid("The token is from the future: the clocks of its issuer and of this service differ.")

    def _is_ahead(self, claims: Claims, now_s: float) -> bool:
        allowed_s = FAST_CLOCK_S if claims.user_gen is not None else 0
        return (
            claims.exp > now_s + self.longest_lifetime_s + FAST_CLOCK_S
            or claims.iat > now_s + allowed_s
            or (claims.nbf is not None and claims.nbf > now_s + allowed_s)
        )

    def _refused_by_the_database(self, claims: Claims) -> Scope | None:
        """Ask. A worker that has not read its cutoffs yet, or is fenced, does not even ask: it answers 503. Raises
        CutoffsStale, or Expired by the database's clock."""
        if self._asker is None or self.cutoffs.fenced or not self.cutoffs.loaded:
            raise CutoffsStale
        return self._asker.refuses(claims)
