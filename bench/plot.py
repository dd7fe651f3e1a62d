"""A bar chart as SVG, readable on a light page and on a dark one. Knows nothing of what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

LABELS_PX, BARS_PX, ROW_PX, HEAD_PX = 330, 330, 24, 56
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 15px }
.unit { fill: #59636e } .bar { fill: #8c959f } .ours { fill: #0969da } .spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .unit { fill: #9198a1 } .ours { fill: #4493f8 } .spread { stroke: #f0f6fc }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, and the least and the most of what was seen. `ours`: in the colour that stands out."""

    label: str
    value: float
    least: float
    most: float
    ours: bool = False


def bars(title: str, unit: str, rows: Sequence[Bar], *, logarithmic: bool = False) -> str:
    """An SVG document: one horizontal bar for each row, with its spread and its figure.

    A logarithmic axis begins at the power of ten below the smallest figure; its unit line says so.
    """
    most = max(row.most for row in rows)
    floor = 10 ** math.floor(math.log10(min(row.least for row in rows))) if logarithmic else 0.0

    def length(value: float) -> float:
        if logarithmic:
            return BARS_PX * math.log10(max(value, floor) / floor) / (math.log10(most / floor) or 1)
        return BARS_PX * value / (most or 1)

    height = HEAD_PX + ROW_PX * len(rows) + 8
    width = LABELS_PX + BARS_PX + 100
    scale = f"{unit}; logarithmic, from {floor:g}" if logarithmic else unit
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
        f'<text class="unit" x="8" y="40">{escape(scale)}</text>',
    ]
    for number, row in enumerate(rows):
        top, middle = HEAD_PX + ROW_PX * number, HEAD_PX + ROW_PX * (number + 0.5)
        low, high = (LABELS_PX + length(value) for value in (row.least, row.most))
        kind, thick = "ours" if row.ours else "bar", ROW_PX - 8
        lines += [
            f'<text x="{LABELS_PX - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.label)}</text>',
            f'<rect class="{kind}" x="{LABELS_PX}" y="{top + 4}" width="{length(row.value):.1f}" height="{thick}"/>',
            f'<path class="spread" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 4:.1f}">{row.value:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
