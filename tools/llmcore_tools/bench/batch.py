"""``llmcore bench batch``: many requests in batches, continuous and static ones; prompts that begin alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore.errors import ConfigError
from llmcore_tools.bench import batch_goals, batch_report, batch_shared, machine, options, roofline
from llmcore_tools.bench.batch_goals import Goal
from llmcore_tools.bench.batch_run import NEW, PROMPT, WAYS, Ask, Sample, Way, drive, eighths, mixed
from llmcore_tools.bench.batch_shared import Shared
from llmcore_tools.bench.measure import in_turns
from llmcore_tools.bench.report import Report, Table, show

if TYPE_CHECKING:
    from llmcore.llm import LLM

BATCH = Flag("--batch", "sequences at a time (8 by default, 16 of mixed and shared)", "N")
REPEATS = Flag("--repeats", "samples of each figure (3 by default); shown are median, smallest and largest", "N")
RATE = Flag("--rate", "mixed: requests that arrive in a second, on average (100 by default)", "N")
PROMPT_TOKENS = Flag("--prompt-tokens", f"mixed: tokens of a prompt ({PROMPT} by default)", "A..B")
OUTPUT_TOKENS = Flag("--output-tokens", f"mixed: tokens that a request asks for ({NEW} by default)", "A..B")
CHECK = Flag("--check", "exit with 1 where a goal is not reached")
BATCHES = {"eighths": 8, "mixed": 16, "shared": 16}
SHARED = Shared()
MISSED = 1
COMMAND = Command(
    "llmcore bench batch",
    "measure continuous batching beside static batching and one request after the other, and the prefix cache",
    (BATCH, REPEATS, RATE, PROMPT_TOKENS, OUTPUT_TOKENS, CHECK, options.ONLY, *options.OUTPUT),
)


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def asks(workload: str, rate: float, given: Mapping[str, str]) -> list[Ask]:
    """The requests of ``eighths``, which come at once, or ``mixed``, of which ``rate`` come in a second."""
    if workload == "eighths":
        return eighths()
    return mixed(rate, options.span(given, PROMPT_TOKENS, PROMPT), options.span(given, OUTPUT_TOKENS, NEW))


def run(job: Job) -> int:
    """One model."""
    given = job.given
    options.check_output(given)
    repeats, rate = options.count(given, REPEATS, 3), options.count(given, RATE, 100)
    batches = {name: options.count(given, BATCH, BATCHES[name]) for name in options.parts(given, tuple(BATCHES))}
    for flag in (RATE, PROMPT_TOKENS, OUTPUT_TOKENS):
        if flag.name in given and "mixed" not in batches:
            raise ConfigError(f"{flag.name} is of mixed", remedy="leave it out, or name mixed in --only")
    work = {name: asks(name, rate, given) for name in batches if name != "shared"}
    llm = load(replace(job.config, engine=replace(job.config.engine, max_seqs=max(batches.values()))))
    results: dict[str, Any] = {"repeats": repeats, "workloads": {}}
    tables: list[Table] = []
    goals: list[Goal] = []
    try:
        check_fits(llm, work, SHARED if "shared" in batches else None)
        measured_on = machine.facts(llm, llm.threads, roofline.machine_state(llm.threads, machine.weight_bytes(llm)))
        for name, batch in batches.items():
            part = _shared if name == "shared" else partial(_ways, name, work[name])
            results["workloads"][name], table, reached = part(llm, batch, repeats, job.config.seed or 0)
            tables.append(table)
            goals += reached
    finally:
        llm.close()
    results["goals"] = [goal.as_json() for goal in goals]
    show(Report("batch", measured_on, results, [*tables, batch_goals.table(goals)]), given)
    return MISSED if CHECK.name in given and not all(goal.met for goal in goals) else 0


Part = tuple[dict[str, Any], Table, list[Goal]]
"""What a workload brought: as plain data, for people, and what of it had to be reached."""


def _ways(name: str, work: Sequence[Ask], llm: LLM, batch: int, repeats: int, seed: int) -> Part:
    found = compare(llm, work, batch, repeats, seed)
    shown = batch_report.table(name, work, found, batch, repeats)
    return batch_report.as_json(work, found, batch), shown, batch_report.goals(name, found, batch)


def _shared(llm: LLM, batch: int, repeats: int, seed: int) -> Part:
    found = batch_shared.measure(llm, SHARED, batch, repeats, seed)
    shown = batch_shared.table(SHARED, found, batch, repeats)
    return batch_shared.as_json(SHARED, found), shown, batch_shared.goals(found)


def check_fits(llm: LLM, work: Mapping[str, Sequence[Ask]], shared: Shared | None) -> None:
    """Raises :class:`ConfigError` for requests that the context does not hold; static batching makes them long."""
    lengths = [(max(ask.prompt for ask in asked), max(ask.new for ask in asked)) for asked in work.values()]
    if shared is not None:
        lengths.append((shared.prefix + shared.own, shared.new))
    prompt, new = max(lengths, key=sum)
    context = llm.engine.scheduler.max_context
    if prompt + new > context:
        raise ConfigError(
            f"{prompt} + {new} tokens do not fit the context of {context}",
            remedy="raise engine.max_context where the model allows it, or leave a workload out by --only",
        )


def compare(llm: LLM, work: Sequence[Ask], batch: int, repeats: int, seed: int) -> dict[str, list[Sample]]:
    """All ways in turns, after a short run that does not count; prompts are new each time."""
    rng = np.random.default_rng(seed)
    short = [replace(ask, new=min(ask.new, 4), at=0.0) for ask in work[:batch]]
    sample(llm, short, WAYS["continuous"], batch, rng)
    return in_turns({name: partial(sample, llm, work, way, batch, rng) for name, way in WAYS.items()}, repeats)


def sample(llm: LLM, work: Sequence[Ask], way: Way, batch: int, rng: np.random.Generator) -> Sample:
    """Runs ``work`` once, one way, with random prompts."""
    prompts = [rng.integers(0, llm.spec.vocab_size, ask.prompt).tolist() for ask in work]
    return drive(llm.engine, work, prompts, way, batch)
