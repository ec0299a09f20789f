"""Log-probabilities of the model's own distribution: before temperature, penalties, rules and filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.dims import R
from llmcore.engine.request import Request, TokenLogprobs
from llmcore.graph.graph import Graph
from llmcore.graph.inputs import StepInputs
from llmcore.graph.program import Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.registry.choose import Registry

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]
COUNTS = 1, 5, 20  # of the most probable tokens: sizes with a program, beside none and what is asked beyond


class Reading:
    """What a step's logits say, kept from before they are changed."""

    def __init__(self, logits: Array, requests: Sequence[Request], sums: Sequence[float], largest: Array) -> None:
        """``sums``: log-sum-exp of each row; ``largest``: indices, ``[rows, n]``."""
        self._sums = sums
        self._largest = largest
        self._logits = [_kept(row, request) for row, request in zip(logits, requests, strict=False)]

    def of(self, row: int, token: int, count: int) -> TokenLogprobs:
        """The log-probability of ``token`` and the ``count`` most probable ones at a row that was asked for."""
        logits, total = self._logits[row], self._sums[row]
        ids = self._largest[row, :count]
        top = zip(ids.tolist(), logits[ids].tolist(), strict=True)
        return TokenLogprobs(token, float(logits[token]) - total, tuple((index, value - total) for index, value in top))


def _kept(row: Array, request: Request) -> Array:
    """A row that nobody changes."""
    return row.copy() if request.params.penalised or request.rules is not None else row


class LogprobReader:
    """Reads log-probabilities from the logits of a step: log-sum-exp and the largest of all rows in one program."""

    def __init__(self, logits: Array, registry: Registry, pool: Callable[[], WorkerPool]) -> None:
        """A reader of ``logits``, ``[rows, vocab]`` float32 for the largest step; programs are made when needed."""
        self.logits = logits
        self.rows, self.vocab = logits.shape
        self.inputs = StepInputs(_inputs(self.vocab), {"R": self.rows}, {"logits": logits})
        self.outputs = {name: np.zeros(self.rows, np.float32) for name in ("high", "total")}
        self.largest: dict[int, Array] = {0: np.zeros((self.rows, 0), np.int32)}
        self.registry, self.pool = registry, pool
        self.programs: dict[int, Program] = {}

    def read(self, requests: Sequence[Request]) -> Reading:
        """What the first rows, one for each request, hold before anything changes them; until the next step."""
        asked = max(request.params.logprobs or 0 for request in requests)
        count = min(next((size for size in (0, *COUNTS) if size >= asked), asked), self.vocab)
        program = self.program(count)
        rows = len(requests)
        self.inputs.set_sizes(0, 0, rows)
        program.run()
        highs, totals = self.outputs["high"][:rows].tolist(), self.outputs["total"][:rows].tolist()
        sums = [high + log(total) if total > 0 else high for high, total in zip(highs, totals, strict=True)]
        return Reading(self.logits, requests, sums, self.largest[count])

    def program(self, count: int) -> Program:
        """The program that lists ``count`` tokens of each row."""
        if count not in self.programs:
            graph = logprobs_graph(self.vocab, count)
            self.largest.setdefault(count, np.zeros((self.rows, count), np.int32))
            memory = Memory(WeightStore({}), {}, {**self.outputs, "largest": self.largest[count]})
            compiler = Compiler(self.registry, memory, self.inputs, self.pool)
            self.programs[count] = compiler.build(graph, {"T": self.rows, "S": self.rows, "R": self.rows})
        return self.programs[count]


def logprobs_graph(vocab: int, count: int) -> Graph:
    """From logits to ``high`` and ``total`` (see the op ``exp_sum``), and the ``largest`` ``count`` of each row."""
    graph = Graph(_inputs(vocab))
    with graph.scope("logprobs"):
        logits = graph.input("logits")
        graph.outputs["high"], graph.outputs["total"] = graph.op("exp_sum", logits=logits)
        if count:
            graph.outputs["largest"] = graph.op("largest", logits=logits, n=count)
    return graph


def _inputs(vocab: int) -> dict[str, Any]:
    return {"logits": ((R, vocab), "f32")}
