"""A process that stands still while it waits (a virtual machine that is moved): its clocks go on, and no answer has had
time to come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, TimeoutError

import pytest

from lastcall.clock import STOOD_STILL_S, result_in_time
from tests.gunicorn import ROOT

BEGIN = """
import os, signal, sys, time
from lastcall import ask, hosts

def stand_still(*_, **__):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.05)  # the answer comes a little later than whoever waits for it has woken
    return "there"

"""
ASKS = """
ask.Asker._ask = stand_still
found = ask.Asker("postgresql://nowhere").now_s()
"""
CONNECTS = 'found = hosts.connect_to_primary(stand_still, "postgresql://nowhere", within_s=0.25)'


@pytest.mark.parametrize("waits", [ASKS, CONNECTS], ids=["asks", "connects"])
def test_whoever_waited_while_all_stood_still_has_his_answer(waits: str) -> None:
    program = [sys.executable, "-c", BEGIN + waits + '\nsys.exit(found != "there")']
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it has ended"
        time.sleep(0.25 + 2 * STOOD_STILL_S)
        process.send_signal(signal.SIGCONT)
        _, problem = process.communicate(timeout=60)
    assert process.returncode == 0, problem


def test_whoever_waits_for_nothing_is_not_kept() -> None:
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        result_in_time(Future[None](), 0.12)
    assert time.monotonic() - began_s >= 0.12


def test_a_timeout_that_is_the_answer_is_told_at_once() -> None:
    answer = Future[None]()
    answer.set_exception(TimeoutError("of the network"))
    with pytest.raises(TimeoutError, match="of the network"):
        result_in_time(answer, 60)
