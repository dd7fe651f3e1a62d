"""What has changed, as numbers that rise: one board a process, on which any number of event streams wait."""

from __future__ import annotations

import threading

TOPICS = ("sessions", "revocation", "workers")


class Changes:
    """`note` raises a topic's number and wakes the streams that `wait`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = dict.fromkeys(TOPICS, 0)
        self._streams = 0
        self.closing = False

    @property
    def streams(self) -> int:
        return self._streams

    def numbers(self) -> dict[str, int]:
        return dict(self._numbers)

    def note(self, topic: str) -> None:
        with self._changed:
            self._numbers[topic] += 1
            self._changed.notify_all()

    def wait(self, known: dict[str, int], timeout_s: float) -> dict[str, int]:
        """The numbers, as soon as one differs from `known`, or the board closes, or `timeout_s` is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.closing or self._numbers != known, timeout_s)
            return dict(self._numbers)

    def open_stream(self, most: int) -> bool:
        """Take one of `most` places for a stream; False when all are taken."""
        with self._changed:
            if self._streams >= most or self.closing:
                return False
            self._streams += 1
            return True

    def close_stream(self) -> None:
        with self._changed:
            self._streams -= 1

    def close(self) -> None:
        """End every stream: the process is going to stop."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
