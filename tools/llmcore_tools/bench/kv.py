"""``llmcore bench kv``: the element types of the KV cache: what a token takes, how many fit, and at what cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cache.layout import KV_DTYPES
from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore.config.prompts import read_prompt
from llmcore.config.schema import KVDtype
from llmcore.errors import ConfigError
from llmcore.verify import surprises_in_windows
from llmcore_tools.bench import machine, options
from llmcore_tools.bench.report import Report, Table, show

if TYPE_CHECKING:
    from llmcore.llm import LLM

TEXTS = Flag("--texts", "texts whose perplexity is measured; without any, sizes are all", "FILE,FILE")
TOKENS = Flag("--tokens", "of each text, at most (4096 by default)", "N")
WINDOW = Flag("--window", "tokens of a text that are computed as one sequence (1024 by default)", "N")
BUDGET = Flag("--budget", "MiB of pages to fill with tokens (1024 by default)", "N")
Array = np.ndarray[Any, Any]
ALL = "all"  # texts together
REFERENCE, HALF = "float32", "bfloat16"  # what is compared with: likelihood, and size
COMMAND = Command(
    "llmcore bench kv",
    "what each element type of the KV cache takes, and what it costs in likelihood (compute=exact unless you say auto)",
    (TEXTS, TOKENS, WINDOW, BUDGET, *options.OUTPUT),
)


@dataclass(frozen=True)
class Cache:
    """A KV cache of one element type.

    Attributes:
        layout: name and version.
        page_bytes: a page of ``page_size`` tokens in all layers, padding included.
        surprises: negative log-likelihoods of the tokens of each text, by name.
    """

    layout: str
    page_size: int
    page_bytes: int
    surprises: Mapping[str, Array]

    def perplexity(self, text: str) -> float:
        """Of a text."""
        return float(np.exp(self.surprises[text].mean()))

    def pages(self, budget: int) -> int:
        """That ``budget`` bytes hold."""
        return budget // self.page_bytes

    def tokens(self, budget: int) -> int:
        """That ``budget`` bytes hold."""
        return self.pages(budget) * self.page_size


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    asked = model_as_setting(argv)
    if not any(argument.startswith(("compute=", "+compute=", "++compute=")) for argument in asked):
        asked = ["compute=exact", *asked]  # rounded activations would add a chance of their own to the cache's
    return run_with_settings(COMMAND, asked, run)


def run(job: Job) -> int:
    """One model, loaded once for each element type."""
    given = job.given
    options.check_output(given)
    texts = read_texts(given)
    limit, window = options.count(given, TOKENS, 4096, 2), options.count(given, WINDOW, 1024, 2)
    budget = options.count(given, BUDGET, 1024) << 20
    found: dict[str, Cache] = {}
    offered: Collection[str] = KV_DTYPES
    for name in KV_DTYPES:
        if name not in offered:
            continue
        llm = load(replace(job.config, engine=replace(job.config.engine, kv_dtype=KVDtype(name))))
        try:
            registry = llm.runner.registry
            offered = registry.backends[registry.group_backend["kv"]].kv_layouts  # others would be another backend's
            found[name] = measure(llm, texts, limit, window)
            facts = machine.facts(llm, llm.threads, None)
            lengths = {text: min(len(llm.encode(content)), limit) for text, content in texts.items()}
        finally:
            llm.close()
    results = as_json(found, budget) | {"compute": job.config.compute.value, "window": window, "tokens": lengths}
    tables = [size_table(found, budget)]
    if texts:
        tables.append(perplexity_table(found, lengths, window, job.config.compute.value))
    show(Report("kv", facts, results, tables), given)
    return 0


def read_texts(given: Mapping[str, str]) -> dict[str, str]:
    """The texts that ``--texts`` names, by the names of their files; raises :class:`ConfigError` for what is none."""
    if TEXTS.name not in given:
        return {}
    files = [Path(name.strip()) for name in given[TEXTS.name].split(",")]
    if len({ALL, *(file.stem for file in files)}) <= len(files):
        raise ConfigError(
            f"{TEXTS.name} names two files alike, or one {ALL}", remedy="give each file a name of its own"
        )
    return {file.stem: read_prompt({"--prompt-file": str(file)}, None) for file in files}


def measure(llm: LLM, texts: Mapping[str, str], limit: int, window: int) -> Cache:
    """The size of the cache that ``llm`` has, and the perplexity of each text with it."""
    use = llm.explain().kv_cache
    if texts and window > llm.engine.scheduler.max_context:
        raise ConfigError(
            f"{WINDOW.name} is {window}, and the context {llm.engine.scheduler.max_context}",
            remedy="ask for a shorter one, or raise engine.max_context where the model allows it",
        )
    surprises = {
        name: surprises_in_windows(llm, llm.encode(content)[:limit], window) for name, content in texts.items()
    }
    if len(surprises) > 1:
        surprises[ALL] = np.concatenate(list(surprises.values()))
    return Cache(use.layout, use.page_size, llm.runner.kv_bytes // use.pages, surprises)


def change(found: Mapping[str, Cache], name: str, text: str) -> tuple[float, float]:
    """Of the perplexity, relative to float32's (0.005 is half a per cent more), and its standard error.

    The error is what the choice of tokens brings, as if they were independent.
    """
    apart = found[name].surprises[text] - found[REFERENCE].surprises[text]
    return float(np.expm1(apart.mean())), float(apart.std() / len(apart) ** 0.5)


def capacity(found: Mapping[str, Cache], name: str) -> float:
    """How many times as many tokens fit as of bfloat16, which takes what float16 does."""
    ours, half = found[name], found[HALF]
    return half.page_bytes / half.page_size / (ours.page_bytes / ours.page_size)


def as_json(found: Mapping[str, Cache], budget: int) -> dict[str, Any]:
    """As plain data."""
    return {
        "budget_bytes": budget,
        "kv_dtypes": {
            name: {
                "layout": cache.layout,
                "page_size": cache.page_size,
                "page_bytes": cache.page_bytes,
                "token_bytes": cache.page_bytes / cache.page_size,
                "pages": cache.pages(budget),
                "tokens": cache.tokens(budget),
                "capacity_over_bfloat16": capacity(found, name),
                "perplexity": {
                    text: dict(
                        zip(
                            ("value", "change", "error"),
                            (cache.perplexity(text), *change(found, name, text)),
                            strict=True,
                        )
                    )
                    for text in cache.surprises
                },
            }
            for name, cache in found.items()
        },
    }


def size_table(found: Mapping[str, Cache], budget: int) -> Table:
    """For people."""
    rows = tuple(
        (
            name,
            cache.layout,
            f"{cache.page_bytes / cache.page_size:,.0f}",
            f"{cache.pages(budget):,}",
            f"{cache.tokens(budget):,}",
            f"{capacity(found, name):.2f}",
        )
        for name, cache in found.items()
    )
    page = found[REFERENCE].page_size
    head = ("engine.kv_dtype", "layout", "bytes of a token", "pages", "tokens", "capacity")
    note = (
        f"Keys and values of all layers, scales and padding included. Pages of {page} tokens, and tokens, that fit\n"
        f"{budget >> 20:,} MiB. Capacity: tokens over those of bfloat16, which takes what float16 does."
    )
    return Table("What a token takes", head, rows, note)


def perplexity_table(found: Mapping[str, Cache], lengths: Mapping[str, int], window: int, compute: str) -> Table:
    """For people."""
    texts = list(found[REFERENCE].surprises)
    head = ["engine.kv_dtype"]
    for text in texts:
        head += [text, "change"]
    rows = []
    for name, cache in found.items():
        row = [name]
        for text in texts:
            more, error = change(found, name, text)
            row += [f"{cache.perplexity(text):.4f}", "" if name == REFERENCE else f"{more:+.3%} ± {error:.3%}"]
        rows.append(tuple(row))
    read = ", ".join(f"{count:,} of {text}" for text, count in lengths.items())
    note = (
        f"Teacher-forced, in windows of {window} tokens, the first of which is not counted: {read}.\n"
        f"Change: against {REFERENCE}, with its standard error over the tokens. compute={compute}."
    )
    return Table("Perplexity", tuple(head), tuple(rows), note)
