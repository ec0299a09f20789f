"""One step of a model taken apart: every node timed where it stands, in a step over a real cache.

A node run again and again by itself finds its weights in the cache, which in a step it does not. So the nodes are run
in their order, one at a time, and each is timed in every pass. What it costs to start a node alone is measured too and
taken off; since it costs more once the node before has driven it out of the caches, a row without work comes between.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.dims import extent
from llmcore.engine.batch import Work
from llmcore.errors import ConfigError
from llmcore.weights.formats import tensor_format
from llmcore_tools.bench.costs import Attended, Call, Cost, cost
from llmcore_tools.bench.measure import Series
from llmcore_tools.bench.roofline import Roofline, empty_row, empty_row_s

if TYPE_CHECKING:
    from llmcore.graph.graph import Node
    from llmcore.llm import LLM
    from llmcore.registry.choose import Choice

LAYER = re.compile(r"(?<=layers\.)\d+")
HEAD = "ids"  # greedy decoding
LEAST_S = 1e-7  # of a node: what is left when starting it took longer than usual


@dataclass(frozen=True)
class Step:
    """A step of ``batch`` sequences with ``new`` tokens each, after ``depth`` tokens that are in the cache."""

    new: int = 1
    batch: int = 1
    depth: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in the step."""
        return self.new * self.batch

    def __str__(self) -> str:
        several = f"{self.batch} sequences with " if self.batch > 1 else ""
        each = " each" if self.batch > 1 else ""
        return f"{several}{self.new} token{'s' * (self.new > 1)}{each} after {self.depth}"


@dataclass(frozen=True)
class OpRow:
    """What is alike in every layer, as one row.

    Attributes:
        formats: weight formats, in the order of the op's signature.
        kind: of the arithmetic that a kernel may use: ``int8`` where it takes quantized weights and rounds activations.
        calls: how often it is in the step.
        cost: of all calls together.
        seconds: of all calls together, one sample a pass.
    """

    op: str
    path: str
    backend: str
    kernel: str
    formats: tuple[str, ...]
    kind: str
    dims: Mapping[str, int]
    calls: int
    cost: Cost
    seconds: Series

    def share_of(self, roofline: Roofline) -> float:
        """How near it comes to the roofline: the least time that it could take over the time that it takes."""
        return roofline.seconds(self.cost.nbytes, self.cost.operations, self.kind) / self.seconds.median


@dataclass(frozen=True)
class Anatomy:
    """A step and its parts.

    Attributes:
        step_s: the whole step, as the engine runs it: inputs written, program run.
        program_s: the program alone.
        start_s: what starting one node alone costs; it is taken off every row's time.
    """

    rows: tuple[OpRow, ...]
    step_s: Series
    program_s: Series
    start_s: float


@contextmanager
def prepared(llm: LLM, step: Step, seed: int) -> Iterator[list[Work]]:
    """The step's work, with a cache that holds ``step.depth`` random tokens of each sequence.

    Raises:
        ConfigError: the engine is too small for it.
    """
    runner, pool = llm.runner, llm.engine.scheduler.pool
    sizes = runner.sizes
    pages_each = -(-(step.depth + step.new) // sizes.page_size)
    for what, wanted, limit, setting in (
        ("tokens in a step", step.tokens, sizes.tokens, "max_batch_tokens"),
        ("tokens in a sequence", step.depth + step.new, sizes.context, "max_context"),
        ("KV pages", pages_each * step.batch, pool.free, "kv_pages"),
    ):
        if wanted > limit:
            raise ConfigError(f"{wanted} {what}, but the engine has {limit}", remedy=f"raise engine.{setting}")
    rng = np.random.default_rng(seed)
    held = [pool.allocate(pages_each) for _ in range(step.batch)]
    try:
        for pages in held:
            for start in range(0, step.depth, sizes.tokens):
                ids = rng.integers(0, llm.spec.vocab_size, min(sizes.tokens, step.depth - start))
                runner.run([(ids.tolist(), start, pages, ())], HEAD)
        yield [
            (rng.integers(0, llm.spec.vocab_size, step.new).tolist(), step.depth, pages, (step.new - 1,))
            for pages in held
        ]
    finally:
        for pages in held:
            pool.release(pages)


def anatomy(llm: LLM, step: Step, repeats: int, seed: int) -> Anatomy:
    """Times a step, its program and each node of it ``repeats`` times, after a pass that does not count."""
    bound = llm.runner.bound(HEAD, step.tokens)
    program = llm.runner.program(HEAD, step.tokens)
    native = any(segment.kind == "native" for segment in program.segments)
    empty = empty_row(llm.runner.pool()) if native else None
    start_s = empty_row_s(empty) if empty else 0.0
    steps: list[float] = []
    programs: list[float] = []
    nodes: list[list[float]] = [[] for _ in bound]
    with prepared(llm, step, seed) as work:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            llm.runner.run(work, HEAD)
            between = time.perf_counter()
            program.run()
            steps.append(between - start)
            programs.append(time.perf_counter() - between)
            for segment in program.segments:
                before = empty if segment.kind == "native" else None
                off = start_s if before else 0.0
                for index, node in enumerate(segment.nodes):
                    if before:
                        before.run_node(0)
                    start = time.perf_counter()
                    segment.run_node(index)
                    nodes[node].append(max(time.perf_counter() - start - off, LEAST_S))
    rows = _grouped(llm, step, bound, nodes)
    return Anatomy(tuple(rows), Series(tuple(steps[1:])), Series(tuple(programs[1:])), start_s)


def _grouped(
    llm: LLM, step: Step, bound: Sequence[tuple[Node, Choice]], taken: Sequence[Sequence[float]]
) -> Iterator[OpRow]:
    """Nodes that differ in the number of their layer alone, as one row each, in order of appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    described = [_described(llm, step, node, choice) for node, choice in bound]
    for index, ((node, choice), (call, formats)) in enumerate(zip(bound, described, strict=True)):
        path = LAYER.sub("*", node.path)
        key = (node.op.name, path, choice.backend, choice.kernel.target, formats, tuple(call.dims.items()))
        groups.setdefault(key, []).append(index)
    for (op, path, backend, kernel, formats, dims), members in groups.items():
        total = sum((cost(described[index][0]) for index in members), Cost())
        seconds = Series(tuple(sum(samples) for samples in zip(*(taken[index][1:] for index in members), strict=True)))
        kind = arithmetic(formats, exact=bound[members[0]][1].kernel.exact)
        yield OpRow(op, path, backend, kernel, formats, kind, dict(dims), len(members), total, seconds)


def arithmetic(formats: Sequence[str], *, exact: bool) -> str:
    """The kind of arithmetic that bounds a kernel: ``int8`` over quantized weights unless it keeps float32 inside."""
    return "int8" if not exact and any(tensor_format(name).quantized for name in formats) else "f32"


def _described(llm: LLM, step: Step, node: Node, choice: Choice) -> tuple[Call, tuple[str, ...]]:
    """A node as the cost model sees it in this step, and the formats of its weights."""
    store = llm.runner.weights
    sizes = {"T": step.tokens, "S": step.batch, "R": step.batch}
    stored = {name: value.name for name, value in node.args.items() if value.dtype == "any"}
    weights = {name: store.operand(key, choice.kernel).nbytes for name, key in stored.items()}
    dims = {letter: extent(dim, sizes) for letter, dim in node.dims.items()}
    attended = Attended.of([(step.depth, step.new)] * step.batch, token_bytes(llm))
    call = Call(node.op, dims, weights, node.attrs, frozenset(node.args), attended)
    return call, tuple(store.format(key) for key in stored.values())


def token_bytes(llm: LLM) -> float:
    """Bytes of one token's keys and values in the cache of one layer."""
    sizes, states = llm.runner.sizes, llm.runner.states
    return median(array.nbytes for array in states.values()) / (sizes.pages * sizes.page_size) if states else 0.0
