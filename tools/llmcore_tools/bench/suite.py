"""``llmcore bench``: a whole model: prefill, decode over depth, batched and on a busy machine, start-up, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import VERSION, Flag, extract
from llmcore.config.command import Command, Job
from llmcore_tools.bench import busy, machine, options, processes, roofline, workloads
from llmcore_tools.bench.measure import Series, in_turns
from llmcore_tools.bench.report import Report, Table, show
from llmcore_tools.bench.trials import KINDS, Lengths, Trial, trials, workload_for
from llmcore_tools.bench.workloads import Workload

if TYPE_CHECKING:
    from llmcore.llm import LLM

PARTS = (*KINDS, "busy", "start", "memory")
COLD = Flag("--cold", "start-up with an empty cache too: everything is compiled and packed anew, each time")
CONTEXT = Flag("--context", "memory: tokens of the sequence (2048 by default)", "N")
OTHERS = Flag("--others", "busy: processes that compute at the same time (3 by default)", "N")
COLD_SAMPLES = 3  # at most
SHORT = Workload(16, 0)
COMMAND = Command(
    "llmcore bench",
    "measure a model's speed here (`llmcore bench ops`, `batch`, `serve` and `against llama.cpp` measure other things)",
    (*options.LENGTHS, OTHERS, CONTEXT, COLD, options.REPEATS, options.ONLY, *options.OUTPUT),
)


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    arguments = model_as_setting(argv)
    _, rest = extract(arguments, (*COMMAND.flags, VERSION))
    settings = [text for text in rest if not text.startswith("-")]
    return run_with_settings(COMMAND, arguments, lambda job: run(job, settings))


def run(job: Job, settings: Sequence[str]) -> int:
    """One model; ``settings`` are the command line's, for processes of their own."""
    given = job.given
    options.check_output(given)
    chosen = options.parts(given, PARTS)
    repeats = options.count(given, options.REPEATS, 7)
    context = options.count(given, CONTEXT, 2048, least=16)
    others = options.count(given, OTHERS, 3, most=busy.MOST)
    every = trials(Lengths.of(given, chosen))
    beside = Trial("decode", Workload(1, options.count(given, options.TOKENS, 64)))
    work = [trial.work for trial in (*every, *([beside] if "busy" in chosen else ()))]
    results: dict[str, Any] = {"repeats": repeats}
    tables: list[Table] = []
    llm = load(workloads.fitted(job.config, work))
    try:
        workloads.check_fits(llm, work)
        own = processes.Program.of(llm, settings) if {"start", "memory"} & set(chosen) and job.number is None else None
        measured_on = machine.facts(llm, llm.threads, roofline.machine_state(llm.threads, machine.weight_bytes(llm)))
        if every:
            found = speeds(llm, every, repeats, job.config.seed or 0)
            results["speed"] = [trial.as_json(found[trial]) for trial in every]
            tables.append(speed_table(found, repeats))
        if "busy" in chosen:
            ratio = busy.compare(llm, beside, others, repeats, job.config.seed or 0)
            results["busy"] = busy.as_json(beside, others, ratio)
            tables.append(busy.table(beside, others, ratio, repeats))
        if "start" in chosen:
            waits = start_up(llm, own, repeats, job.config.seed or 0, cold=COLD.name in given)
            results["start"] = {name: wait.as_json() for name, wait in waits.items()}
            tables.append(start_table(waits))
        if "memory" in chosen and own is not None:
            results["memory"] = processes.memory(llm, own, min(context, llm.engine.scheduler.max_context))
            tables.append(memory_table(results["memory"]))
    finally:
        llm.close()
    show(Report("model", measured_on, results, tables), given)
    return 0


def start_up(llm: LLM, own: processes.Program | None, repeats: int, seed: int, *, cold: bool) -> dict[str, Series]:
    """Seconds to the first token: of a loaded model, and of a process; the latter not in a sweep, which has many."""
    workloads.run(llm, SHORT, seed)
    found = {"loaded": Series(tuple(workloads.run(llm, SHORT, seed).prefill for _ in range(repeats)))}
    if own is not None:
        found["warm"] = processes.start_s(own, repeats)
        if cold:
            found["cold"] = processes.start_s(own, min(repeats, COLD_SAMPLES), cold=True)
    return found


WAITS = {
    "loaded": f"a loaded model, prompt of {SHORT.prompt} tokens",
    "warm": "a whole process",
    "cold": "a whole process, empty cache",
}


def start_table(waits: Mapping[str, Series]) -> Table:
    """Seconds to the first token for people."""
    rows = [(WAITS[name], *(f"{value:.3f}" for value in (w.median, w.low, w.high))) for name, w in waits.items()]
    note = "Seconds. A process: from starting it to the first byte of its answer to a short prompt."
    return Table("To the first token", ("from", "median", "min", "max"), tuple(rows), note)


def memory_table(found: Mapping[str, Any]) -> Table:
    """Memory for people."""
    heavy = ", ".join(found["imported"]) or "none of torch, numba, hydra and transformers"
    note = f"MB of 10^6 bytes that were resident at once in a process of its own. It imported {heavy}."
    return Table("Memory", ("what", "MB"), tuple(processes.memory_rows(found)), note)


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
