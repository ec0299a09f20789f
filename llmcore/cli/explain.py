"""``llmcore explain``: which kernel runs each node of a model and why, and the plan of its memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llmcore.cli.console import number, table
from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import JSON, Flag
from llmcore.config.command import Command, Job
from llmcore.errors import ConfigError

if TYPE_CHECKING:
    from llmcore.engine.results import Explanation
    from llmcore.graph.program import Row

TOKENS = Flag("--tokens", "explain a step of so many tokens (1, a decode step, by default)", "N")
FULL = Flag("--full", "list every layer, also where several are run alike")
COMMAND = Command("llmcore explain", "show which kernel runs each node of a model, and why", (JSON, TOKENS, FULL))
LAYER = re.compile(r"(?<=layers\.)\d+")


def main(argv: Sequence[str]) -> int:
    """Explains the model of each job; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """Prints one explanation."""
    tokens = _tokens(job.given.get("--tokens", "1"))
    llm = load(job.config)
    try:
        found = llm.explain(tokens)
    finally:
        llm.close()
    if "--json" in job.given:
        print(json.dumps(as_json(job.config.model.ref, found), ensure_ascii=False, indent=2))
    else:
        print(as_text(job.config.model.ref, found, "--full" in job.given))
    return 0


def _tokens(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--tokens is {text!r}", remedy="it must be a number, at least 1")
    return int(text)


def as_json(model: str, found: Explanation) -> dict[str, Any]:
    """An explanation as plain data."""
    values = asdict(found)
    return {
        "model": model,
        "tokens": values["tokens"],
        "device": values["device"],
        "dtype": values["dtype"],
        "nodes": values["rows"],
        "segments": [{"kind": kind, "nodes": count} for kind, count in found.segments],
        "kv_cache": values["kv_cache"],
        "plan": {key: values[key] for key in ("arena_bytes", "lower_bound", "total_bytes", "reuse_factor")},
    }


def as_text(model: str, found: Explanation, full: bool) -> str:
    """An explanation as a table, one line for nodes that several layers run in the same way."""
    rows = [(row.op, row.path, row.backend, row.kernel, row.abi, row.reason) for row in found.rows]
    shown = rows if full else folded(found.rows)
    cache = found.kv_cache
    segments = ", ".join(f"{count} {kind}" for kind, count in found.segments[:6])
    more = f" and {len(found.segments) - 6} more" if len(found.segments) > 6 else ""
    return "\n".join(
        [
            f"{model}: a step of {found.tokens} token{'s' if found.tokens > 1 else ''}, {len(rows)} nodes; "
            f"activations are {found.dtype} on {found.device}",
            "",
            table(("op", "node", "backend", "kernel", "abi", "reason"), shown),
            "",
            f"segments  {segments}{more}",
            f"KV cache  {cache.dtype} ({cache.layout}): {number(cache.token_bytes)} bytes a token, "
            f"{number(cache.pages)} pages of {cache.page_size} tokens",
            f"arena     {number(found.arena_bytes)} bytes; largest live set {number(found.lower_bound)}; "
            f"without sharing {number(found.total_bytes)}, so each byte is used {found.reuse_factor:.1f} times",
        ]
    )


def folded(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows that differ in the layer's number alone, as one row with the range of layers; in order of appearance."""
    layers: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        number_of = LAYER.search(row.path)
        key = (row.op, LAYER.sub("*", row.path), row.backend, row.kernel, row.abi, row.reason)
        layers.setdefault(key, []).append(int(number_of[0]) if number_of else -1)
    return [(key[0], key[1].replace("*", ranges(found)), *key[2:]) for key, found in layers.items()]


def ranges(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``{0-2,5}``; a single number as itself."""
    distinct = sorted(set(numbers))
    parts = []
    for _, run_of in groupby(enumerate(distinct), key=lambda pair: pair[1] - pair[0]):
        group = [value for _, value in run_of]
        parts.append(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}")
    return parts[0] if len(distinct) == 1 else f"{{{','.join(parts)}}}"
