"""Constant requests to every worker, written into a history."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from tests.faults.history import LOST, History, Request, Token
from tests.workers.people import ME

PATIENCE_S = 8.0
"""For one answer. A worker that needs longer has lost the request."""
PAUSE_S = 0.004
"""Between two requests of a thread: the load shall keep the workers busy, and leave the machine to them."""


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


class Load:
    """Two callers for each worker: one that asks all the time, and one that waits to be sent (`chase`)."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._over = threading.Event()
        self._tokens: tuple[Token, ...] = ()
        self._callers: list[Caller] = []
        self._threads: list[threading.Thread] = []
        self._chasers: dict[int, tuple[Caller, ThreadPoolExecutor]] = {}

    def start(self, port: int, workers: Iterable[int]) -> None:
        """Begin to ask the workers of one gunicorn, given by their process ids."""
        for worker in workers:
            caller, chaser = Caller(port, worker), Caller(port, worker)
            self._callers += [caller, chaser]
            self._chasers[worker] = (chaser, ThreadPoolExecutor(1, f"chase-{worker}"))
            thread = threading.Thread(target=self._keep_asking, args=(caller,), name=f"ask-{worker}")
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for _, threads in self._chasers.values():
            threads.shutdown(cancel_futures=True)
        for caller in self._callers:
            caller.close()

    def ask_for(self, *tokens: Token) -> None:
        """From now on these tokens are asked for, in turn."""
        self._tokens = tokens

    def chase(self, token: Token, times: int = 1, without: Iterable[int] = ()) -> list[Future[list[int]]]:
        """Send a waiting caller to each worker at once. The futures tell the answers; of a paused worker, late."""
        return [
            threads.submit(self._ask_times, caller, token, times)
            for worker, (caller, threads) in self._chasers.items()
            if worker not in without
        ]

    def ask_each(self, token: Token, times: int = 1, without: Iterable[int] = ()) -> list[int]:
        """What each worker says to a token, now."""
        done, late = wait(self.chase(token, times, without), timeout=3 * PATIENCE_S)
        assert not late, "a worker does not answer"
        return [status for future in done for status in future.result()]

    def query_each(self, token: Token, path: str) -> set[int]:
        """What the workers answer to a request that takes a query. It is no part of the history."""
        asked = [threads.submit(caller.ask, token.raw, path) for caller, threads in self._chasers.values()]
        return {future.result(3 * PATIENCE_S)[1] for future in asked}

    @property
    def workers(self) -> list[int]:
        return list(self._chasers)

    def _keep_asking(self, caller: Caller) -> None:
        for number in itertools.count():
            if self._over.wait(PAUSE_S):
                return
            tokens = self._tokens
            if tokens:
                self._ask(caller, tokens[number % len(tokens)])

    def _ask_times(self, caller: Caller, token: Token, times: int) -> list[int]:
        return [self._ask(caller, token) for _ in range(times)]

    def _ask(self, caller: Caller, token: Token) -> int:
        started_ns, status, worker = caller.ask(token.raw)
        if status != LOST or not self._over.is_set():
            self._history.requests.append(Request(token.key, worker, started_ns, time.monotonic_ns(), status))
        return status


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
