"""`make bench`: measures, and writes docs/performance.md and docs/performance.json.

python -m bench              everything
python -m bench in_process   one part alone
"""

from __future__ import annotations

import json
import os
import platform
import sys

from rich.console import Console

from bench import in_process, receipts
from tests.gunicorn import ROOT

PARTS = {
    "in_process": ("One check in one process", in_process),
    "receipts": ("From DELETE to receipt, workers idle", receipts),
}


def main() -> int:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        print(f"bench: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    console, found = Console(stderr=True), {}
    lines = [
        "# Performance",
        "",
        f"Written by `make bench`: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
    ]
    for name in wanted:
        title, part = PARTS[name]
        with console.status(title) as status:
            found[name] = part.measure(status.update)
        lines += ["", f"## {title}", "", (part.__doc__ or "").strip(), "", *part.table(found[name])]
    text = "\n".join(lines) + "\n"
    print(text)
    if set(wanted) == set(PARTS):
        (ROOT / "docs" / "performance.md").write_text(text, encoding="utf-8")
        (ROOT / "docs" / "performance.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
