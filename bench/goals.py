"""What the parts of the bench hold Lastcall to. The page begins with whether it is met, also where it is not."""

from __future__ import annotations

from dataclasses import dataclass


def ratios(values: list[float], base: list[float]) -> list[float]:
    """Round by round."""
    return [value / one for value, one in zip(values, base, strict=True)]


@dataclass(frozen=True, slots=True)
class Goal:
    """`found` are the figures by what they are of, all of which must keep within `limit`. Of many `worst_only` shows
    those that do not, or the one that comes nearest."""

    what: str
    limit: float
    found: dict[str, float]
    at_least: bool = False
    worst_only: bool = False

    @property
    def is_met(self) -> bool:
        return not self._past_the_limit()

    def _past_the_limit(self) -> list[str]:
        return [of for of, value in self.found.items() if (value < self.limit if self.at_least else value > self.limit)]

    def line(self) -> str:
        found = sorted(self.found.items(), key=lambda item: item[1], reverse=not self.at_least)
        shown = dict(found[: max(1, len(self._past_the_limit()))]) if self.worst_only else self.found
        figures = "; ".join(f"{of}: {value:.3g}" if of else f"{value:.3g}" for of, value in shown.items())
        limit = f"{'at least' if self.at_least else 'at most'} {self.limit:g}"
        return f"| {self.what} | {limit} | {figures} | {'yes' if self.is_met else '**no**'} |"


def table(goals: list[Goal]) -> list[str]:
    measured = [goal.line() for goal in goals if goal.found]
    return ["| what | goal | measured | met |", "| --- | --- | --- | --- |", *measured]
