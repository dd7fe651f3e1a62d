"""gunicorn whose workers live in a network namespace, while people reach it at an address of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from runpy import run_path
from typing import Any

from tests.faults import networks

globals().update(run_path(str(Path(__file__).with_name("faulty_conf.py"))))


def when_ready(server: Any) -> None:
    """The arbiter listens already, and has forked nothing yet: the workers will be where it goes now."""
    networks.enter(os.environ[networks.NAMESPACE])
