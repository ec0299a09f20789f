"""The runner: one model bound to kernels, its KV pages and its programs; it runs one ragged batch at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cache.layout import KVLayout
from llmcore.dims import concrete
from llmcore.errors import RegistryError
from llmcore.graph.graph import Graph, Node, Value
from llmcore.graph.inputs import Limits, StepInputs, input_shapes
from llmcore.graph.program import NUMPY, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.layers import Decoder
from llmcore.layers.base import State
from llmcore.model_spec import ModelSpec
from llmcore.plugins import resolve
from llmcore.registry.choose import Choice, Registry
from llmcore.registry.operand import aligned

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]


Work = tuple[Sequence[int], int, Sequence[int], Sequence[int]]
"""New tokens of one sequence in a step: ``(token_ids, start, pages, rows)``.

``start`` is the position of the first token. ``pages`` are the sequence's, and hold ``start + len(token_ids)`` tokens
or more. ``rows`` says which of the tokens, counted from the first, want logits. Bare, as one is made in every step.
"""


@dataclass(frozen=True)
class Sizes:
    """What the runner is built for.

    Attributes:
        tokens, seqs, rows: the largest step.
        context: tokens of the longest sequence.
        page_size, pages: the KV cache; 0 pages: as many as ``seqs`` full contexts need within ``kv_budget`` bytes, and
            enough for one in any case.
        buckets: step sizes in tokens that get a program of their own; ``tokens`` is always one.
    """

    tokens: int
    seqs: int
    rows: int
    context: int
    page_size: int
    pages: int
    buckets: tuple[int, ...] = ()
    kv_budget: int = 2 << 30  # of address space: memory is taken as pages are used

    def with_pages(self, page_bytes: int) -> Sizes:
        """The same with ``pages`` decided, where one page of all layers takes ``page_bytes``."""
        blocks = -(-self.context // self.page_size)
        affordable = self.kv_budget // page_bytes
        return self if self.pages else replace(self, pages=max(min(blocks * self.seqs, affordable), blocks))

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


def with_hidden(graph: Graph) -> Graph:
    """The same step with output ``hidden``, the normed states that the classifier reads, in place of logits."""
    hidden = graph.fork()
    logits = hidden.outputs["logits"]
    classifier = next(node for node in hidden.nodes if logits in node.outputs.values())
    hidden.nodes.remove(classifier)
    hidden.outputs = {"hidden": classifier.args["x"]}
    return hidden


@dataclass
class Runner:
    """Programs of one model by head (``logits``, ``ids``, ``hidden``) and tokens, made when first needed for a bucket.

    Attributes:
        arena_bound: bytes that no arena for the largest step could do without.
    """

    graph: Graph
    sizes: Sizes
    vocab: int
    weights: WeightStore
    registry: Registry
    pool: Callable[[], WorkerPool]
    programs: dict[tuple[str, int], Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocates inputs, outputs and KV pages (memory is taken when touched), chooses kernels, packs weights."""
        limits = self.sizes.limits
        self.inputs = StepInputs(input_shapes(limits.blocks), limits.sizes)
        self._words = {name: array.data for name, array in self.inputs.arrays.items()}
        self._tables: list[list[int]] = [[] for _ in range(limits.seqs)]  # what block_tables holds
        self.outputs: dict[str, Array] = {}
        self.states: dict[int, Array] = {}
        memory = Memory(self.weights, self.states, self.outputs)
        self.compiler = Compiler(self.registry, memory, self.inputs, self.pool)
        self.buckets = sorted({*(b for b in self.sizes.buckets if b < self.sizes.tokens), self.sizes.tokens})
        self._bind_cache()
        greedy = with_argmax(self.graph)
        self.graphs = {"logits": self.graph, "ids": greedy}
        for name, value in (greedy.outputs | self.graph.outputs).items():
            self._allocate(name, value)
        self._ids = self.outputs["ids"].data
        largest = [self._fused(head, self.sizes.tokens) for head in self.graphs]
        self.arena_bound = self.compiler.reserve(largest, limits.sizes)  # what nobody can run is refused here
        self.compiler.compile((self._fused("ids", bucket), self._bounds(bucket)) for bucket in self.buckets)
        self.program("ids", 1)  # so are weights whose packed form memory has no room for

    def _rounded(self, stateful: list[Node]) -> bool:
        """Whether any kernel rounds activations, of those that have nothing to do with the cache."""
        others = (node for node in self.graph.nodes if node not in stateful)
        found = (self.registry.find(self.compiler.view(node, self.sizes.limits.sizes))[0] for node in others)
        return any(choice is not None and not choice.kernel.exact for choice in found)

    def _bind_cache(self) -> None:
        """Gives the KV cache to one backend for steps of every size, and allocates pages in its layout."""
        stateful = [node for node in self.graph.nodes if any(v.kind == "state" for v in node.args.values())]
        views = (self.compiler.view(node, self._bounds(bucket)) for bucket in self.buckets for node in stateful)
        self.registry.bind_groups(views, rounded=self._rounded(stateful))
        owners = {self.registry.choose(self.compiler.view(node, self.sizes.limits.sizes)).backend for node in stateful}
        if len(owners) != 1:
            raise RegistryError(
                f"the KV cache has one layout, but its ops are bound to several backends: {', '.join(sorted(owners))}",
                remedy="their kernels must be declared with group='kv'",
            )
        layout: KVLayout = resolve(self.registry.backends[owners.pop()].kv_layouts[self.registry.kv_dtype])
        self.kv_layout = layout
        states = {v.source for node in stateful for v in node.args.values() if isinstance(v.source, State)}
        shapes = {s.layer: layout.page_shape(s.kv_heads, s.head_dim, self.sizes.page_size) for s in states}
        dtype = layout.numpy
        page_bytes = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) * dtype.itemsize
        self.sizes = self.sizes.with_pages(page_bytes)
        for layer, shape in shapes.items():
            nbytes = self.sizes.pages * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self.states[layer] = aligned(nbytes).view(dtype).reshape(self.sizes.pages, *shape)

    def _allocate(self, name: str, value: Value) -> None:
        """Memory for an output of the largest step."""
        shape = concrete(value.shape, self.sizes.limits.sizes)
        dtype = np.dtype(NUMPY[value.dtype])
        block = aligned(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self.outputs[name] = block.view(dtype).reshape(shape)

    def _graph(self, head: str) -> Graph:
        """The graph of a head; few want ``hidden``, so it is made when somebody does."""
        if head == "hidden" and head not in self.graphs:
            graph = with_hidden(self.graph)
            self._allocate("hidden", graph.outputs["hidden"])
            self.graphs[head] = graph
        return self.graphs[head]

    def _bounds(self, bucket: int) -> dict[str, int]:
        """The largest step of a bucket."""
        limits = self.sizes.limits
        return {"T": bucket, "S": min(limits.seqs, bucket), "R": min(limits.rows, bucket)}

    def program(self, head: str, tokens: int) -> Program:
        """The program for ``head`` that holds ``tokens`` tokens."""
        program = self.programs.get((head, tokens))
        if program is None:
            bucket = self._bucket(tokens)
            if (head, bucket) not in self.programs:
                self.programs[head, bucket] = self.compiler.build(self._fused(head, bucket), self._bounds(bucket))
            program = self.programs[head, tokens] = self.programs[head, bucket]
        return program

    def bound(self, head: str, tokens: int) -> list[tuple[Node, Choice]]:
        """The nodes of :meth:`program` in the order of its rows, each with the kernel that runs it."""
        bucket = self._bucket(tokens)
        graph = self._fused(head, bucket)
        return list(zip(graph.nodes, self.compiler.choose(graph, self._bounds(bucket)), strict=True))

    def _bucket(self, tokens: int) -> int:
        """The smallest size with a program that holds ``tokens`` tokens."""
        return self.buckets[bisect_left(self.buckets, tokens)]

    def _fused(self, head: str, bucket: int) -> Graph:
        """The graph of a head with the fused ops that backends offer for steps of this size."""
        graph = self._graph(head).fork()
        self.compiler.fuse(graph, self._bounds(bucket))
        return graph

    def run(self, batch: Sequence[Work], head: str = "logits") -> Array:
        """Computes ``batch``; returns what ``head`` says of the wanted rows, valid until the next run.

        ``logits`` ``[rows, vocab]``, greedy ``ids`` ``[rows]``, or ``hidden`` states ``[rows, hidden]``.
        """
        rows = self._run(batch, head)
        return self.outputs[head][:rows]

    def greedy(self, batch: Sequence[Work]) -> list[int]:
        """The most probable next token of every row of ``batch``."""
        return self._ids[: self._run(batch, "ids")].tolist()

    def _run(self, batch: Sequence[Work], head: str) -> int:
        tokens, rows = self._fill(batch)
        self.inputs.set_sizes(tokens, len(batch), rows)
        self.program(head, tokens).run()
        return rows

    def _fill(self, batch: Sequence[Work]) -> tuple[int, int]:
        """Writes the inputs of a step; returns its number of tokens and of wanted rows.

        Word by word: after a step the caches hold weights alone, and for the few words of a decode step one call of
        numpy has to bring more of its code back than all of this is.
        """
        words, page_size = self._words, self.sizes.page_size
        token_ids, positions, slots, rows = words["token_ids"], words["positions"], words["slots"], words["rows"]
        query_starts, query_lens, kv_lens = words["query_starts"], words["query_lens"], words["kv_lens"]
        token = row = 0
        for s, (new_ids, start, pages, wanted) in enumerate(batch):
            first, position = token, start
            for token_id in new_ids:
                token_ids[token] = token_id
                positions[token] = position
                slots[token] = pages[position // page_size] * page_size + position % page_size
                token += 1
                position += 1
            query_starts[s] = first
            query_lens[s] = token - first
            kv_lens[s] = position
            for offset in wanted:
                rows[row] = first + offset
                row += 1
            if self._tables[s] != pages:  # most steps add no page
                self._tables[s] = list(pages)
                self.inputs.arrays["block_tables"][s, : len(pages)] = pages
        return token, row

    @property
    def kv_bytes(self) -> int:
        """Size of all KV pages (address space; memory is taken as pages are used)."""
        return sum(array.nbytes for array in self.states.values())
