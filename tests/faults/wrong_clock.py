"""A PostgreSQL whose clock can be set: a library of a few lines of C, put before the real clock (LD_PRELOAD)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int64_t shift(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(getenv("WRONG_CLOCK"), O_RDONLY);
        if (file < 0) return 0;
        seconds = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    }
    return seconds == MAP_FAILED ? 0 : *seconds;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += shift();
    return result;
}

time_t time(time_t *place) {
    struct timeval now;
    gettimeofday(&now, 0);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
"""


class WrongClock:
    """What a server that was started `in_force` takes for the time: the real one, and so many seconds."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler here: the clock of a database can't be set")
        self._library, self._shift = folder / "wrong_clock.so", folder / "shift"
        source = folder / "wrong_clock.c"
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"the C compiler here does not work: {done.stderr[:200]}")
        self.set(0)

    def set(self, seconds: int) -> None:
        with open(self._shift, "r+b" if self._shift.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """For processes that are started meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "LD_PRELOAD", str(self._library))
            patch.setitem(os.environ, "WRONG_CLOCK", str(self._shift))
            yield
