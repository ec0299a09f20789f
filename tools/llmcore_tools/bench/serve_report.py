"""What ``llmcore bench serve`` found, as tables and as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmcore_tools.bench.measure import Ratio, figure
from llmcore_tools.bench.report import Report, Table
from llmcore_tools.load.metrics import Spread, Summary
from llmcore_tools.load.plan import Plan
from llmcore_tools.load.prompts import Lines, RandomWords
from llmcore_tools.load.records import HUNG_UP, OK, Record
from llmcore_tools.load.run import Run, Server

LATENCIES = {
    "ttft": "time to first token (TTFT)",
    "tpot": "time per output token after it (TPOT)",
    "itl": "inter-token latency (ITL)",
    "e2e": "whole answer (E2E)",
}
READ = (
    "Milliseconds, of complete requests. TTFT: from sending until the first text is there; TPOT: from the first text\n"
    "to the last over the tokens but one; ITL: every gap between two chunks with text; E2E: until the answer has ended."
)


def _p99(spread: Spread | None) -> float | None:
    return spread.p99 if spread else None


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread else None


COMPARED: Mapping[str, Callable[[Summary], float | None]] = {
    "output tokens/s": lambda summary: summary.output_per_s,
    "TTFT P50, ms": lambda summary: _median(summary.latencies["ttft"]),
    "TTFT P99, ms": lambda summary: _p99(summary.latencies["ttft"]),
    "ITL P99, ms": lambda summary: _p99(summary.latencies["itl"]),
}


def single(machine: Mapping[str, Any], plan: Plan, run: Run) -> Report:
    """One run."""
    tables = [load_table(plan, [run]), throughput_table(run.summary), latency_table(run.summary)]
    if run.summary.errors:
        tables.append(error_table(run.records))
    origin = min((record.sent for record in run.records), default=0.0)
    results = {
        "load": _load(plan, [run]),
        **run.summary.as_json(),
        "connections": run.connections,
        "each": [record.as_json(origin) for record in run.records],
    }
    return Report("serve", machine, results, tables)


def against(
    machine: Mapping[str, Any], plan: Plan, runs: Mapping[str, Sequence[Run]], ratios: Mapping[str, Ratio]
) -> Report:
    """Two servers in turns."""
    firsts = [runs["ours"][0], runs["theirs"][0]]
    rows = [(name, str(ratio.ours), str(ratio.theirs), str(ratio)) for name, ratio in ratios.items()]
    note = (
        f"Median (min–max) of {plan.repeats} runs of each, taken in turns; ratio of the medians (lowest–highest of a\n"
        "pair). Tokens per second: more is better; milliseconds: less."
    )
    tables = [
        load_table(plan, firsts),
        Table("One against the other", ("figure", "--url", "--against", "ratio"), (*rows,), note),
    ]
    records = {side: [record for run in found for record in run.records] for side, found in runs.items()}
    for side, name in (("ours", "--url"), ("theirs", "--against")):
        if any(record.outcome not in (OK, HUNG_UP) for record in records[side]):
            tables.append(error_table(records[side], f" of {name}"))
    results = {
        "load": _load(plan, firsts),
        "repeats": plan.repeats,
        "compared": {name: ratio.as_json() for name, ratio in ratios.items()},
        "runs": {side: [run.summary.as_json() for run in found] for side, found in runs.items()},
    }
    return Report("serve", machine, results, tables)


def load_table(plan: Plan, runs: Sequence[Run]) -> Table:
    """What was sent, and where to."""
    rows = tuple((name, str(value)) for name, value in _load(plan, runs).items() if value)
    return Table("Load", ("what", "value"), rows)


def _load(plan: Plan, runs: Sequence[Run]) -> dict[str, str]:
    api, data, servers = plan.api, plan.dataset, [run.server for run in runs]
    prompts = {"prompts": f"{len(data.lines)} lines of a file"} if isinstance(data, Lines) else _random(plan, data)
    return {
        "server": _server(servers[0]),
        "against": _server(servers[1]) if len(servers) > 1 else "",
        "endpoint": f"{api.path}, {'streamed' if api.stream else 'not streamed'}",
        "requests": f"{plan.requests}, {plan.pace}; {plan.warmup} before them to warm up",
        **prompts,
        "answers": f"{data.output} tokens at most{', end tokens ignored' * api.ignore_eos}",
        "hang-ups": f"{plan.hang_up:g} of the requests" if plan.hang_up else "",
        "seed": str(plan.seed),
    }


def _random(plan: Plan, data: RandomWords) -> dict[str, str]:
    return {
        "prompts": f"random, {data.prompt} {'tokens' if plan.prompt_tokens else 'words'}",
        "shared prefix": f"{data.shared} words" if data.shared else "",
    }


def _server(server: Server) -> str:
    per = server.per_word
    counts = f"; {per.each:.2f} tokens a word and {per.fixed:.1f} around them" if per else ""
    return f"{server.target}, {server.api.model}{counts}"


def throughput_table(found: Summary) -> Table:
    """Requests and tokens per second, errors, and what the load tool itself took."""
    return Table("Throughput", ("what", "value"), tuple(_throughput(found)), _counting(found))


def _throughput(found: Summary) -> Iterator[tuple[str, str]]:
    yield "requests", str(found.requests)
    yield "complete", str(found.completed)
    if found.hung_up:
        yield "hung up on", str(found.hung_up)
    if found.errors:
        yield "failed", str(sum(found.errors.values()))
    yield "duration, s", figure(found.duration)
    yield "requests/s", figure(found.requests_per_s)
    yield "output tokens/s", figure(found.output_per_s)
    if found.total_per_s is not None:
        yield "total tokens/s", figure(found.total_per_s)
    yield "output tokens", f"{found.output_tokens:,}"
    if found.prompt_tokens is not None:
        yield "prompt tokens", f"{found.prompt_tokens:,}"
    if found.good is not None and found.good_share is not None:
        yield "goodput, % of requests", f"{100 * found.good_share:.1f}"
        yield "goodput, requests/s", figure(found.good / found.duration)
    yield "load tool, % of a core", figure(100 * found.busy / found.duration)
    if found.late:  # of an open loop
        yield "load tool, ms late at most", figure(1e3 * found.late)


def _counting(found: Summary) -> str:
    """Who counted the tokens, in words."""
    notes = ["Of complete requests; those that we hung up on, and errors, bring no tokens."]
    if chunks := found.counted.get("chunks", 0):
        notes.append(
            f"No usage in {chunks} answers: their output tokens are chunks with text, and one may hold several tokens."
        )
    if unknown := found.counted.get("nothing", 0):
        notes.append(f"{unknown} answers say nothing of their tokens, and count as none.")
    if found.prompt_tokens is None and found.completed:
        notes.append("Prompt tokens are not known of all, so there is no total.")
    return "\n".join(notes)


def latency_table(found: Summary) -> Table:
    """Mean, median, P99."""
    rows = []
    for name, title in LATENCIES.items():
        spread = found.latencies[name]
        shown = (spread.mean, spread.median, spread.p99) if spread else ()
        cells = [f"{value:.2f}" for value in shown] or [""] * 3
        rows.append((title, *cells, str(spread.count if spread else 0)))
    return Table("Latency", ("ms", "mean", "median", "P99", "samples"), tuple(rows), READ)


def error_table(records: Sequence[Record], of: str = "") -> Table:
    """Errors by status, with the first one's words."""
    failed: dict[str, list[Record]] = {}
    for record in records:
        if record.outcome not in (OK, HUNG_UP):
            failed.setdefault(record.outcome, []).append(record)
    rows = [
        (outcome, str(len(those)), those[0].retry_after, those[0].detail) for outcome, those in sorted(failed.items())
    ]
    note = "Of each kind the first one's Retry-After and words. What failed is not sent again."
    return Table(f"Errors{of}", ("status", "requests", "retry after", "first"), tuple(rows), note)
