"""What ``llmcore bench soak`` found, as tables and as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmcore_tools.bench.measure import figure
from llmcore_tools.bench.report import Report, Table
from llmcore_tools.load import accounts
from llmcore_tools.load.accounts import Check
from llmcore_tools.load.records import OK, Record
from llmcore_tools.load.soak import FULL, Found, Plan

READ = (
    "Milliseconds, as clients see them on the machine that serves too. /health is asked by a process of its own, from\n"
    "before the load to after the full queue; refusals are 429, during the load, and while the queue was held full."
)


def report(
    machine: Mapping[str, Any], settings: Sequence[str], plan: Plan, found: Found, made: Sequence[Check]
) -> Report:
    """One soak."""
    times = latencies(found)
    load = _load(settings, plan)
    results = {
        "load": load,
        "checks": accounts.as_json(made),
        "outcomes": dict(_outcomes(found)),
        "figures": _figures(found),
        "latencies_ms": times,
        "memory": [{"share": each.share, **vars(each.memory)} for each in found.samples],
        "health": found.health,
        "said": list(found.said),
    }
    tables = [
        Table("Load", ("what", "value"), tuple(load.items())),
        Table("Outcomes", ("outcome", "calls"), tuple((name, f"{count:,}") for name, count in _outcomes(found))),
        Table("Figures", ("what", "value"), tuple((name, _shown(value)) for name, value in _figures(found).items())),
        Table("Latency", ("ms", "P50", "P99", "most", "samples"), tuple(_rows(times)), READ),
        Table("Checks", ("what must hold", "does it", "figures"), tuple(map(_check, made))),
    ]
    return Report("soak", machine, results, tables)


def _load(settings: Sequence[str], plan: Plan) -> dict[str, str]:
    mixture = plan.mixture
    return {
        "server": f"llmcore serve {' '.join(settings)}",
        "clients": f"{plan.clients:,}",
        "requests": f"{plan.requests:,}, of which {100 * mixture.disconnects:g} % are broken off at any moment",
        "prompts": f"{mixture.words} words, a few longer; contexts of {mixture.context} tokens",
        "answers": f"{mixture.output} tokens at most",
        "seed": str(plan.seed),
    }


def _outcomes(found: Found) -> list[tuple[str, int]]:
    """Calls by outcome; those that were refused for a full queue, and then asked again, apart."""
    counts = Counter(exchange.record.outcome for exchange in found.exchanges)
    again = {"429, asked again": len(found.refusals)} if found.refusals else {}
    return [*counts.most_common(), *again.items()]


def _figures(found: Found) -> dict[str, float]:
    """What the server counted during the load, and its memory."""
    assert found.after is not None
    grown = {
        name: found.after.count(name) - found.before.count(name)
        for name in ("generation_tokens_total", "computed_tokens_total", "iterations_total", "num_preemptions_total")
    }
    memory = {name: accounts.drift(found.samples, name) for name in ("resident", "private")}
    return {
        "duration, s": found.seconds,
        "requests/s": len(found.exchanges) / found.seconds,
        "output tokens/s": grown["generation_tokens_total"] / found.seconds,
        "generated tokens": grown["generation_tokens_total"],
        "computed tokens": grown["computed_tokens_total"],
        "steps": grown["iterations_total"],
        "preemptions": grown["num_preemptions_total"],
        **{f"{name} memory when warm, MB": drift.warm / 1e6 for name, drift in memory.items()},
        **{f"{name} memory at the end, MB": drift.last / 1e6 for name, drift in memory.items()},
    }


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else figure(value)


def latencies(found: Found) -> dict[str, dict[str, float] | None]:
    """P50, P99 and the most of each kind; None where there is none of it."""
    answered = [exchange.record for exchange in found.exchanges if exchange.record.outcome == OK]
    full = [record for record in found.rejections if record.outcome == FULL]
    return {
        "/health": _spread(ms for ms, _ in found.health),
        "refusals during the load": _spread(_times(found.refusals)),
        "refusals by a full queue": _spread(_times(full)),
        "time to first token (TTFT)": _spread(1e3 * each.ttft for each in answered if each.ttft is not None),
        "whole answer (E2E)": _spread(_times(answered)),
    }


def _times(records: Iterable[Record]) -> Iterable[float]:
    return (1e3 * record.e2e for record in records)


def _spread(times: Iterable[float]) -> dict[str, float] | None:
    found = np.array(list(times))
    if not len(found):
        return None
    p50, p99 = np.percentile(found, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(found.max()), "count": len(found)}


def _rows(times: Mapping[str, Mapping[str, float] | None]) -> Iterable[tuple[str, ...]]:
    for name, spread in times.items():
        cells = [f"{spread[key]:.2f}" for key in ("p50", "p99", "max")] if spread else [""] * 3
        yield (name, *cells, f"{spread['count']:,}" if spread else "0")


def _check(check: Check) -> tuple[str, str, str]:
    return check.name, "yes" if check.ok else "NO", check.detail
