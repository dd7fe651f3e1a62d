"""Server-sent events: "something has changed, look again". One stream holds one thread, so they are counted.

Revocations wake the streams at once; sign-ins and workers come from one cheap query a second and process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flask import Blueprint, Response, json

from blueprints.operation import API, operation
from blueprints.problems import problem
from blueprints.server import server
from lastcall.clock import boottime_ns
from lastcall.errors import LastcallError
from lastcall.flask import bearer_token, require_role
from models.changes import TOPICS, Changes
from models.user import ADMIN

bp = Blueprint("events", __name__, url_prefix=API + "/admin")

CHECK_EVERY_S = 1.0
BEAT_EVERY_S = 5.0
"""A beat at least so often: the only way to notice that nobody is listening any more (seconds)."""
COMMENT = ": still here\n\n"
BEAT = "event: beat\ndata: {}\n\n"
"""For who has to notice as well that nobody is speaking any more: no browser shows a script the comments."""


@bp.get("/events")
@require_role(ADMIN)
@operation("Server-sent events: sessions, revocation, workers", answers={200: None}, problems=(503,))
def events() -> Response:
    raw, guard = bearer_token(), server().lastcall.guard
    return event_stream(lambda: guard.check(raw))


def event_stream(check: Callable[[], object], beat: str = COMMENT) -> Response:
    """A stream of events that ends as soon as `check` raises: it is called every second and at each revocation."""
    changes = server().changes
    if not changes.open_stream(server().settings.streams_per_worker):
        return problem(
            503,
            "too_many_streams",
            "This worker carries as many event streams as it may: poll the list with If-None-Match, or try again.",
            {"Retry-After": "5"},
        )
    response = Response(
        _events(changes, check, beat),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
    response.call_on_close(changes.close_stream)
    return response


def _events(changes: Changes, check: Callable[[], object], beat: str) -> Iterator[str]:
    known = changes.numbers()
    yield "retry: 2000\n\n"
    beat_ns = boottime_ns()
    while not changes.closing:
        numbers = changes.wait(known, CHECK_EVERY_S)
        try:
            check()
        except LastcallError:
            return
        risen = [topic for topic in TOPICS if numbers[topic] != known[topic]]
        known = numbers
        if risen or boottime_ns() - beat_ns > BEAT_EVERY_S * 1e9:
            beat_ns = boottime_ns()
            yield (
                "".join(f"event: {topic}\ndata: {json.dumps({'number': numbers[topic]})}\n\n" for topic in risen)
                or beat
            )
