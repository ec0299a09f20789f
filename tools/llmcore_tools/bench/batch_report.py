"""What ``llmcore bench batch`` found about the ways to batch, as tables and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from llmcore_tools.bench.batch_goals import Goal
from llmcore_tools.bench.batch_run import WAYS, Ask, Sample
from llmcore_tools.bench.measure import Ratio, Series, figure
from llmcore_tools.bench.report import Table

Samples = Mapping[str, Sequence[Sample]]
"""Way → its samples, taken in turns with those of the others."""


def rates(samples: Sequence[Sample]) -> Series:
    """Output tokens per second."""
    return Series(tuple(each.tokens / each.seconds for each in samples))


def while_waiting(samples: Sequence[Sample], batch: int) -> float | None:
    """Share of slots used while requests waited; the median, None where a run had no such step."""
    shares = [each.slots_used_while_waiting(batch) for each in samples]
    return None if None in shares else median(share for share in shares if share is not None)


FASTER: Mapping[str, tuple[str, float]] = {"eighths": ("static_rows_out", 1.7), "mixed": ("single", 3)}
"""Workload → what continuous batching is compared with, the harder of both static ways, and the least ratio."""


def goals(name: str, found: Samples, batch: int) -> list[Goal]:
    """What continuous batching has to reach in a workload."""
    share = while_waiting(found["continuous"], batch)
    used = Goal(f"{name}: slots used while requests wait", 90, None if share is None else 100 * share, " %")
    way, least = FASTER[name]
    ratio = Ratio(rates(found["continuous"]), rates(found[way]))
    return [used, Goal(f"{name}: tokens per second over {WAYS[way].title}", least, ratio.value, "×")]


def as_json(work: Sequence[Ask], found: Samples, batch: int) -> dict[str, Any]:
    """As plain data."""
    first = rates(found["continuous"])
    return {
        "batch": batch,
        "requests": len(work),
        "prompt_tokens": sum(ask.prompt for ask in work),
        "output_tokens": sum(ask.new for ask in work),
        "last_arrival_s": work[-1].at,
        "ways": {
            way: {
                "tokens_per_s": rates(samples).as_json(),
                "steps": [each.steps for each in samples],
                "slots": {
                    "used": [each.slots_used(batch) for each in samples],
                    "used_while_waiting": [each.slots_used_while_waiting(batch) for each in samples],
                    "steps_while_waiting": [sum(each.waited) for each in samples],
                },
                "continuous_over_it": Ratio(first, rates(samples)).as_json()["ratio"],
            }
            for way, samples in found.items()
        },
    }


def table(name: str, work: Sequence[Ask], found: Samples, batch: int, repeats: int) -> Table:
    """For people."""
    first = rates(found["continuous"])
    rows = []
    for way, samples in found.items():
        ratio = "" if way == "continuous" else str(Ratio(first, rates(samples)))
        used = figure(100 * median(each.slots_used(batch) for each in samples))
        share = while_waiting(samples, batch)
        steps = figure(median(each.steps for each in samples))
        slots = (steps, used, "" if share is None else figure(100 * share))
        rows.append((WAYS[way].title, *rates(samples).cells, ratio, *slots))
    note = (
        f"Output tokens that were asked for, per second, {repeats} samples in turns; prefill is part of the time.\n"
        "Ratio: continuous batching over this, of the medians (lowest–highest of a pair). Static batching computes\n"
        f"every sequence of a batch until the longest has ended. A step has {batch} slots; a sequence uses one if it\n"
        "has not all of its tokens yet and gets a token, or a part of its prompt computed. While requests wait: of\n"
        "steps that were scheduled while a request that had arrived was in no batch "
        f"({_waited(found)} of continuous\nbatching's). Steps and slots are medians.{_arrivals(work)}"
    )
    head = ("way", "median", "min", "max", "ratio", "steps", "slots used, %", "while requests wait, %")
    return Table(f"{len(work)} requests, {batch} at a time: {_lengths(name, work)}", head, tuple(rows), note)


def _lengths(name: str, work: Sequence[Ask]) -> str:
    if name == "eighths":
        return "every eighth of 100 tokens, the others of 10, after prompts of 16"
    return (
        f"{min(a.new for a in work)} to {max(a.new for a in work)} tokens after prompts of "
        f"{min(a.prompt for a in work)} to {max(a.prompt for a in work)}"
    )


def _waited(found: Samples) -> str:
    return f"{median(100 * sum(each.waited) / each.steps for each in found['continuous']):.0f} %"


def _arrivals(work: Sequence[Ask]) -> str:
    if not work[-1].at:
        return ""
    return f"\nRequests arrive by chance (a Poisson process), all of them within {work[-1].at:.1f} s."
