"""`python -m tests.faults`: every fault in full, and every race, with a progress display; docs/reliability.md tells.

LASTCALL_FAULT_ROUNDS is the number of revocations for each fault (500), LASTCALL_RACES of each race (2,000).
Arguments go to pytest (`-k half`): then only the rows of those faults are written anew. A run with fewer revocations
only shows its figures.
"""

from __future__ import annotations

import io
import os
import platform
import sys
from contextlib import redirect_stdout
from pathlib import Path

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs" / "reliability.md"
RACES = FOLDER.parent / "database" / "test_races.py"
FULL = 500
os.environ.setdefault("LASTCALL_FAULT_ROUNDS", str(FULL))
os.environ.setdefault("LASTCALL_RACES", "2000")

import pytest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn  # noqa: E402

from tests.faults.bench import ROUNDS  # noqa: E402
from tests.faults.report import RACE, REPORT, Figures  # noqa: E402


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
        if report.when == "call" and report.nodeid.startswith("tests/database"):
            self._note_race(report)
        if report.when == "teardown":
            self._progress.advance(self._faults)

    def _note_race(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::test_")[2].replace("_", " ")
        figures = REPORT.begin(f"{RACE}{name}", "0 survivors")
        figures.revocations = int(os.environ["LASTCALL_RACES"])
        figures.outcome = "held" if report.passed else "FAILED"

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
            options = ["-p", "no:cacheprovider", "--timeout=0", str(FOLDER), str(RACES), *arguments]
            with redirect_stdout(io.StringIO()):  # pytest's own report; ours is the display
                status = int(pytest.main(options, plugins=[display]))
    if status == pytest.ExitCode.INTERRUPTED and REPORT.rows:
        REPORT.rows.pop()  # the fault under way was not over
    if ROUNDS < FULL or not REPORT.rows:
        print(REPORT.as_markdown(_footer()))
        return status
    rows = DOCUMENT.with_suffix(".json")
    report = REPORT.merge_into(rows) if arguments else REPORT
    report.write(rows)
    DOCUMENT.write_text(report.as_markdown(_footer()), encoding="utf-8")
    print(f"{DOCUMENT} was written; {len(display.failed)} failed.", file=sys.stderr)
    return status


def _footer() -> str:
    python = platform.python_version()
    fewer = "fewer where one takes a whole outage or the fault is a single event; the table says how many"
    return f"\n{ROUNDS} revocations for each fault, {fewer}. Python {python}, {os.cpu_count()} cores.\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
