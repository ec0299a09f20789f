"""Log-probabilities of the model's own distribution: before temperature, penalties, rules and filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device import HOST, Place
from llmcore.dims import R
from llmcore.engine.request import Request, TokenLogprobs
from llmcore.graph.graph import Graph
from llmcore.graph.inputs import StepInputs
from llmcore.graph.program import HERE, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.registry.choose import Registry

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]
COUNTS = 1, 5, 20  # of the most probable tokens: sizes with a program, beside none and what is asked beyond


class Reading:
    """What a step's logits say, kept from before they are changed."""

    def __init__(self, logits: Sequence[Array | None], sums: Sequence[float], largest: Array) -> None:
        """``logits``: of the rows that are asked for; ``sums``: log-sum-exp of each; ``largest``: ``[rows, n]``."""
        self._logits = logits
        self._sums = sums
        self._largest = largest

    def of(self, row: int, token: int, count: int) -> TokenLogprobs:
        """The log-probability of ``token`` and the ``count`` most probable ones at a row that was asked for."""
        logits, total = self._logits[row], self._sums[row]
        assert logits is not None, "a row that was not asked for"
        ids = self._largest[row, :count]
        top = zip(ids.tolist(), logits[ids].tolist(), strict=True)
        return TokenLogprobs(token, float(logits[token]) - total, tuple((index, value - total) for index, value in top))


class LogprobReader:
    """Reads log-probabilities from the logits of a step: log-sum-exp and the largest of all rows in one program."""

    def __init__(self, logits: Any, registry: Registry, pool: Callable[[], WorkerPool], place: Place = HERE) -> None:
        """A reader of ``logits``, ``[rows, vocab]`` float32 for the largest step; programs are made when needed."""
        self.logits = logits
        self.rows, self.vocab = logits.shape
        self.place, self.device = place, place.device
        self.inputs = StepInputs(_inputs(self.vocab), {"R": self.rows}, {"logits": logits}, self.device)
        self.outputs = {name: self.device.zeros((self.rows,), "float32") for name in ("high", "total")}
        self.largest: dict[int, Any] = {0: self.device.zeros((self.rows, 0), "int32")}
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
        highs, totals = (self.device.fetch(self.outputs[name][:rows]).tolist() for name in ("high", "total"))
        sums = [high + log(total) if total > 0 else high for high, total in zip(highs, totals, strict=True)]
        kept = [self._kept(row, request) for row, request in enumerate(requests)]
        return Reading(kept, sums, self.device.fetch(self.largest[count][:rows]))

    def _kept(self, row: int, request: Request) -> Array | None:
        """A row on the host that nobody changes, for a request that asks for log-probabilities."""
        if request.params.logprobs is None:
            return None
        changes = self.device is HOST and (request.params.penalised or request.rules is not None)
        logits = self.device.fetch(self.logits[row])
        return logits.copy() if changes else logits

    def program(self, count: int) -> Program:
        """The program that lists ``count`` tokens of each row."""
        if count not in self.programs:
            graph = logprobs_graph(self.vocab, count)
            self.largest.setdefault(count, self.device.zeros((self.rows, count), "int32"))
            memory = Memory(WeightStore({}), {}, {**self.outputs, "largest": self.largest[count]})
            compiler = Compiler(self.registry, memory, self.inputs, self.pool, self.place)
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
