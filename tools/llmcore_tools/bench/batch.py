"""``llmcore bench batch``: many requests of different lengths: continuous batching, static batching, one by one.

All three are the same calls of the engine: requests are added, and it steps. Continuous batching adds them all at once;
static batching as many as a batch holds, and no more until the last of them has ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError
from llmcore_tools.bench import machine, options, roofline
from llmcore_tools.bench.measure import Ratio, Series, figure, in_turns
from llmcore_tools.bench.report import Report, Table, show

if TYPE_CHECKING:
    from llmcore.engine.request import Request
    from llmcore.llm import LLM

BATCH = Flag("--batch", "sequences at a time (8 by default)", "N")
REPEATS = Flag("--repeats", "samples of each figure (3 by default); shown are median, smallest and largest", "N")
WORKLOADS = ("eighths", "mixed")
WAYS = {"continuous": "continuous batching", "static": "static batching", "single": "one by one"}
COMMAND = Command(
    "llmcore bench batch",
    "measure continuous batching beside static batching and one request after the other, in process",
    (BATCH, REPEATS, options.ONLY, *options.OUTPUT),
)


@dataclass(frozen=True)
class Ask:
    """A request's lengths, in tokens; end tokens end nothing."""

    prompt: int
    new: int


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        seconds: from the first request's adding to the last one's end.
        steps: of the engine.
        tokens: generated.
    """

    seconds: float
    steps: int
    tokens: int

    def slots_used(self, batch: int) -> float:
        """Tokens over what the steps could have generated: ``batch`` each."""
        return self.tokens / (self.steps * batch)


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def asks(workload: str) -> list[Ask]:
    """``eighths``: 32 requests, every eighth for 100 tokens, the others for 10. ``mixed``: 128 of drawn lengths."""
    if workload == "eighths":
        return [Ask(16, 10 if index % 8 else 100) for index in range(32)]
    rng = Random(0)
    return [Ask(rng.randint(8, 128), rng.randint(4, 64)) for _ in range(128)]


def run(job: Job) -> int:
    """One model."""
    given = job.given
    options.check_output(given)
    chosen = options.parts(given, WORKLOADS)
    batch = options.count(given, BATCH, 8)
    repeats = options.count(given, REPEATS, 3)
    llm = load(replace(job.config, engine=replace(job.config.engine, max_seqs=batch)))
    results: dict[str, Any] = {"repeats": repeats, "batch": batch, "workloads": {}}
    tables: list[Table] = []
    try:
        every = {name: asks(name) for name in chosen}
        check_fits(llm, [ask for work in every.values() for ask in work])
        measured_on = machine.facts(llm, llm.threads, roofline.machine_state(llm.threads, machine.weight_bytes(llm)))
        for name, work in every.items():
            found = compare(llm, work, batch, repeats, job.config.seed or 0)
            results["workloads"][name] = as_json(work, found, batch)
            tables.append(table(name, work, found, batch, repeats))
    finally:
        llm.close()
    show(Report("batch", measured_on, results, tables), given)
    return 0


def check_fits(llm: LLM, work: Sequence[Ask]) -> None:
    """Raises :class:`ConfigError` for a request that is longer than the context."""
    longest = max(work, key=lambda ask: ask.prompt + ask.new)
    context = llm.engine.scheduler.max_context
    if longest.prompt + longest.new > context:
        raise ConfigError(
            f"{longest.prompt} + {longest.new} tokens do not fit the context of {context}",
            remedy="raise engine.max_context where the model allows it",
        )


def compare(llm: LLM, work: Sequence[Ask], batch: int, repeats: int, seed: int) -> dict[str, list[Sample]]:
    """All three ways in turns, after a short run that does not count; prompts are new each time."""
    sizes = {"continuous": len(work), "static": batch, "single": 1}
    rng = np.random.default_rng(seed)
    sample(llm, [replace(ask, new=min(ask.new, 4)) for ask in work[:batch]], batch, rng)
    return in_turns({way: partial(sample, llm, work, size, rng) for way, size in sizes.items()}, repeats)


def sample(llm: LLM, work: Sequence[Ask], size: int, rng: np.random.Generator) -> Sample:
    """Runs the requests, ``size`` of them added at a time and run to their end."""
    prompts = [rng.integers(0, llm.spec.vocab_size, ask.prompt).tolist() for ask in work]
    params = [SamplingParams(max_tokens=ask.new, ignore_eos=True) for ask in work]
    requests: list[Request] = []
    steps = 0
    start = time.perf_counter()
    try:
        for first in range(0, len(work), size):
            group = range(first, min(first + size, len(work)))
            requests += (llm.engine.add(prompts[index], params[index]) for index in group)
            while llm.engine.busy:
                llm.engine.step()
                steps += 1
        seconds = time.perf_counter() - start
    finally:
        for request in requests:
            llm.engine.abort(request)
    return Sample(seconds, steps, sum(request.generated_count for request in requests))


def rates(samples: Sequence[Sample]) -> Series:
    """Output tokens per second."""
    return Series(tuple(each.tokens / each.seconds for each in samples))


def as_json(work: Sequence[Ask], found: Mapping[str, Sequence[Sample]], batch: int) -> dict[str, Any]:
    """As plain data."""
    first = rates(found["continuous"])
    return {
        "requests": len(work),
        "prompt_tokens": sum(ask.prompt for ask in work),
        "output_tokens": sum(ask.new for ask in work),
        "ways": {
            way: {
                "tokens_per_s": rates(samples).as_json(),
                "steps": [each.steps for each in samples],
                "slots_used": [each.slots_used(batch) for each in samples],
                "continuous_over_it": Ratio(first, rates(samples)).as_json()["ratio"],
            }
            for way, samples in found.items()
        },
    }


def table(name: str, work: Sequence[Ask], found: Mapping[str, Sequence[Sample]], batch: int, repeats: int) -> Table:
    """For people."""
    first = rates(found["continuous"])
    rows = []
    for way, samples in found.items():
        last = samples[-1]
        ratio = "" if way == "continuous" else str(Ratio(first, rates(samples)))
        rows.append((WAYS[way], *rates(samples).cells, ratio, str(last.steps), figure(100 * last.slots_used(batch))))
    lengths = (
        "every eighth of 100 tokens, the others of 10, after prompts of 16"
        if name == "eighths"
        else f"{min(a.new for a in work)} to {max(a.new for a in work)} tokens after prompts of "
        f"{min(a.prompt for a in work)} to {max(a.prompt for a in work)}"
    )
    note = (
        f"Output tokens per second, {repeats} samples in turns; prefill is part of the time. Ratio: continuous\n"
        f"batching over this, of the medians (lowest–highest of a pair). Slots: tokens generated over steps × {batch}."
    )
    head = ("way", "median", "min", "max", "ratio", "steps", "slots used, %")
    return Table(f"{len(work)} requests: {lengths}", head, tuple(rows), note)
