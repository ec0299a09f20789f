"""The runner: one model bound to kernels, its KV pages and its programs; it runs one ragged batch at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cache.layout import KVLayout
from llmcore.device import Place
from llmcore.dims import Bounds
from llmcore.engine.batch import BatchWriter, Work
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import with_argmax, with_hidden
from llmcore.errors import RegistryError
from llmcore.graph.graph import Graph, Node, Value
from llmcore.graph.inputs import StepInputs, input_shapes
from llmcore.graph.program import HERE, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.layers.base import State
from llmcore.plugins import resolve
from llmcore.registry.choose import Choice, Registry

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]


@dataclass
class Runner:
    """Programs of one model by head (``logits``, ``ids``, ``hidden``) and tokens, made when first needed for a bucket.

    Attributes:
        arena_bound: bytes that no arena for the largest step could do without.
        recorded: numbers of sequences whose decode steps are recorded; on the host there are none.
    """

    graph: Graph
    sizes: Sizes
    vocab: int
    weights: WeightStore
    registry: Registry
    pool: Callable[[], WorkerPool]
    place: Place = HERE
    programs: dict[tuple[str, int, bool], Program] = field(default_factory=dict, init=False)
    recorded: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Allocates inputs, outputs and KV pages (memory is taken when touched), chooses kernels, packs weights."""
        limits, device = self.sizes.limits, self.place.device
        self.inputs = StepInputs(input_shapes(limits.blocks), limits.sizes, device=device)
        self._writer = BatchWriter(self.inputs, self.sizes.page_size, limits.seqs)
        self.outputs: dict[str, Any] = {}
        self.states: dict[int, Any] = {}
        memory = Memory(self.weights, self.states, self.outputs)
        self.compiler = Compiler(self.registry, memory, self.inputs, self.pool, self.place)
        self.buckets = sorted({*(b for b in self.sizes.buckets if b < self.sizes.tokens), self.sizes.tokens})
        self._bind_cache()
        greedy = with_argmax(self.graph)
        self.graphs = {"logits": self.graph, "ids": greedy}
        for name, value in (greedy.outputs | self.graph.outputs).items():
            self._allocate(name, value)
        largest = [self._fused(head, self._bounds(self.sizes.tokens)) for head in self.graphs]
        self.arena_bound = self.compiler.reserve(largest, limits.sizes)  # what nobody can run is refused here
        steps = [self._bounds(bucket) for bucket in self.buckets]
        self.compiler.compile((self._fused("ids", bounds), bounds) for bounds in steps)
        self.program("ids", 1)  # so are weights whose packed form memory has no room for
        self._finish()

    def _finish(self) -> None:
        """What is left to do when kernels are chosen and weights are there."""
        self._ids: memoryview = self.outputs["ids"].data

    def _rounded(self, stateful: list[Node]) -> bool:
        """Whether any kernel rounds activations, of those that have nothing to do with the cache."""
        others = (node for node in self.graph.nodes if node not in stateful)
        found = (self.registry.find(self.compiler.view(node, self.sizes.limits.sizes))[0] for node in others)
        return any(choice is not None and not choice.kernel.exact for choice in found)

    def _bind_cache(self) -> None:
        """Gives the KV cache to one backend for steps of every size, and allocates pages in its layout."""
        stateful = [node for node in self.graph.nodes if any(v.kind == "state" for v in node.args.values())]
        bounds = self._every_bounds()
        views = (self.compiler.view(node, each) for each in bounds for node in stateful)
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
        self._pages = {s.layer: layout.page_shape(s.kv_heads, s.head_dim, self.sizes.page_size) for s in states}
        self._size_cache()

    def _every_bounds(self) -> list[Bounds]:
        """Those of all programs that there may be."""
        return [self._bounds(bucket) for bucket in self.buckets]

    def _size_cache(self) -> None:
        """Decides how many pages there are, and allocates them."""
        self.sizes = self.sizes.with_pages(self.page_bytes)
        self._allocate_pages(self.sizes.pages)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of all layers."""
        itemsize = self.kv_layout.numpy.itemsize
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self._pages.values()) * itemsize

    def _allocate_pages(self, count: int) -> None:
        for layer, shape in self._pages.items():
            self.states[layer] = self.place.device.zeros((count, *shape), self.kv_layout.dtype)

    def _allocate(self, name: str, value: Value) -> None:
        """Memory for an output of the largest step."""
        self.outputs[name] = self.place.zeros(value.shape, self.sizes.limits.sizes, value.dtype)

    def _graph(self, head: str) -> Graph:
        """The graph of a head; few want ``hidden``, so it is made when somebody does."""
        if head == "hidden" and head not in self.graphs:
            graph = with_hidden(self.graph)
            self._allocate("hidden", graph.outputs["hidden"])
            self.graphs[head] = graph
        return self.graphs[head]

    def _bounds(self, bucket: int, *, one_each: bool = False) -> Bounds:
        """The largest step of a bucket; ``one_each``: its only one, a decode step of so many sequences."""
        limits = self.sizes.limits
        if one_each:
            return Bounds({"T": bucket, "S": bucket, "R": bucket}, one_each=True)
        return Bounds({"T": bucket, "S": min(limits.seqs, bucket), "R": min(limits.rows, bucket)})

    def program(self, head: str, tokens: int, *, one_each: bool = False) -> Program:
        """The program for ``head`` that holds ``tokens`` tokens; ``one_each``: that of a recorded decode step."""
        program = self.programs.get((head, tokens, one_each))
        if program is None:
            bucket = self._bucket(tokens, one_each=one_each)
            if (head, bucket, one_each) not in self.programs:
                bounds = self._bounds(bucket, one_each=one_each)
                self.programs[head, bucket, one_each] = self.compiler.build(self._fused(head, bounds), bounds)
            program = self.programs[head, tokens, one_each] = self.programs[head, bucket, one_each]
        return program

    def bound(self, head: str, tokens: int) -> list[tuple[Node, Choice]]:
        """The nodes of :meth:`program` in the order of its rows, each with the kernel that runs it."""
        bounds = self._bounds(self._bucket(tokens))
        graph = self._fused(head, bounds)
        return list(zip(graph.nodes, self.compiler.choose(graph, bounds), strict=True))

    def _bucket(self, tokens: int, *, one_each: bool = False) -> int:
        """The smallest size with a program that holds ``tokens`` tokens."""
        sizes = self.recorded if one_each else self.buckets
        return sizes[bisect_left(sizes, tokens)]

    def _fused(self, head: str, bounds: Bounds) -> Graph:
        """The graph of a head with the fused ops that backends offer for steps of this size."""
        graph = self._graph(head).fork()
        self.compiler.fuse(graph, bounds)
        return graph

    def run(self, batch: Sequence[Work], head: str = "logits") -> Any:
        """Computes ``batch``; returns what ``head`` says of the wanted rows, on the device, valid until the next run.

        ``logits`` float32 ``[rows, vocab]``, greedy ``ids`` int32 ``[rows]``, or ``hidden`` states ``[rows, hidden]``.
        """
        rows = self._run(batch, head)
        return self.outputs[head][:rows]

    def fetch(self, batch: Sequence[Work], head: str = "logits") -> Array:
        """The same on the host."""
        return self.place.device.fetch(self.run(batch, head))

    def greedy(self, batch: Sequence[Work]) -> list[int]:
        """The most probable next token of every row of ``batch``."""
        return self._ids[: self._run(batch, "ids")].tolist()

    def _run(self, batch: Sequence[Work], head: str) -> int:
        tokens, rows = self._writer.fill(batch)
        self.inputs.set_sizes(tokens, len(batch), rows)
        self.program(head, tokens).run()
        return rows

    def release(self) -> None:
        """Gives memory back that would otherwise wait for the garbage collector; the model computes no more."""

    @property
    def kv_bytes(self) -> int:
        """Size of all KV pages (address space; memory is taken as pages are used)."""
        return self.page_bytes * self.sizes.pages
