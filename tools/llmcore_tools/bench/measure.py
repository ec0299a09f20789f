"""Samples of one quantity, taken in turns: where a machine changes its mood, it changes it for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Series:
    """The samples of one quantity, in the order in which they were taken; at least one."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.samples)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.samples)

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)}–{figure(self.high)})"

    @property
    def cells(self) -> tuple[str, str, str]:
        """Median, smallest and largest for a table."""
        return figure(self.median), figure(self.low), figure(self.high)

    def as_json(self) -> dict[str, Any]:
        """As plain data, with every sample."""
        return {"median": self.median, "min": self.low, "max": self.high, "samples": list(self.samples)}


@dataclass(frozen=True)
class Ratio:
    """How many times as much ``ours`` is as ``theirs``, from samples taken in pairs.

    ``low`` and ``high`` are the ratios of the single pairs that lie furthest out.
    """

    ours: Series
    theirs: Series

    @property
    def value(self) -> float:
        """The ratio of the medians."""
        return self.ours.median / self.theirs.median

    @property
    def pairs(self) -> tuple[float, ...]:
        """The ratio of every pair."""
        return tuple(a / b for a, b in zip(self.ours.samples, self.theirs.samples, strict=True))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({min(self.pairs):.2f}–{max(self.pairs):.2f})"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "ours": self.ours.as_json(),
            "theirs": self.theirs.as_json(),
            "ratio": {"of_medians": self.value, "min": min(self.pairs), "max": max(self.pairs)},
        }


def in_turns(tasks: Mapping[str, Callable[[], Sample]], repeats: int) -> dict[str, list[Sample]]:
    """Calls every task once, then every task again: A B A B, ``repeats`` times; the results by name."""
    found: dict[str, list[Sample]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            found[name].append(task())
    return found


def rates(amount: float, seconds: Sequence[float]) -> Series:
    """``amount`` per second, for each of ``seconds``."""
    return Series(tuple(amount / taken for taken in seconds))


def figure(value: float) -> str:
    """A number with as many digits as a measurement deserves."""
    if value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
