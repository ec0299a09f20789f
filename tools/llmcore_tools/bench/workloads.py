"""What is timed of a whole model: requests of fixed lengths through the engine, as its users' requests go through it.

Scheduling, the choice of the most probable token and its text are inside the timed part; loading and tokenizing are
not. Token ids are random, but the same for the same seed; end tokens do not end anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError, GenerationError

if TYPE_CHECKING:
    from llmcore.config.schema import Config
    from llmcore.engine.request import Request
    from llmcore.llm import LLM


@dataclass(frozen=True)
class Workload:
    """``batch`` sequences with ``prompt`` tokens each, followed by ``new`` more."""

    prompt: int
    new: int
    batch: int = 1


@dataclass(frozen=True)
class Took:
    """Seconds of one workload.

    Attributes:
        prefill: from adding the requests until each of them has its first token.
        decode: ``new`` steps after that, each of which gives every sequence a token.
    """

    prefill: float
    decode: float


def run(llm: LLM, work: Workload, seed: int) -> Took:
    """Runs ``work`` once.

    Raises:
        ConfigError: the engine has not enough pages to keep all of its sequences.
        GenerationError: one of them failed.
    """
    engine = llm.engine
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, llm.spec.vocab_size, work.prompt).tolist() for _ in range(work.batch)]
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    requests: list[Request] = []
    try:
        start = time.perf_counter()
        requests += (engine.add(prompt, params) for prompt in prompts)
        while any(len(request.tokens) == work.prompt and not request.finish_reason for request in requests):
            engine.step()
        first = time.perf_counter()
        before = _generated(requests)
        for _ in range(work.new):
            engine.step()
        last = time.perf_counter()
        for request in requests:
            if request.error:
                raise GenerationError(request.error) from request.cause
        _check_steps(work, _generated(requests) - before)
    finally:
        for request in requests:
            engine.abort(request)
    return Took(first - start, last - first)


def _generated(requests: Sequence[Request]) -> int:
    return sum(len(request.tokens) for request in requests)


def _check_steps(work: Workload, found: int) -> None:
    """Each step must have given each sequence a token, else what was timed is something else."""
    if found != work.batch * work.new:
        raise ConfigError(
            f"{work.batch} sequences of {work.prompt} + {work.new} tokens do not stay in the KV cache together",
            remedy="raise engine.kv_pages or engine.max_context, or ask for fewer or shorter ones",
        )


def fitted(config: Config, work: Sequence[Workload]) -> Config:
    """``config`` with an engine that holds the largest batch and computes every prompt, however often it comes.

    All other sizes stay as the user has them.
    """
    from dataclasses import replace

    seqs = max([config.engine.max_seqs, *(each.batch for each in work)])
    return replace(config, engine=replace(config.engine, max_seqs=seqs, prefix_cache=False))


def check_fits(llm: LLM, work: Sequence[Workload]) -> None:
    """Raises :class:`ConfigError` for a sequence that is longer than the context."""
    sizes = llm.runner.sizes
    context = llm.engine.scheduler.max_context
    for each in work:
        waits = -(-each.prompt * each.batch // sizes.tokens)  # a sequence decodes while the others are prefilled
        if each.prompt + each.new + waits > context:
            raise ConfigError(
                f"{each.prompt} + {each.new} tokens do not fit the context of {context}",
                remedy="raise engine.max_context where the model allows it, or ask for shorter ones",
            )
