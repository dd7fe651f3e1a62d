"""The core of Lastcall: checks JWTs against revocations that are in force at once. It knows neither Flask nor an ORM.

A service of yours uses `Guard` and `CutoffListener`, or, with Flask, `lastcall.flask.Lastcall`.
"""

from lastcall.claims import Claims
from lastcall.cutoffs import Cutoffs
from lastcall.errors import (
    CutoffsStale,
    DatabaseAway,
    Expired,
    Invalid,
    LastcallError,
    Malformed,
    Missing,
    Revoked,
    TokenRejected,
)
from lastcall.guard import Guard
from lastcall.listener import CutoffListener
from lastcall.tokens import Key, KeyRing

__version__ = "0.1.0"
__all__ = [
    "Claims",
    "CutoffListener",
    "Cutoffs",
    "CutoffsStale",
    "DatabaseAway",
    "Expired",
    "Guard",
    "Invalid",
    "Key",
    "KeyRing",
    "LastcallError",
    "Malformed",
    "Missing",
    "Revoked",
    "TokenRejected",
]
