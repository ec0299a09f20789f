"""``llmcore bench``: a whole model's speed: prefill, decode over depth, batched decode, start-up, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.command import Command, Job
from llmcore_tools.bench import machine, options, workloads
from llmcore_tools.bench.measure import Series, in_turns
from llmcore_tools.bench.report import Report, Table, show
from llmcore_tools.bench.trials import KINDS, Lengths, Trial, trials, workload_for

if TYPE_CHECKING:
    from llmcore.llm import LLM

PARTS = KINDS
COMMAND = Command(
    "llmcore bench",
    "measure a model's speed here (`llmcore bench ops` and `llmcore bench against llama.cpp` measure other things)",
    (*options.LENGTHS, options.REPEATS, options.ONLY, *options.OUTPUT),
)


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """One model."""
    options.check_output(job.given)
    chosen = options.parts(job.given, PARTS)
    repeats = options.count(job.given, options.REPEATS, 7)
    every = trials(Lengths.of(job.given, chosen))
    llm = load(workloads.fitted(job.config, [trial.work for trial in every]))
    try:
        workloads.check_fits(llm, [trial.work for trial in every])
        found = speeds(llm, every, repeats, job.config.seed or 0)
        measured_on = machine.facts(llm, llm.threads, None)
    finally:
        llm.close()
    results = {"repeats": repeats, "speed": [trial.as_json(found[trial]) for trial in every]}
    show(Report("model", measured_on, results, [speed_table(found, repeats)]), job.given)
    return 0


def speeds(llm: LLM, every: Sequence[Trial], repeats: int, seed: int) -> dict[Trial, Series]:
    """Tokens per second of every trial, after one run of each that does not count."""
    distinct = list(dict.fromkeys(workload_for(trial, every) for trial in every))
    for work in distinct:
        workloads.run(llm, work, seed)
    taken = in_turns({str(i): partial(workloads.run, llm, work, seed) for i, work in enumerate(distinct)}, repeats)
    return {trial: trial.rate(taken[str(distinct.index(workload_for(trial, every)))]) for trial in every}


def speed_table(found: Mapping[Trial, Series], repeats: int) -> Table:
    """Tokens per second for people."""
    rows = [(trial.name, *rate.cells) for trial, rate in found.items()]
    note = (
        f"Tokens per second of {repeats} samples, all sequences of a batch together. pp: prefill; tg: decode;\n"
        "@ d: after so many tokens in the cache; ×: sequences at a time. Through the engine: scheduling, the choice\n"
        "of the most probable token and its text are part of it."
    )
    return Table("Speed", ("test", "median", "min", "max"), tuple(rows), note)
