"""The board of changes: who waits is woken, places for streams are counted, closing ends every wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from models.changes import TOPICS, Changes

NEVER_S = 30.0


def in_thread(wait: Callable[[], Any]) -> Callable[[], Any]:
    """Start `wait` in a thread; the function that is returned gives its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(wait()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(NEVER_S / 3)
        assert not thread.is_alive(), "nobody woke it"
        return results[0]

    return result


@pytest.mark.parametrize("topic", TOPICS)
def test_a_note_wakes_who_waits(topic: str) -> None:
    changes = Changes()
    known = changes.numbers()
    result = in_thread(lambda: changes.wait(known, NEVER_S))
    changes.note(topic)
    assert result() == known | {topic: 1}


def test_a_note_from_before_the_wait_is_not_missed() -> None:
    changes = Changes()
    known = changes.numbers()
    changes.note("sessions")
    assert changes.wait(known, NEVER_S)["sessions"] == 1


def test_without_a_change_the_wait_ends_in_its_time() -> None:
    changes = Changes()
    assert changes.wait(changes.numbers(), 0.01) == dict.fromkeys(TOPICS, 0)


def test_a_topic_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError):
        Changes().note("weather")


def test_what_is_handed_out_is_a_copy() -> None:
    changes = Changes()
    changes.numbers()["sessions"] = 99
    assert changes.numbers()["sessions"] == 0


def test_streams_are_capped_and_a_place_that_is_given_back_is_free_again() -> None:
    changes = Changes()
    assert [changes.open_stream(2) for _ in range(3)] == [True, True, False]
    assert changes.streams == 2
    changes.close_stream()
    assert changes.open_stream(2)


def test_closing_ends_every_wait_and_lets_no_stream_in() -> None:
    changes = Changes()
    waits = [in_thread(lambda: changes.wait(changes.numbers(), NEVER_S)) for _ in range(3)]
    changes.close()
    for result in waits:
        assert result() == dict.fromkeys(TOPICS, 0)
    assert changes.closing
    assert not changes.open_stream(10)
    assert changes.wait(changes.numbers(), NEVER_S) == dict.fromkeys(TOPICS, 0)
