"""Event streams over real workers: they hear the others, end with their session, are counted, and hold nobody up."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import StartGunicorn
from tests.gunicorn import DEADLINE_S, Gunicorn, Line
from tests.workers.people import API, Person, force_logout, make_person, sign_in, status_of

EVENTS = API + "/admin/events"


class Stream:
    """One event stream, open: on whatever worker, unless a connection to one is given."""

    def __init__(self, server: Gunicorn, token: str, connection: http.client.HTTPConnection | None = None) -> None:
        self._connection = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        self._connection.request("GET", EVENTS, headers={"Authorization": f"Bearer {token}"})
        self.response = self._connection.getresponse()
        self.status = self.response.status

    def events(self) -> Iterator[str]:
        """The names of the events as they come, until the stream ends. Raises TimeoutError after the deadline."""
        while line := self.response.readline():
            if line.startswith(b"event: "):
                yield line.removeprefix(b"event: ").decode().strip()

    def wait_for(self, topic: str) -> None:
        assert any(event == topic for event in self.events()), f"the stream ended without {topic}"

    def wait_for_the_end(self) -> float:
        """How long it took until the server ended the stream (seconds)."""
        since_s = time.monotonic()
        for _ in self.events():
            pass
        return time.monotonic() - since_s

    def close(self) -> None:
        self.response.close()
        self._connection.close()


@contextmanager
def opened(server: Gunicorn, token: str, connection: http.client.HTTPConnection | None = None) -> Iterator[Stream]:
    stream = Stream(server, token, connection)
    try:
        yield stream
    finally:
        stream.close()


def streams_on(line: Line) -> int:
    """How many streams a worker says that it carries."""
    text = line.ask("GET", "/metrics").text
    return int(float(next(row.split()[1] for row in text.splitlines() if row.startswith("lastcall_event_streams{"))))


def test_a_stream_hears_a_revocation_made_on_another_worker(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(4)
    admin = sign_in(server)
    with opened(server, admin.token) as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.response.headers["Cache-Control"] == "no-store"
        elsewhere = [line for line in server.lines() if streams_on(line) == 0]
        assert len(elsewhere) == 3
        for number, line in enumerate(elsewhere):
            assert force_logout(line, admin, make_person(server, admin, f"user-{number}")).status == 200
            stream.wait_for("revocation")


def test_a_stream_hears_of_sign_ins_and_of_workers_that_come(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(2)
    admin = sign_in(server)
    with opened(server, admin.token) as stream:
        make_person(server, admin, "alice")
        stream.wait_for("sessions")
        server.signal(signal.SIGTTIN)
        stream.wait_for("workers")


def test_a_stream_ends_when_its_own_session_is_revoked(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(2)
    admin = sign_in(server)
    other = make_person(server, admin, "other-admin", "admin")
    with opened(server, other.token) as stream, opened(server, admin.token) as bystander:
        assert force_logout(server, admin, other).status == 200
        assert stream.wait_for_the_end() < 1.0
        bystander.wait_for("revocation")
        force_logout(server, admin, make_person(server, admin, "alice"))
        bystander.wait_for("revocation")


def test_streams_end_when_everyone_is_signed_out(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(2)
    admin = sign_in(server)
    with opened(server, admin.token) as one, opened(server, sign_in(server).token) as two:
        answer = server.ask("DELETE", API + "/admin/sessions", token=admin.token)
        assert answer.status == 200, answer.text
        assert one.wait_for_the_end() < 1.0
        assert two.wait_for_the_end() < 1.0


def test_who_is_no_admin_gets_no_stream(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(1)
    person = make_person(server, sign_in(server), "alice")
    with opened(server, person.token) as stream:
        assert (stream.status, json.loads(stream.response.read())["code"]) == (403, "forbidden")


def test_more_streams_than_allowed_get_503_and_the_api_still_answers(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(1, LASTCALL_STREAMS_PER_WORKER="3")
    admin = sign_in(server)
    streams = [Stream(server, admin.token) for _ in range(3)]
    try:
        assert [stream.status for stream in streams] == [200] * 3
        with opened(server, admin.token) as refused:
            assert refused.status == 503
            assert refused.response.headers["Retry-After"]
            assert json.loads(refused.response.read())["code"] == "too_many_streams"
        assert all(status_of(server, admin.token) == 200 for _ in range(20))
        streams.pop().close()
        # That nobody listens any more shows when something is written.
        deadline = time.monotonic() + DEADLINE_S
        for number in range(1000):
            force_logout(server, admin, make_person(server, admin, f"user-{number}"))
            stream = Stream(server, admin.token)
            streams.append(stream)
            if stream.status == 200:
                break
            assert time.monotonic() < deadline, "the place of a closed stream is never given back"
    finally:
        for stream in streams:
            stream.close()


def stop_with_streams_open(server: Gunicorn, admin: Person) -> float:
    """How long gunicorn took to stop (seconds)."""
    streams = [Stream(server, admin.token) for _ in range(6)]
    try:
        since_s = time.monotonic()
        server.stop()
        took_s = time.monotonic() - since_s
        for stream in streams:
            stream.wait_for_the_end()
        return took_s
    finally:
        for stream in streams:
            stream.close()


def test_stopping_does_not_wait_for_open_streams(start_gunicorn: StartGunicorn) -> None:
    server = start_gunicorn(2)
    assert stop_with_streams_open(server, sign_in(server)) < 6.0, "the grace time is 10 s: the streams were waited for"


def test_a_worker_that_has_served_its_requests_does_not_wait_for_open_streams(start_gunicorn: StartGunicorn) -> None:
    """--max-requests sends no signal: the streams must end all the same, or nobody is served for the grace time."""
    server = start_gunicorn(1, "--max-requests", "30")
    admin = sign_in(server)
    with opened(server, admin.token) as stream:
        assert stream.status == 200
        slowest_s = 0.0
        for _ in range(35):
            since_s = time.monotonic()
            assert status_of(server, admin.token) in (200, 503)
            slowest_s = max(slowest_s, time.monotonic() - since_s)
    assert slowest_s < 6.0, f"the stream was waited for: nobody was served for {slowest_s:.1f} s"
