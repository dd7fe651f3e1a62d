"""Constant requests to every worker, written into a history."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from tests.faults.history import LOST, History, Request, Token
from tests.workers.people import ME

PATIENCE_S = 8.0
"""For one answer. A worker that needs longer has lost the request."""


class Caller:
    """One kept-alive connection to one worker; to any other one once that has gone."""

    def __init__(self, port: int, worker: int = 0) -> None:
        self.port, self.worker = port, worker
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, raw: str, path: str = ME) -> tuple[int, int, int]:
        """When the request started, its status, and the worker that gave it.

        A kept-alive connection may be closed at any moment: whoever gets no answer asks again, as every client does.
        """
        for _ in range(3):
            started_ns = time.monotonic_ns()
            try:
                return started_ns, *self._ask(raw, path)
            except ConnectionError:
                self.close()
            except (OSError, http.client.HTTPException):
                self.close()
                break
        return started_ns, LOST, self.worker

    def _ask(self, raw: str, path: str) -> tuple[int, int]:
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {raw}"})
        answer = self._connection.getresponse()
        answer.read()
        if answer.will_close:
            self.close()
        return answer.status, int(answer.headers["X-Worker"])

    def _connect(self) -> None:
        """Open connections until one leads to our worker; when it has gone, whoever answers is our worker.

        A handful at once: one by one, an idle worker may take them all.
        """
        for attempt in itertools.count():
            batch = [http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S) for _ in range(6)]
            try:
                for connection in batch:
                    connection.connect()
                    connection.request("GET", "/healthz")
                for connection in batch:
                    answer = connection.getresponse()
                    answer.read()
                    found = int(answer.headers["X-Worker"])
                    anyone = not self.worker or not _lives(self.worker) or attempt > 20
                    if not answer.will_close and (found == self.worker or anyone):
                        self.worker, self._connection = found, connection
                        return
            finally:
                for connection in batch:
                    if connection is not self._connection:
                        connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Pair:
    """The two callers of a worker: one asks all the time, the other waits to be sent."""

    def __init__(self, port: int, worker: int, keep_asking: Callable[[Pair], None]) -> None:
        self.caller, self.chaser = Caller(port, worker), Caller(port, worker)
        self.over = threading.Event()
        self.sent = ThreadPoolExecutor(1, f"chase-{worker}")
        self._asking = threading.Thread(target=keep_asking, args=(self,), name=f"ask-{worker}")
        self._asking.start()

    def stop(self) -> None:
        self._asking.join()
        self.sent.shutdown(cancel_futures=True)
        self.caller.close()
        self.chaser.close()


class Load:
    """A pair of callers for each worker. The one that asks all the time pauses for `pause_s` seconds in between: the
    load shall keep the workers busy, and leave the machine to them."""

    def __init__(self, history: History, pause_s: float) -> None:
        self._history, self._pause_s = history, pause_s
        self._tokens: tuple[Token, ...] = ()
        self._pairs: dict[int, Pair] = {}

    def start(self, port: int, workers: Iterable[int]) -> None:
        """Begin to ask the workers of one gunicorn, given by their process ids."""
        for worker in workers:
            self._pairs[worker] = Pair(port, worker, self._keep_asking)

    def leave_the_dead(self) -> None:
        """The callers of workers that live no more stop. Until then they ask whoever answers in their place."""
        self._stop([worker for worker in self._pairs if not _lives(worker)])

    def stop(self) -> None:
        self._stop(list(self._pairs))

    def _stop(self, workers: list[int]) -> None:
        pairs = [self._pairs.pop(worker) for worker in workers]
        for pair in pairs:
            pair.over.set()
        for pair in pairs:
            pair.stop()

    def ask_for(self, *tokens: Token) -> None:
        """From now on these tokens are asked for, in turn."""
        self._tokens = tokens

    def chase(self, token: Token, times: int = 1, without: Iterable[int] = ()) -> list[Future[list[int]]]:
        """Send a waiting caller to each worker at once. The futures tell the answers; of a paused worker, late."""
        return [
            pair.sent.submit(self._ask_times, pair, token, times)
            for worker, pair in self._pairs.items()
            if worker not in without
        ]

    def ask_each(self, token: Token, times: int = 1, without: Iterable[int] = ()) -> list[int]:
        """What each worker says to a token, now."""
        done, late = wait(self.chase(token, times, without), timeout=3 * PATIENCE_S)
        assert not late, "a worker does not answer"
        return [status for future in done for status in future.result()]

    def query_each(self, token: Token, path: str) -> set[int]:
        """What the workers answer to a request that takes a query. It is no part of the history."""
        asked = [pair.sent.submit(pair.chaser.ask, token.raw, path) for pair in self._pairs.values()]
        return {future.result(3 * PATIENCE_S)[1] for future in asked}

    @property
    def workers(self) -> list[int]:
        return list(self._pairs)

    def _keep_asking(self, pair: Pair) -> None:
        for number in itertools.count():
            if pair.over.wait(self._pause_s):
                return
            tokens = self._tokens
            if tokens:
                self._ask(pair, pair.caller, tokens[number % len(tokens)])

    def _ask_times(self, pair: Pair, token: Token, times: int) -> list[int]:
        return [self._ask(pair, pair.chaser, token) for _ in range(times)]

    def _ask(self, pair: Pair, caller: Caller, token: Token) -> int:
        started_ns, status, worker = caller.ask(token.raw)
        if status != LOST or not pair.over.is_set():
            self._history.requests.append(Request(token.key, worker, started_ns, time.monotonic_ns(), status))
        return status


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
