"""Answers to a few requests under given circumstances: alone or among strangers, cached, in chunks, preempted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmcore.cache.pages import PagePool
from llmcore.cache.prefix import PrefixIndex
from llmcore.engine.constraint import Constraint
from llmcore.engine.engine import Engine
from llmcore.engine.request import Request, TokenLogprobs
from llmcore.engine.results import Collector
from llmcore.engine.sampling_params import SamplingParams
from llmcore.engine.scheduler import Scheduler
from llmcore.llm import LLM

STRANGERS = 31
PATIENCE = 100  # steps, at most, until all strangers are in one batch: small steps never bring them together
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
DIGITS = Constraint("regex", "[0-9]{6}")
Probe = tuple[Sequence[int], SamplingParams]
"""A request whose answer must not change: its prompt and its parameters."""


@dataclass(frozen=True)
class Circumstances:
    """Under which requests are answered.

    Attributes:
        strangers: how many others there are while they are answered; 0: one request at a time, alone.
        cache: whether there is a prefix cache.
        warm: every prompt was computed before, by a request that went on otherwise; needs ``cache``.
        tokens: of a step at most; 0: as many as the model was loaded for.
        pages: of the KV cache; 0: enough.
        famine: again and again no page is free for a few steps, so that whoever needs one is preempted.
        seed: of who the strangers are, and of when they come and go.
    """

    strangers: int = 0
    cache: bool = False
    warm: bool = False
    tokens: int = 0
    pages: int = 0
    famine: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """All that a user sees of it, floats included."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    logprobs: tuple[TokenLogprobs, ...]


@dataclass
class Met:
    """What happened meanwhile.

    Attributes:
        running: the most sequences at a time.
        preempted: how many of the requests had to give their pages back.
        preemptions: of anybody.
        chunks: the most steps that a request's prompt took, up to its first token.
        cached: tokens that were found, of each request.
    """

    running: int = 0
    preempted: int = 0
    preemptions: int = 0
    chunks: int = 0
    cached: tuple[int, ...] = ()


def probes(ids: Mapping[str, Sequence[int]], bias: Mapping[int, float], new: int = 24) -> dict[str, Probe]:
    """A request of each kind.

    Args:
        ids: prompts: ``greedy``, ``drawn``, ``penalties``, ``logprobs``, ``schema``.
        bias: tokens that lead a model that knows nothing to the end of a JSON object.
    """
    kinds = {
        "greedy": SamplingParams(),
        "drawn": SamplingParams(temperature=1.1, top_p=0.9, top_k=40, seed=11),
        "penalties": SamplingParams(
            temperature=0.9, min_p=0.02, seed=5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4
        ),
        "logprobs": SamplingParams(temperature=0.8, top_p=0.95, seed=2**62 + 3, logprobs=7),
        "schema": SamplingParams(
            temperature=1.0,
            seed=9,
            constraint=Constraint("json_schema", json.dumps(SCHEMA)),
            logit_bias=bias,
            logprobs=2,
        ),
    }
    lengths = dict.fromkeys(kinds, new) | {"schema": 3 * new}
    return {
        name: (ids[name], replace(params, max_tokens=lengths[name], ignore_eos=name != "schema"))
        for name, params in kinds.items()
    }


def answers(llm: LLM, asked: Mapping[str, Probe], circumstances: Circumstances) -> tuple[dict[str, Answer], Met]:
    """Answers ``asked``, each alone, or all of them among strangers."""
    engine = llm.engine
    engine.scheduler = scheduler(llm, circumstances)
    if circumstances.warm:
        for prompt, params in asked.values():
            llm.generate([[*prompt, 1]], replace(params, max_tokens=1, constraint=None))
    met = Met()
    if circumstances.strangers:
        others = circumstances.strangers + 1 - len(asked)
        company = Company(engine, circumstances, asked, others)
        found = _together(engine, asked, company, met, famine=circumstances.famine)
    else:
        found = {}
        for name, probe in asked.items():
            found |= _together(engine, {name: probe}, None, met, famine=circumstances.famine)
    met.preemptions = engine.scheduler.preemptions
    engine.verify()
    assert not engine.busy
    return found, met


def scheduler(llm: LLM, circumstances: Circumstances) -> Scheduler:
    """A new one, whose pages hold nothing yet."""
    sizes = llm.runner.sizes
    index = PrefixIndex(sizes.page_size) if circumstances.cache else None
    pool = PagePool(circumstances.pages or sizes.pages, index)
    return Scheduler(pool, sizes.page_size, sizes.seqs, circumstances.tokens or sizes.tokens, sizes.context)


def _together(
    engine: Engine, asked: Mapping[str, Probe], company: Company | None, met: Met, *, famine: bool
) -> dict[str, Answer]:
    hoarder = Hoarder(engine.scheduler.pool)
    requests: dict[str, Request] = {}
    collectors: dict[str, Collector] = {}
    waiting = list(asked.items())
    chunks = dict.fromkeys(asked, 0)
    preempted: set[str] = set()
    while waiting or any(request.finish_reason is None for request in requests.values()):
        if company is not None:
            company.come_and_go()
        if waiting and (company is None or company.is_there(len(asked) - len(waiting))):
            name, (prompt, params) = waiting.pop(0)
            requests[name] = engine.add(prompt, params)
            collectors[name] = Collector(requests[name], time.perf_counter())
        if famine:
            hoarder.take_or_give()
        engine.step()
        met.running = max(met.running, len(engine.scheduler.running))
        for name, request in requests.items():
            collectors[name].drain()
            chunks[name] += request.admitted and not request.generated_count and name not in preempted
            if request.admitted and not request.pages and request.finish_reason is None:
                preempted.add(name)
    hoarder.give()
    if company is not None:
        company.leave()
    met.preempted += len(preempted)
    met.chunks = max(met.chunks, *(1 + count for count in chunks.values()))
    met.cached += tuple(request.cached for request in requests.values())
    return {name: answer(collector) for name, collector in collectors.items()}


def answer(collector: Collector) -> Answer:
    """What came out of a request; a failure is raised."""
    found = collector.completion()
    assert found.finish_reason in ("stop", "length"), found.error
    return Answer(found.token_ids, found.text, found.finish_reason, found.logprobs)


class Hoarder:
    """Holds all pages that are free, for 17 of 24 steps: whoever runs needs a page of 16 tokens meanwhile."""

    def __init__(self, pool: PagePool) -> None:
        """Holds none yet."""
        self.pool = pool
        self.pages: list[int] = []
        self.steps = 0

    def take_or_give(self) -> None:
        """Before a step."""
        self.steps += 1
        if self.steps % 24 == 4:
            self.pages = self.pool.allocate(self.pool.free)
        elif self.steps % 24 == 21:
            self.give()

    def give(self) -> None:
        """Gives all of them back."""
        self.pool.release(self.pages)
        self.pages = []


class Company:
    """Strangers: some are there before, others come in the place of those that have ended, a few hang up.

    Where pages are few, all strangers are there before, stay, and need more and more pages, and nobody comes in their
    places: who is asked comes last then, so that it has to give its pages back first.
    """

    def __init__(
        self, engine: Engine, circumstances: Circumstances, asked: Mapping[str, Probe], strangers: int
    ) -> None:
        """Nobody has come yet."""
        self.engine = engine
        self.rng = np.random.default_rng(circumstances.seed)
        self.prompts = [prompt for prompt, _ in asked.values()]
        self.strangers = strangers
        self.refill = not circumstances.pages
        self.present: list[Request] = []
        self.steps = 0
        self.full = 0  # the step in which all of them were running

    def come_and_go(self) -> None:
        """Before a step: whoever has ended leaves, one in 40 hangs up, and others take their places."""
        hang_up = 1 / 40 if self.refill else 0
        first = not self.steps
        self.steps += 1
        for request in [each for each in self.present if each.finish_reason or self.rng.random() < hang_up]:
            self.engine.abort(request)
            self.present.remove(request)
        if first or self.refill:
            coming = self.strangers if self.refill or first else 0
            arriving = max(1, self.strangers // 2) if self.refill else coming
            for _ in range(min(arriving, self.strangers - len(self.present))):
                self.present.append(self.engine.add(*self._stranger()))

    def is_there(self, earlier: int) -> bool:
        """Whether the next of those who are asked may come, ``earlier`` of whom have: one every few steps."""
        if self.refill and not self.full:
            full = len(self.engine.scheduler.running) == self.strangers
            self.full = self.steps if full or self.steps == PATIENCE else 0
        return not self.refill or (self.full > 0 and self.steps >= self.full + 2 * earlier)

    def leave(self) -> None:
        """All go."""
        for request in self.present:
            self.engine.abort(request)

    def _stranger(self) -> tuple[list[int], SamplingParams]:
        """Of any length and kind; one in four begins as somebody does who is asked.

        How long an answer gets does not depend on what the model says: who meets whom is the same on every machine.
        """
        rng = self.rng
        prompt: list[int] = rng.integers(0, 256, int(rng.integers(1, 48))).tolist()
        if rng.random() < 0.25:
            known = self.prompts[int(rng.integers(len(self.prompts)))]
            prompt = [*known[: int(rng.integers(1, len(known) + 1))], *prompt]
        kinds: tuple[dict[str, Any], ...] = (
            {},
            {"logprobs": 1},
            {"temperature": 1.3, "top_k": 7},
            {"temperature": 0.7, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5},
            {"logit_bias": {17: 3.0}, "min_tokens": 2, "presence_penalty": 1.0},
            {"constraint": DIGITS},
        )
        chosen = kinds[int(rng.integers(len(kinds)))]
        least = 2 if self.refill else 40  # where pages are few, everybody comes to need more of them
        seed, most = int(rng.integers(1 << 40)), int(rng.integers(least, 90))
        return prompt, SamplingParams(max_tokens=most, seed=seed, ignore_eos=True, **chosen)
