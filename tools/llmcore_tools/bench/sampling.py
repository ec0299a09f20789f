"""``llmcore bench sampling``: what it costs to choose tokens: steps of requests that ask for more than the best one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cli.model import load, model_as_setting
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import Flag
from llmcore.config.command import Command, Job
from llmcore.engine.constraint import Constraint
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError, GenerationError
from llmcore_tools.bench import machine, options, roofline
from llmcore_tools.bench.measure import Ratio, Series, figure, in_turns
from llmcore_tools.bench.report import Report, Table, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmcore.llm import LLM

BATCH = Flag("--batch", "sequences in each step (8 by default)", "N")
TOKENS = Flag("--tokens", "steps of each sample (64 by default)", "N")
COMMAND = Command(
    "llmcore bench sampling",
    "measure what choosing tokens adds to a step: temperature, filters, penalties, log-probabilities, a grammar",
    (BATCH, TOKENS, options.REPEATS, options.ONLY, *options.OUTPUT),
)
PROMPT = 32  # tokens before the answer
WARM = 3  # steps before those that count
WAYS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("the most probable token", {}),
    "temperature": ("temperature 0.8", {"temperature": 0.8}),
    "top-k": ("temperature and top-k 40", {"temperature": 0.8, "top_k": 40}),
    "top-p": ("temperature and top-p 0.9", {"temperature": 0.8, "top_p": 0.9}),
    "filters": ("temperature, top-k, top-p, min-p", {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}),
    "penalties": ("greedy with a repetition penalty", {"repetition_penalty": 1.1}),
    "logprobs": ("greedy with 5 log-probabilities", {"logprobs": 5}),
    "grammar": ("greedy within a regular expression", {"constraint": Constraint("regex", "[a-z0-9 ,.]*")}),
}


@dataclass(frozen=True)
class Sample:
    """Medians of a step of one way, in seconds.

    Attributes:
        step: all of it.
        outside: what of it is outside of compiled code.
    """

    step: float
    outside: float


def main(argv: Sequence[str]) -> int:
    """Measures the model of each job; returns the exit code."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """One model."""
    given = job.given
    options.check_output(given)
    chosen = options.parts(given, tuple(WAYS))
    batch, steps = options.count(given, BATCH, 8), options.count(given, TOKENS, 64)
    repeats = options.count(given, options.REPEATS, 7)
    llm = load(replace(job.config, engine=replace(job.config.engine, max_seqs=batch)))
    try:
        context = llm.engine.scheduler.max_context
        if PROMPT + WARM + steps > context:
            raise ConfigError(
                f"{PROMPT} + {WARM + steps} tokens do not fit the context of {context}", remedy="ask for fewer tokens"
            )
        measured_on = machine.facts(llm, llm.threads, roofline.machine_state(llm.threads, machine.weight_bytes(llm)))
        found = compare(llm, chosen, batch, steps, repeats, job.config.seed or 0)
    finally:
        llm.close()
    results = {"batch": batch, "steps": steps, "repeats": repeats, "ways": as_json(found)}
    show(Report("sampling", measured_on, results, [table(found, batch, steps, repeats)]), given)
    return 0


def compare(llm: LLM, ways: Sequence[str], batch: int, steps: int, repeats: int, seed: int) -> dict[str, list[Sample]]:
    """Each way in turns, greedy steps first, after a short run of each that does not count."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, llm.spec.vocab_size, PROMPT).tolist() for _ in range(batch)]
    wanted = ["greedy", *(way for way in ways if way != "greedy")]
    tasks = {way: partial(sample, llm, prompts, WAYS[way][1], steps) for way in wanted}
    for way in wanted:
        sample(llm, prompts, WAYS[way][1], 2)
    return in_turns(tasks, repeats)


def sample(llm: LLM, prompts: Sequence[Sequence[int]], asked: Mapping[str, Any], steps: int) -> Sample:
    """Steps of one token for every prompt.

    Raises:
        GenerationError: a request failed, or ended before its time.
    """
    engine = llm.engine
    params = replace(SamplingParams(max_tokens=None, ignore_eos=True), **asked)
    requests = [engine.add(prompt, replace(params, seed=i)) for i, prompt in enumerate(prompts)]
    times: list[float] = []
    outside: list[float] = []
    try:
        while any(request.generated_count < WARM for request in requests):
            engine.step()
        with _native_time() as native:
            for _ in range(steps):
                before = native[0]
                start = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - start)
                outside.append(times[-1] - (native[0] - before))
        for request in requests:
            if request.finish_reason:
                raise GenerationError(request.error or f"a request ended by itself: {request.finish_reason}")
    finally:
        for request in requests:
            engine.abort(request)
    return Sample(float(np.median(times)), float(np.median(outside)))


@contextmanager
def _native_time() -> Iterator[list[float]]:
    """Seconds spent inside of programs, in a list of one number."""
    from llmcore.graph.program import Program

    spent, run_program = [0.0], Program.run

    def timed(program: Program) -> None:
        start = time.perf_counter()
        run_program(program)
        spent[0] += time.perf_counter() - start

    Program.run = timed  # type: ignore[method-assign, assignment]
    try:
        yield spent
    finally:
        Program.run = run_program  # type: ignore[method-assign]


def as_json(found: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """As plain data."""
    greedy = _steps(found["greedy"])
    return {
        way: {
            "step_s": _steps(samples).as_json(),
            "outside_s": Series(tuple(each.outside for each in samples)).as_json(),
            "over_greedy": Ratio(_steps(samples), greedy).as_json()["ratio"],
        }
        for way, samples in found.items()
    }


def _steps(samples: Sequence[Sample]) -> Series:
    return Series(tuple(each.step for each in samples))


def table(found: Mapping[str, Sequence[Sample]], batch: int, steps: int, repeats: int) -> Table:
    """For people."""
    greedy = _steps(found["greedy"])
    rows = []
    for way, samples in found.items():
        step = Series(tuple(each.step * 1e3 for each in samples))
        ratio = "" if way == "greedy" else str(Ratio(_steps(samples), greedy))
        outside = Series(tuple(each.outside * 1e6 for each in samples))
        rows.append((WAYS[way][0], *step.cells, ratio, figure(outside.median)))
    note = (
        f"Milliseconds of a step, medians of {steps} of them, {repeats} samples in turns. Ratio: of this to greedy\n"
        "steps (lowest–highest of a pair). Python: µs of a step outside of compiled code."
    )
    head = ("tokens are chosen by", "median", "min", "max", "ratio", "Python, µs")
    return Table(f"Steps of {batch} sequences", head, tuple(rows), note)
