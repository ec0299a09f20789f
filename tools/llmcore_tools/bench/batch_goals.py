"""What batching has to reach, and whether what was measured does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmcore_tools.bench.measure import figure
from llmcore_tools.bench.report import Table


@dataclass(frozen=True)
class Goal:
    """A figure and the least that it may be; ``found`` is None where nothing could be measured: a goal missed.

    Attributes:
        unit: behind a figure: ``×`` or `` %``.
    """

    name: str
    least: float
    found: float | None
    unit: str

    @property
    def met(self) -> bool:
        """Whether it was reached; NaN reaches nothing."""
        return self.found is not None and self.found >= self.least

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "unit": self.unit.strip(), "met": self.met}


def table(goals: Sequence[Goal]) -> Table:
    """For people."""
    rows = tuple(
        (
            goal.name,
            f"{goal.least:g}{goal.unit}",
            "" if goal.found is None else f"{figure(goal.found)}{goal.unit}",
            "yes" if goal.met else "no",
        )
        for goal in goals
    )
    return Table("Goals", ("figure", "at least", "found", "reached"), rows)
