"""From logits to tokens, for every row of a step by its own request's parameters.

Penalties and rules (bias, forbidden tokens) are applied here; the filters and the draw are ops, run as one program
over all rows, so that they come from the same backends as the model. A draw depends on the request's seed and the
token's index alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device import HOST, Place
from llmcore.dims import Bounds, R
from llmcore.engine.request import Request
from llmcore.engine.sizes import recorded_sizes
from llmcore.graph.graph import Graph
from llmcore.graph.inputs import StepInputs
from llmcore.graph.program import HERE, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.registry.choose import Registry

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]
WORD = 2**64 - 1
PHILOX = 0xD2E7470EE14C6C93, 0xCA5A826395121157  # multipliers of a round
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B  # what a round adds to the key
Draw = tuple[bool, bool, bool]
"""Those of top-k, top-p and min-p that some row wants."""

NO_TOKEN = "no token is left to choose: logit_bias, min_tokens and the constraint together forbid all of them"


def sampling_graph(vocab: int, draw: Draw | None) -> Graph:
    """From logits to the ``best`` tokens, and to drawn ones, ``ids``, where there is a ``draw``."""
    graph = Graph(_inputs(vocab))
    with graph.scope("sampler"):
        graph.outputs["best"] = graph.op("argmax", logits=graph.input("logits"))
        if draw is None:
            return graph
        probs = graph.op("softmax", logits=graph.input("logits"), temperature=graph.input("temperature"))
        for wanted, name, parameter in zip(draw, ("top_k", "top_p", "min_p"), ("k", "p", "p"), strict=True):
            if wanted:
                probs = graph.op(name, probs=probs, **{parameter: graph.input(name)})
        graph.outputs["ids"] = graph.op("sample", probs=probs, u=graph.input("u"))
    return graph


def _inputs(vocab: int) -> dict[str, Any]:
    floats = dict.fromkeys(("temperature", "top_p", "min_p", "u"), ((R,), "f32"))
    return {"logits": ((R, vocab), "f32"), **dict.fromkeys(("top_k", "greedy"), ((R,), "i32")), **floats}


class Sampler:
    """Chooses the next token of every row of a step, where the model left its logits.

    Attributes:
        tokens: on an accelerator, what :meth:`start` has chosen.
    """

    def __init__(self, logits: Any, registry: Registry, pool: Callable[[], WorkerPool], place: Place = HERE) -> None:
        """A sampler of ``logits``, ``[rows, vocab]`` float32 for the largest step; programs are made when needed."""
        self.logits = logits
        self.rows, self.vocab = logits.shape
        self.device = place.device
        self.inputs = StepInputs(_inputs(self.vocab), {"R": self.rows}, {"logits": logits}, place.device)
        self.outputs = {name: place.device.zeros((self.rows,), "int32") for name in ("best", "ids")}
        memory = Memory(WeightStore({}), {}, self.outputs)
        self.compiler = Compiler(registry, memory, self.inputs, pool, place)
        self.recorded = recorded_sizes(self.rows) if place.device.captures else []
        for name in ("temperature", "top_p"):  # of rows that fill a recorded step up
            self.inputs.arrays[name][...] = 1
        self.programs: dict[tuple[Draw | None, int], Program] = {}
        self.tokens = place.device.zeros((self.rows,), "int32")
        self._reader = place.device.reader(self.tokens)
        self._written: list[Request] = []  # whose parameters the inputs hold
        self._draw: Draw | None = None  # what these ask for

    def sample(self, requests: Sequence[Request]) -> list[int]:
        """One token for each of the first rows of the logits, each by its request's parameters.

        -1 for a row that holds NaN. A request whose rules leave no token has an ``error`` afterwards; its token means
        nothing. Rows of requests with penalties or rules are changed.
        """
        for row, request in enumerate(requests):
            if request.params.penalised or request.rules is not None:
                self._change(row, request)
        self._run(requests)
        count = len(requests)
        best: list[int] = self.outputs["best"][:count].tolist()
        if self._draw is None:
            return best
        ids = self.outputs["ids"][:count].tolist()
        return [b if b < 0 or r.params.greedy else drawn for b, drawn, r in zip(best, ids, requests, strict=True)]

    def start(self, requests: Sequence[Request], *, unseen: int = 0) -> Callable[[], list[int]]:
        """Sets out for the tokens of requests without penalties and rules, on an accelerator; it returns who waits.

        Args:
            unseen: tokens that each request has got and nobody has seen yet.
        """
        self._run(requests, unseen)
        self._choose(len(requests), self._draw)
        arriving = self._reader(len(requests))
        return lambda: arriving().tolist()

    def _choose(self, count: int, draw: Draw | None) -> None:
        """The first of :attr:`tokens`: what was drawn, or the best where a request is greedy or logits hold NaN."""
        best, chosen = self.outputs["best"][:count], self.tokens[:count]
        if draw is None:
            chosen.copy_(best)
        else:
            undrawn = (self.inputs.there["greedy"][:count] > 0) | (best < 0)
            chosen.copy_(best.where(undrawn, self.outputs["ids"][:count]))

    def _run(self, requests: Sequence[Request], unseen: int = 0) -> None:
        """Runs the program that their parameters ask for."""
        count = len(requests)
        self.inputs.settle()
        if requests != self._written:
            self._write(requests)
        if self._draw is not None:
            drawn = (
                0.0 if request.params.greedy else uniform(request.seed, request.generated_count + unseen)
                for request in requests
            )
            self.inputs.arrays["u"][:count] = [*drawn]
        if self.recorded:
            count = self.recorded[bisect_left(self.recorded, count)]
        self.inputs.set_sizes(0, 0, count)
        self.inputs.send()
        self.program(self._draw, count).run()

    def _change(self, row: int, request: Request) -> None:
        """Applies a request's penalties and rules to its row, which an accelerator gives to the host for that."""
        logits = self.device.fetch(self.logits[row])
        if request.params.penalised:
            penalise(logits, request)
        if request.rules is not None and not request.rules.apply(logits, request.generated_count):
            request.error = NO_TOKEN
        if self.device is not HOST:
            self.logits[row].copy_(self.device.put(logits))

    def _write(self, requests: Sequence[Request]) -> None:
        """Parameters stay from step to step, until other requests come."""
        arrays, count = self.inputs.arrays, len(requests)
        self._written = []  # should an interrupt come
        params = [request.params for request in requests]
        arrays["greedy"][:count] = [p.greedy for p in params]
        arrays["temperature"][:count] = [1.0 if p.greedy else p.temperature for p in params]
        arrays["top_k"][:count] = [min(p.top_k, self.vocab) for p in params]
        arrays["top_p"][:count] = [p.top_p for p in params]
        arrays["min_p"][:count] = [p.min_p for p in params]
        filters = (any(p.top_k for p in params), any(p.top_p < 1 for p in params), any(p.min_p for p in params))
        self._draw = None if all(p.greedy for p in params) else filters
        self._written = list(requests)

    def program(self, draw: Draw | None, rows: int = 0) -> Program:
        """The program with the wanted ones of top-k, top-p and min-p; None: without a draw.

        One for all numbers of rows, but on an accelerator one for each that is recorded.
        """
        rows = rows if self.recorded and rows else self.rows
        if (draw, rows) not in self.programs:
            bounds = Bounds({"T": rows, "S": rows, "R": rows}, one_each=bool(self.recorded))
            self.programs[draw, rows] = self.compiler.build(sampling_graph(self.vocab, draw), bounds)
        return self.programs[draw, rows]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on ``seed`` and ``index`` alone: the first float32 of a stream of its own.

    Philox4x64 of ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), as numpy has it. Its
    blocks are numbered from 1 in the lowest word of the counter; the word above holds ``index``.
    """
    a, b, c, d = 1, index, 0, 0
    key, other = seed, 0
    for _ in range(10):
        first, second = PHILOX[0] * a, PHILOX[1] * c
        a, b, c, d = (second >> 64) ^ b ^ key, second & WORD, (first >> 64) ^ d ^ other, first & WORD
        key, other = (key + WEYL[0]) & WORD, (other + WEYL[1]) & WORD
    return ((a & 0xFFFFFFFF) >> 8) / 2**24


def penalise(logits: Array, request: Request) -> None:
    """Applies repetition, presence and frequency penalties to one row, in place."""
    params = request.params
    if params.repetition_penalty != 1:
        seen = np.unique(request.tokens)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if request.generated_count and (params.presence_penalty or params.frequency_penalty):
        tokens, counts = np.unique(request.generated, return_counts=True)
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts
