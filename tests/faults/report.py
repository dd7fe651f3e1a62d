"""The figures of a run: a row for each fault. `python -m tests.faults` writes them to docs/reliability.md."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

HEAD = """# Reliability

What happens to the promise (no token is accepted after its force logout has returned) when something breaks.
Real gunicorn workers under load, real PostgreSQL, a TCP proxy in between. Written by `make faults`; do not edit.

- **after return**: acceptances of a covered token that started after its revocation had returned. Must be 0.
- **wrong**: refusals of a token that nothing covered. Must be 0.
- **lost**: revocations that had returned and were not in the database afterwards. Must be 0.
- **stale**: the longest time a covered token was still accepted, counted from the start of its revocation.
- **longest**: the longest answer to a guarded request.
- **recovery**: from the end of the fault until every worker answered as usual.

| fault | must happen | revocations | requests | after return | wrong | lost | stale | longest | recovery | | run on |
| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- |
"""

RACES = """
## Races

A sign-in, refresh, password change or deletion and a revocation, started at the same moment, again and again.

| race | how often | tokens that survived their revocation | run on |
| --- | --: | --- | --- |
"""
RACE = "race: "
"""How the name of a race begins, among the faults."""


@dataclass
class Figures:
    """The row of one fault. Times are seconds; None: not measured here."""

    fault: str
    must: str
    revocations: int = 0
    requests: int = 0
    after_return: int = 0
    wrong: int = 0
    lost: int = 0
    stale_s: float | None = None
    longest_s: float | None = None
    recovery_s: float | None = None
    outcome: str = "failed"
    day: str = ""

    def recovered_in(self, seconds: float) -> None:
        """Keep the slowest recovery."""
        self.recovery_s = max(self.recovery_s or 0.0, seconds)

    def row(self) -> str:
        cells = [
            self.fault,
            self.must,
            str(self.revocations),
            f"{self.requests:,}",
            str(self.after_return),
            str(self.wrong),
            str(self.lost),
            _time(self.stale_s),
            _time(self.longest_s),
            _time(self.recovery_s),
            self.outcome,
            self.day,
        ]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    def race_row(self) -> str:
        survived = "none" if self.outcome == "held" else self.outcome
        return f"| {self.fault.removeprefix(RACE)} | {self.revocations:,} | {survived} | {self.day} |"


@dataclass
class Report:
    """All rows of a run, in the order of the tests."""

    rows: list[Figures] = field(default_factory=list)
    on_change: Callable[[Figures], None] = lambda figures: None

    def begin(self, fault: str, must: str) -> Figures:
        figures = Figures(fault, must, day=time.strftime("%Y-%m-%d"))
        self.rows.append(figures)
        self.on_change(figures)
        return figures

    def tell(self, figures: Figures) -> None:
        """Something has changed: whoever watches the run wants to know."""
        self.on_change(figures)

    def merge_into(self, file: Path) -> Report:
        """The report kept in a file, with the rows of this run in place of those that tell of the same faults."""
        kept = [Figures(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
        new = {figures.fault: figures for figures in self.rows}
        merged = [new.pop(figures.fault, figures) for figures in kept]
        return Report(merged + list(new.values()))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n", encoding="utf-8")

    def as_markdown(self, footer: str = "") -> str:
        faults = [figures.row() for figures in self.rows if not figures.fault.startswith(RACE)]
        races = [figures.race_row() for figures in self.rows if figures.fault.startswith(RACE)]
        return HEAD + "\n".join(faults) + "\n" + footer + (RACES + "\n".join(races) + "\n" if races else "")


REPORT = Report()
"""Of this process."""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
