"""The runner: one model bound to kernels, its KV pages and its programs; it runs one ragged batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.dims import concrete
from llmcore.errors import RegistryError
from llmcore.graph.graph import Graph, Value
from llmcore.graph.inputs import Limits, StepInputs, input_shapes
from llmcore.graph.program import NUMPY, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.layers import Decoder
from llmcore.layers.base import State
from llmcore.model_spec import ModelSpec
from llmcore.plugins import resolve
from llmcore.registry.choose import Registry
from llmcore.registry.operand import aligned

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Work:
    """New tokens of one sequence in a step.

    Attributes:
        token_ids: the tokens to compute.
        start: the position of the first of them.
        pages: the sequence's pages; they hold ``start + len(token_ids)`` tokens or more.
        rows: which of the tokens, counted from the first, want logits.
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    rows: Sequence[int] = ()


@dataclass(frozen=True)
class Sizes:
    """What the runner is built for.

    Attributes:
        tokens, seqs, rows: the largest step.
        context: tokens of the longest sequence.
        page_size, pages: the KV cache.
        buckets: step sizes in tokens that get a program of their own; ``tokens`` is always one.
    """

    tokens: int
    seqs: int
    rows: int
    context: int
    page_size: int
    pages: int
    buckets: tuple[int, ...] = ()

    @property
    def limits(self) -> Limits:
        """The bounds of a step."""
        return Limits(self.tokens, self.seqs, self.rows, -(-self.context // self.page_size))


def model_graph(spec: ModelSpec, sizes: Sizes, *, taps: bool = False) -> Graph:
    """The graph of one step, with output ``logits``; with ``taps`` each block's result is an output too."""
    graph = Graph(input_shapes(sizes.limits.blocks))
    hidden: dict[str, Value] = {}
    logits = Decoder(spec, sizes.context, sizes.page_size)(graph, hidden)
    graph.outputs = {"logits": logits, **(hidden if taps else {})}
    return graph


def with_argmax(graph: Graph) -> Graph:
    """The same step with output ``ids``, the greedy next tokens, in place of logits."""
    greedy = graph.fork()
    logits = greedy.outputs.pop("logits")
    with greedy.scope("lm_head"):
        greedy.outputs["ids"] = greedy.op("argmax", logits=logits)
    return greedy


@dataclass
class Runner:
    """Programs of one model by head (``logits`` or ``ids``) and bucket, made when first needed."""

    graph: Graph
    sizes: Sizes
    vocab: int
    weights: WeightStore
    registry: Registry
    pool: Callable[[], WorkerPool]
    programs: dict[tuple[str, int], Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocates inputs, outputs and KV pages (memory is taken when touched) and binds the largest programs."""
        limits = self.sizes.limits
        self.inputs = StepInputs(input_shapes(limits.blocks), limits.sizes)
        self.outputs: dict[str, Array] = {}
        self.states: dict[int, Array] = {}
        memory = Memory(self.weights, self.states, self.outputs)
        self.compiler = Compiler(self.registry, memory, self.inputs, self.pool)
        self.compiler.fuse(self.graph, limits.sizes)
        greedy = with_argmax(self.graph)
        self.compiler.fuse(greedy, limits.sizes)
        self.graphs = {"logits": self.graph, "ids": greedy}
        for name, value in (greedy.outputs | self.graph.outputs).items():
            shape = concrete(value.shape, limits.sizes)
            dtype = np.dtype(NUMPY[value.dtype])
            block = aligned(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            self.outputs[name] = block.view(dtype).reshape(shape)
        self.compiler.reserve(self.graphs.values(), limits.sizes)
        self._allocate_states()
        self.buckets = sorted({*(b for b in self.sizes.buckets if b < self.sizes.tokens), self.sizes.tokens})
        for head in self.graphs:
            self.program(head, self.sizes.tokens)

    def _allocate_states(self) -> None:
        """KV pages of every layer in the layout of the one backend that reads and writes them."""
        sizes = self.sizes.limits.sizes
        owners: dict[str, str] = {}
        states: dict[Value, State] = {}
        for node in self.graph.nodes:
            for value in node.args.values():
                if isinstance(value.source, State):
                    states[value] = value.source
                    owners[node.op.name] = self.registry.choose(self.compiler.view(node, sizes)).backend
        if len(set(owners.values())) > 1:
            raise RegistryError(
                "the KV cache has one layout, but its ops are bound to several backends: "
                + ", ".join(f"{op}={backend}" for op, backend in owners.items()),
                remedy="choose them together, e.g. backend.ops.attention=… backend.ops.kv_write=…",
            )
        layout = resolve(self.registry.backends[next(iter(owners.values()))].kv_layout)
        for state in states.values():
            page = layout.page_shape(state.kv_heads, state.head_dim, self.sizes.page_size)
            shape = (self.sizes.pages, *page)
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(layout.dtype).itemsize
            self.states[state.layer] = aligned(nbytes).view(layout.dtype).reshape(shape)

    def program(self, head: str, tokens: int) -> Program:
        """The program for ``head`` that holds ``tokens`` tokens."""
        bucket = next(size for size in self.buckets if size >= tokens)
        if (head, bucket) not in self.programs:
            limits = self.sizes.limits
            sizes = {"T": bucket, "S": min(limits.seqs, bucket), "R": min(limits.rows, bucket)}
            self.programs[head, bucket] = self.compiler.build(self.graphs[head], sizes)
        return self.programs[head, bucket]

    def run(self, batch: Sequence[Work], head: str = "logits") -> Array:
        """Computes ``batch``; returns ``[rows, vocab]`` logits or ``[rows]`` ids, valid until the next run."""
        tokens, rows = self._fill(batch)
        self.inputs.set_sizes(tokens, len(batch), rows)
        self.program(head, tokens).run()
        return self.outputs[head][:rows]

    def _fill(self, batch: Sequence[Work]) -> tuple[int, int]:
        """Writes the inputs of a step; returns its number of tokens and of wanted rows."""
        arrays, page_size = self.inputs.arrays, self.sizes.page_size
        start = row = 0
        for s, work in enumerate(batch):
            count = len(work.token_ids)
            stop = start + count
            arrays["token_ids"][start:stop] = work.token_ids
            positions = np.arange(work.start, work.start + count, dtype=np.int32)
            pages = np.asarray(work.pages, np.int32)
            arrays["positions"][start:stop] = positions
            arrays["slots"][start:stop] = pages[positions // page_size] * page_size + positions % page_size
            arrays["query_starts"][s] = start
            arrays["query_lens"][s] = count
            arrays["kv_lens"][s] = work.start + count
            arrays["block_tables"][s, : len(pages)] = pages
            arrays["rows"][row : row + len(work.rows)] = np.asarray(work.rows, np.int32) + start
            start, row = stop, row + len(work.rows)
        return start, row

    @property
    def kv_bytes(self) -> int:
        """Size of all KV pages (address space; memory is taken as pages are used)."""
        return sum(array.nbytes for array in self.states.values())
