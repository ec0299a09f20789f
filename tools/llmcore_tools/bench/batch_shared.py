"""Requests that begin alike, with and without the prefix cache: tokens computed, and the time to the first token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.engine.engine import Engine
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import GenerationError
from llmcore_tools.bench.batch_goals import Goal
from llmcore_tools.bench.measure import Ratio, Series, figure, in_turns
from llmcore_tools.bench.report import Table

if TYPE_CHECKING:
    from llmcore.engine.request import Request
    from llmcore.llm import LLM

WAYS = {"with": "with the prefix cache", "without": "without it"}
STATISTICS = ("mean", "p50", "p99")


@dataclass(frozen=True)
class Shared:
    """``requests`` at once: ``prefix`` tokens that all of them begin with, ``own`` more, and ``new`` to generate."""

    requests: int = 64
    prefix: int = 512
    own: int = 16
    new: int = 16

    @property
    def prompt_tokens(self) -> int:
        """Of all requests together."""
        return self.requests * (self.prefix + self.own)


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        seconds: from adding the first request to the last one's end.
        prefill: tokens of prompts that went through the model, by the engine's counters.
        hit: tokens of prompts that the prefix cache had, by the engine's counters.
        ttft: seconds from adding the first request to each one's first token.
    """

    seconds: float
    prefill: int
    hit: int
    ttft: tuple[float, ...]

    def ttft_ms(self, statistic: str) -> float:
        """``mean``, ``p50`` or ``p99`` of the times to the first token, in milliseconds; P99 is interpolated."""
        if statistic == "mean":
            return 1000 * fmean(self.ttft)
        return 1000 * float(np.percentile(self.ttft, int(statistic[1:])))


Samples = Mapping[str, Sequence[Sample]]
"""``with`` and ``without``: the samples, taken in turns."""


def measure(llm: LLM, work: Shared, batch: int, repeats: int, seed: int) -> dict[str, list[Sample]]:
    """Both ways in turns, after a short run that does not count; prompts are new each time."""
    pool = llm.engine.scheduler.pool
    pool.forget(range(len(pool.references)))  # the engines below write the same pages
    rng = np.random.default_rng(seed)
    sample(llm, Shared(batch, min(work.prefix, 64), work.own, 2), batch, rng, cache=False)
    return in_turns({way: partial(sample, llm, work, batch, rng, cache=way == "with") for way in WAYS}, repeats)


def sample(llm: LLM, work: Shared, batch: int, rng: np.random.Generator, *, cache: bool) -> Sample:
    """Runs the requests, ``batch`` at a time, with an engine of its own, whose cache is empty.

    Raises:
        GenerationError: a request failed, or what the engine computed and what it found in the cache do not add up to
            what was asked.
    """
    prefix = rng.integers(0, llm.spec.vocab_size, work.prefix).tolist()
    own = rng.integers(0, llm.spec.vocab_size, (work.requests, work.own)).tolist()
    params = SamplingParams(max_tokens=work.new, ignore_eos=True)
    engine = Engine(llm.runner, llm.tokenizer, (), prefix_cache=cache)
    engine.scheduler.max_seqs = batch
    requests: list[Request] = []
    ttft: dict[int, float] = {}
    try:
        start = time.perf_counter()
        requests += (engine.add([*prefix, *each], params) for each in own)
        while engine.busy:
            engine.step()
            now = time.perf_counter() - start
            for request in requests:
                if request.id not in ttft and request.generated_count:
                    ttft[request.id] = now
        seconds = time.perf_counter() - start
    finally:
        for request in requests:
            engine.abort(request)
    for request in requests:
        if request.error:
            raise GenerationError(request.error) from request.cause
    stats = engine.stats()
    prefill = stats.computed - (stats.generated - len(requests))  # a prompt gives one token, every later token one more
    if not stats.preemptions:
        check_count(work, prefill, stats.prefix_hit, stats.generated)
    return Sample(seconds, prefill, stats.prefix_hit, tuple(ttft.values()))


def check_count(work: Shared, prefill: int, hit: int, generated: int) -> None:
    """Every token of every prompt is either computed or found, else the counters count something else."""
    if (prefill + hit, generated) != (work.prompt_tokens, work.requests * work.new):
        raise GenerationError(
            f"{prefill} tokens computed and {hit} found are not the {work.prompt_tokens} of the prompts, "
            f"or {generated} tokens generated are not {work.requests * work.new}"
        )


def fall(found: Samples) -> float:
    """By which share fewer tokens of prompts are computed with the cache; the least of all pairs."""
    pairs = zip(found["with"], found["without"], strict=True)
    return min(1 - ours.prefill / theirs.prefill for ours, theirs in pairs)


def _ttft(samples: Sequence[Sample], statistic: str) -> Series:
    return Series(tuple(each.ttft_ms(statistic) for each in samples))


def speedup(found: Samples, statistic: str) -> Ratio:
    """How many times as long the first token takes without the cache."""
    return Ratio(_ttft(found["without"], statistic), _ttft(found["with"], statistic))


def goals(found: Samples) -> list[Goal]:
    """What the cache has to bring."""
    return [
        Goal("shared: fewer prompt tokens computed", 85, 100 * fall(found), " %"),
        *(
            Goal(f"shared: sooner to the first token, {statistic}", 5, speedup(found, statistic).value, "×")
            for statistic in STATISTICS
        ),
    ]


def as_json(work: Shared, found: Samples) -> dict[str, Any]:
    """As plain data; milliseconds."""
    return {
        "requests": work.requests,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.requests * work.new,
        "ways": {
            way: {
                "prefill_tokens_computed": [each.prefill for each in samples],
                "prefix_hit": [each.hit for each in samples],
                "seconds": Series(tuple(each.seconds for each in samples)).as_json(),
                "ttft_ms": {statistic: _ttft(samples, statistic).as_json() for statistic in STATISTICS},
            }
            for way, samples in found.items()
        },
        "computed_fall": fall(found),
        "ttft_without_over_with": {statistic: speedup(found, statistic).as_json()["ratio"] for statistic in STATISTICS},
    }


def table(work: Shared, found: Samples, batch: int, repeats: int) -> Table:
    """For people."""
    rows = []
    for way, samples in found.items():
        times = (str(_ttft(samples, statistic)) for statistic in STATISTICS)
        rows.append((WAYS[way], figure(samples[-1].prefill), *times, str(Series(tuple(s.seconds for s in samples)))))
    ratios = (str(speedup(found, statistic)) for statistic in STATISTICS)
    whole = Ratio(*(Series(tuple(each.seconds for each in found[way])) for way in ("without", "with")))
    rows.append(("without over with", f"{100 * fall(found):.1f} % fewer", *ratios, str(whole)))
    note = (
        f"Median (min–max) of {repeats} samples in turns. All requests arrive at once, {batch} run at a time; time to\n"
        "first token (TTFT) is from then, waiting included. The cache is empty when a sample begins. Prompt tokens\n"
        "computed: by the engine's counters. Last row: of the medians (lowest–highest of a pair)."
    )
    head = ("way", "prompt tokens computed", "TTFT mean, ms", "TTFT P50, ms", "TTFT P99, ms", "all, s")
    title = f"{work.requests} requests: the same {work.prefix} tokens, {work.own} of their own, {work.new} new ones"
    return Table(title, head, tuple(rows), note)
