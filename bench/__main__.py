"""`make bench`: measures, and writes docs/performance.md, .json and the plots in docs/performance/.

python -m bench                    everything, but what takes an hour alone
python -m bench in_process http    some parts alone: the others keep what they last measured

A part is a module of this package: its docstring says what it measures, `measure(advance)` returns what it found
(JSON), `table(found)` gives lines of Markdown; if it has them, `goals(found)` what it holds us to, and `plots(found)`
SVG documents by name.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import timeit
from importlib import import_module
from typing import Any

from rich.console import Console

from bench import goals
from tests.gunicorn import ROOT

PARTS = {
    "in_process": "One check in one process",
    "http": "Over HTTP, beside what one would pick instead",
    "sign_ins": "Guarded requests beside sign-ins",
    "propagation": "From COMMIT to every worker",
    "receipts": "From DELETE to receipt",
    "regions": "From one region to the other",
    "listeners": "What a commit costs by the number of listeners",
    "sessions": "From a thousand sessions to a million",
    "ten_million": "From a thousand sessions to ten million",
    "cutoffs": "From no cutoffs to a million",
}
ON_REQUEST = {"ten_million"}
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = DOCUMENT.with_suffix(".json")
PLOTS = DOCUMENT.with_suffix("")


def main() -> int:
    wanted = sys.argv[1:] or [name for name in PARTS if name not in ON_REQUEST]
    if unknown := set(wanted) - set(PARTS):
        print(f"bench: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    console = Console(stderr=True)
    for name in wanted:
        part = import_module(f"bench.{name}")
        with console.status(PARTS[name]) as status:
            found = part.measure(status.update)
        results[name] = {"run": _circumstances(), "found": json.loads(json.dumps(found))}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print("\n".join(_section(name, results[name])))
    write_document(results)
    return 0


def write_document(results: dict[str, dict[str, object]]) -> None:
    """Write the page anew from what every part last measured."""
    PLOTS.mkdir(exist_ok=True)
    lines = ["# Performance", "", "Written by `make bench`; the figures are in [performance.json](performance.json)."]
    met = [goal for name in PARTS if name in results for goal in _goals(name, results[name])]
    lines += ["", "## What we hold ourselves to", "", *goals.table(met)]
    for name in PARTS:
        if name in results:
            lines += _section(name, results[name])
    DOCUMENT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _goals(name: str, result: dict[str, Any]) -> list[goals.Goal]:
    part = import_module(f"bench.{name}")
    return list(getattr(part, "goals", lambda found: [])(result["found"]))


def _section(name: str, result: dict[str, object]) -> list[str]:
    part, found = import_module(f"bench.{name}"), result["found"]
    lines = ["", f"## {PARTS[name]}", "", (part.__doc__ or "").strip(), ""]
    for plot, drawing in getattr(part, "plots", lambda found: {})(found).items():
        PLOTS.mkdir(exist_ok=True)
        (PLOTS / f"{plot}.svg").write_text(drawing, encoding="utf-8")
        lines += [f"![{PARTS[name]}](performance/{plot}.svg)", ""]
    return [*lines, *part.table(found), "", f"*{result['run']}*"]


def _circumstances() -> str:
    """With how quick the machine was just now: times of two runs can be compared only where that agrees."""
    day, cores = time.strftime("%Y-%m-%d"), f"{os.cpu_count()} cores, {platform.machine()}"
    loop_ms = min(timeit.repeat("for _ in range(1_000_000): pass", number=1)) * 1000
    return f"Run on {day}: {cores}, Python {platform.python_version()}, {loop_ms:.0f} ms for a loop of a million steps."


if __name__ == "__main__":
    sys.exit(main())
