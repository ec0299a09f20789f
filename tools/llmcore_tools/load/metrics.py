"""What many requests amount to: latencies, throughput, goodput, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore_tools.load.records import HUNG_UP, OK, Record, milliseconds


@dataclass(frozen=True)
class Spread:
    """A quantity over many requests, in ms."""

    mean: float
    median: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> Spread | None:
        """None where there is nothing; P99 is interpolated."""
        found = np.array([value for value in seconds if value is not None]) * 1e3
        if not len(found):
            return None
        return cls(float(found.mean()), float(np.median(found)), float(np.percentile(found, 99)), len(found))

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Slo:
    """Limits for a good answer, in seconds; None for no limit."""

    ttft: float | None = None
    tpot: float | None = None


@dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        errors: outcome → requests.
        counted: who counted output tokens → requests.
        prompt_tokens: None where a server did not count them.
        good: complete requests within both limits; None where there is no limit.
        late: how much later than due the latest request was sent, in seconds: the load tool's own lag.
        busy: processor seconds of the load tool.
        latencies: ``ttft``, ``tpot``, ``itl``, ``e2e`` of complete requests.
    """

    requests: int
    completed: int
    hung_up: int
    errors: Mapping[str, int]
    duration: float
    prompt_tokens: int | None
    output_tokens: int
    counted: Mapping[str, int]
    good: int | None
    late: float
    busy: float
    latencies: Mapping[str, Spread | None]

    @property
    def requests_per_s(self) -> float:
        """Complete ones."""
        return self.completed / self.duration

    @property
    def output_per_s(self) -> float:
        """Output tokens of complete requests per second."""
        return self.output_tokens / self.duration

    @property
    def total_per_s(self) -> float | None:
        """Tokens of prompts and answers."""
        return None if self.prompt_tokens is None else (self.prompt_tokens + self.output_tokens) / self.duration

    @property
    def good_share(self) -> float | None:
        """Good ones among all but those that we hung up on."""
        asked = self.requests - self.hung_up
        return None if self.good is None or not asked else self.good / asked

    def as_json(self) -> dict[str, Any]:
        """As plain data: seconds, milliseconds where a name says so."""
        return {
            "requests": self.requests,
            "completed": self.completed,
            "hung_up": self.hung_up,
            "errors": dict(self.errors),
            "duration_s": self.duration,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "tokens_counted_by": dict(self.counted),
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_per_s,
            "total_tokens_per_s": self.total_per_s,
            "goodput": None
            if self.good is None
            else {"share": self.good_share, "requests_per_s": self.good / self.duration},
            "tool": {"late_ms": milliseconds(self.late), "processor_s": self.busy},
            **{f"{name}_ms": spread and spread.as_json() for name, spread in self.latencies.items()},
        }


def summarize(records: Sequence[Record], slo: Slo, busy: float = 0.0) -> Summary:
    """Latencies and tokens are those of complete requests; ``busy``: see :class:`Summary`."""
    complete = [record for record in records if record.outcome == OK]
    outcomes = Counter(record.outcome for record in records)
    hung_up = outcomes.pop(HUNG_UP, 0)
    outcomes.pop(OK, None)
    told = [record.prompt_tokens for record in complete]
    limited = slo.ttft is not None or slo.tpot is not None
    duration = max((record.end for record in records), default=0.0) - min((r.sent for r in records), default=0.0)
    return Summary(
        requests=len(records),
        completed=len(complete),
        hung_up=hung_up,
        errors=dict(sorted(outcomes.items())),
        duration=max(duration, 1e-9),
        prompt_tokens=None if None in told or not told else sum(count or 0 for count in told),
        output_tokens=sum(record.output_tokens or 0 for record in complete),
        counted=dict(Counter(record.counted or "nothing" for record in complete)),
        good=sum(record.meets(slo.ttft, slo.tpot) for record in complete) if limited else None,
        late=max((record.sent - record.due for record in records), default=0.0),
        busy=busy,
        latencies={
            "ttft": Spread.of(record.ttft for record in complete),
            "tpot": Spread.of(record.tpot for record in complete),
            "itl": Spread.of(gap for record in complete for gap in record.gaps),
            "e2e": Spread.of(record.e2e for record in complete),
        },
    )
