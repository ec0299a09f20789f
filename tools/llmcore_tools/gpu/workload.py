"""Which kernels a model's steps call, and with what: from the real graph, fusion and choice of kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

from llmcore.cache.layout import KVLayout
from llmcore.dims import concrete, extent
from llmcore.engine.logprobs import logprobs_graph
from llmcore.engine.sampler import sampling_graph
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import model_graph, with_argmax
from llmcore.graph.fusion import fuse
from llmcore.graph.graph import Graph, Node, Value
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.layers.base import State
from llmcore.model_spec import ModelSpec, RopeSpec
from llmcore.plugins import Plugins, resolve
from llmcore.registry.choose import Preference, Registry
from llmcore.registry.node import NodeView
from llmcore.weights.formats import tensor_format
from llmcore_tools.gpu.packed_shape import packed_shape

CONTEXT = 8192
PAGE_SIZE = 16
LAYERS = 2  # the first follows the embedding, all others one like themselves: fusion sees no more than that
LOGPROBS = 20


def _spec(
    family: str, hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, vocab: int, **extra: Any
) -> ModelSpec:
    rope = RopeSpec(head_dim, 1e6 if family == "qwen" else 5e5)
    eps = 1e-6 if family == "qwen" else 1e-5
    return ModelSpec(family, vocab, hidden, ffn, LAYERS, heads, kv_heads, head_dim, eps, rope, CONTEXT, **extra)


MODELS: Mapping[str, ModelSpec] = {
    "llama-3.2-1b": _spec("llama", 2048, 8192, 32, 8, 64, 128256, tied=True),
    "llama-3.1-8b": _spec("llama", 4096, 14336, 32, 8, 128, 128256),
    "qwen2.5-7b": _spec("qwen", 3584, 18944, 28, 4, 128, 152064, qkv_bias=True),
    "qwen3-8b": _spec("qwen", 4096, 12288, 32, 8, 128, 151936, qk_norm=True),
}
"""Real sizes, with fewer layers: all are alike."""


@dataclass(frozen=True)
class Step:
    """``tokens`` new tokens of ``seqs`` sequences, one row of logits for each of them."""

    tokens: int
    seqs: int

    @property
    def name(self) -> str:
        """As reports call it."""
        return f"decode {self.seqs}" if self.one_each else f"prefill {self.tokens}"

    @property
    def one_each(self) -> bool:
        """Whether every sequence has one new token."""
        return self.tokens == self.seqs

    @property
    def sizes(self) -> dict[str, int]:
        """By the names of the step dimensions."""
        return {"T": self.tokens, "S": self.seqs, "R": self.seqs}


@dataclass(frozen=True)
class Workload:
    """Every combination of these: models by name, formats of their matrices, element types of the cache, steps."""

    models: tuple[str, ...] = tuple(MODELS)
    formats: tuple[str, ...] = ("BF16", "Q8_0", "Q4_0", "Q4_1")
    kv_dtypes: tuple[str, ...] = ("bfloat16", "int8")
    steps: tuple[Step, ...] = (Step(1, 1), Step(8, 8), Step(64, 64), Step(2048, 1))
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Argument:
    """One tensor that a kernel is called with; ``dtype`` is torch's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """One kernel and what it is called with, in the order of the op's signature; None: absent."""

    kernel: KernelInfo
    arguments: tuple[Argument | None, ...]
    attrs: tuple[tuple[str, Any], ...]


@dataclass
class Calls:
    """The distinct calls of a workload.

    Attributes:
        places: call → where it comes from, in words.
        missing: ops that no kernel of the backend was found for, with the reason.
    """

    places: dict[Call, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, call: Call, place: str) -> None:
        """Notes that ``place`` makes ``call``."""
        found = self.places.setdefault(call, [])
        if place not in found:
            found.append(place)


def calls_of(backends: Sequence[BackendInfo], workload: Workload) -> Calls:
    """What the steps of ``workload`` call of each of ``backends`` alone, on a GPU, with and without its fused kernels.

    Ops that the first has no kernel for are missing; what others lack, comes from the first.
    """
    found = Calls()
    for i, backend in enumerate(backends):
        missing = _add_calls(found, backend, workload)
        found.missing.update({} if i else missing)
    return found


def _add_calls(found: Calls, backend: BackendInfo, workload: Workload) -> dict[str, str]:
    """Adds what one backend is called for; returns the ops that it has no kernel for, with the reason."""
    missing: dict[str, str] = {}
    for kv_dtype in workload.kv_dtypes:
        if backend.kv_layouts and kv_dtype not in backend.kv_layouts:
            continue
        registry = _registry(backend, kv_dtype)
        for model, form, step in product(workload.models, workload.formats, workload.steps):
            maker = _Maker(registry, workload.dtype, form, step)
            place = f"{model} {form}, {kv_dtype} cache, {step.name}"
            for graph in _graphs(model, form):
                for variant in (graph, maker.fused(graph)):
                    for call in maker.calls(variant, missing):
                        found.add(call, place)
    return missing


def _registry(backend: BackendInfo, kv_dtype: str) -> Registry:
    """Of this backend alone."""
    return Registry(Plugins(backends={backend.name: backend}), Preference((backend.name,), kv_dtype=kv_dtype))


@cache
def _graphs(model: str, form: str) -> Sequence[Graph]:
    """A step with logits, one with greedy tokens, and what the sampler adds."""
    spec = MODELS[model]
    if spec.family == "llama" and tensor_format(form).quantized:  # as GGUF files have it
        spec = replace(spec, rope=replace(spec.rope, interleaved=True))
    graph = model_graph(spec, Sizes(1, 1, 1, CONTEXT, PAGE_SIZE, 0))
    vocab = spec.vocab_size
    return graph, with_argmax(graph), sampling_graph(vocab, (True, True, True)), logprobs_graph(vocab, LOGPROBS)


@dataclass(frozen=True)
class _Maker:
    """Turns nodes into calls for one step of one model."""

    registry: Registry
    dtype: str
    form: str
    step: Step

    def view(self, node: Node) -> NodeView:
        """``node`` as kernels are asked about it."""
        formats = {name: self.form for name, value in node.args.items() if value.dtype == "any"}
        dims = {letter: extent(dim, self.step.sizes) for letter, dim in node.dims.items()}
        present = frozenset(param.name for param in node.op.params if param.optional and param.name in node.args)
        one_each = self.step.one_each
        return NodeView(node.op.name, node.path, "cuda", self.dtype, dims, formats, node.attrs, present, one_each)

    def fused(self, graph: Graph) -> Graph:
        """The graph with all fused ops that there are kernels for."""
        other = graph.fork()
        fuse(other, lambda node, _parts: self.registry.find(self.view(node))[0] is not None)
        return other

    def calls(self, graph: Graph, missing: dict[str, str]) -> Iterator[Call]:
        """Of every node that has a kernel; ops without one are noted in ``missing``."""
        for node in graph.nodes:
            choice, passed = self.registry.find(self.view(node))
            if choice is None:
                missing.setdefault(node.op.name, "; ".join(passed))
                continue
            values = [node.outputs.get(param.name) or node.args.get(param.name) for param in node.op.params]
            arguments = tuple(
                None if value is None else self.argument(param.name, value, choice.kernel)
                for param, value in zip(node.op.params, values, strict=True)
            )
            yield Call(choice.kernel, arguments, tuple(node.attrs.items()))

    def argument(self, name: str, value: Value, kernel: KernelInfo) -> Argument:
        """The tensor that stands for ``value``."""
        if isinstance(value.source, State):
            return self._pages(name, value.source)
        if value.dtype == "any":
            shape, dtype = packed_shape(kernel.pack, self.form, concrete(value.shape, {}))
            return Argument(name, shape, dtype)
        dtype = {"act": self.dtype, "f32": "float32", "i32": "int32"}[value.dtype]
        return Argument(name, concrete(value.shape, self.step.sizes), dtype)

    def _pages(self, name: str, state: State) -> Argument:
        """Full contexts of all sequences of the step."""
        backend = self.registry.backends[self.registry.preference.order[0]]
        layout: KVLayout = resolve(backend.kv_layouts[self.registry.kv_dtype])
        pages = self.step.seqs * (CONTEXT // PAGE_SIZE)
        shape = layout.page_shape(state.kv_heads, state.head_dim, PAGE_SIZE)
        return Argument(name, (pages, *shape), layout.dtype)
