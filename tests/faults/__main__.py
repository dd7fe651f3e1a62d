"""`python -m tests.faults`: every fault in full, with a progress display; the figures go to docs/reliability.md.

LASTCALL_FAULT_ROUNDS is the number of revocations for each fault (500). Arguments go to pytest (`-k half`): then the
figures are only shown.
"""

from __future__ import annotations

import io
import os
import platform
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs" / "reliability.md"
os.environ.setdefault("LASTCALL_FAULT_ROUNDS", "500")

import pytest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn  # noqa: E402

from tests.faults.bench import ROUNDS  # noqa: E402
from tests.faults.report import REPORT, Figures  # noqa: E402


class Display:
    """A pytest plugin: one line for the whole run, and one for the fault under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._faults = progress.add_task("faults", total=None)
        self._fault: TaskID | None = None
        self._figures: Figures | None = None
        self.failed: list[str] = []
        REPORT.on_change = self.show

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # In full only what takes rounds; the bench's own tests belong to `make test`.
        items[:] = [item for item in items if item.path.name not in ("test_history.py", "test_proxy.py")]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.update(self._faults, total=len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
            self._progress.console.print(f"[red]failed[/]  {report.nodeid}", highlight=False)
            self._progress.console.print(str(report.longreprtext)[-1500:], markup=False, highlight=False)
        if report.failed and self._figures is not None:
            self._figures.outcome = "FAILED"
        if report.when == "teardown":
            self._progress.advance(self._faults)

    def show(self, figures: Figures) -> None:
        if figures is not self._figures:
            if self._fault is not None:
                self._progress.remove_task(self._fault)
            self._figures = figures
            self._fault = self._progress.add_task(figures.fault, total=ROUNDS)
        if self._fault is not None:
            self._progress.update(self._fault, completed=min(figures.revocations, ROUNDS))


def main(arguments: list[str]) -> int:
    # pytest takes the standard streams for itself while a test runs.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=terminal)) as progress:
            display = Display(progress)
            options = ["-p", "no:cacheprovider", "--no-cov", "--timeout=0", str(FOLDER), *arguments]
            with redirect_stdout(io.StringIO()):  # pytest's own report; ours is the display
                status = int(pytest.main(options, plugins=[display]))
    table = REPORT.as_markdown(_footer())
    if arguments:
        print(table)
    elif REPORT.rows:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(table, encoding="utf-8")
        print(f"{DOCUMENT} was written; {len(display.failed)} failed.", file=sys.stderr)
    return status


def _footer() -> str:
    day = time.strftime("%Y-%m-%d")
    python = platform.python_version()
    return f"\n{ROUNDS} revocations for each fault, Python {python}, {os.cpu_count()} cores, {day}.\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
