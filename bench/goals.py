"""What the parts of the bench hold Lastcall to. The page begins with whether it is met, also where it is not."""

from __future__ import annotations

from dataclasses import dataclass


def ratios(values: list[float], base: list[float]) -> list[float]:
    """Round by round."""
    return [value / one for value, one in zip(values, base, strict=True)]


@dataclass(frozen=True, slots=True)
class Goal:
    """`found` are the figures by what they are of, all of which must keep within `limit`; of many, `worst_only`."""

    what: str
    limit: float
    found: dict[str, float]
    at_least: bool = False
    worst_only: bool = False

    @property
    def is_met(self) -> bool:
        return all(value >= self.limit if self.at_least else value <= self.limit for value in self.found.values())

    def line(self) -> str:
        found = sorted(self.found.items(), key=lambda item: item[1], reverse=not self.at_least)
        shown = dict(found[:1]) if self.worst_only else self.found
        figures = "; ".join(f"{of}: {value:.3g}" if of else f"{value:.3g}" for of, value in shown.items())
        limit = f"{'at least' if self.at_least else 'at most'} {self.limit:g}"
        return f"| {self.what} | {limit} | {figures} | {'yes' if self.is_met else '**no**'} |"


def table(goals: list[Goal]) -> list[str]:
    return ["| what | goal | measured | met |", "| --- | --- | --- | --- |", *(goal.line() for goal in goals)]
