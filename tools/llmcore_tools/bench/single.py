"""Programs of one op: bound, planned and run as a model's are, over random values, by one backend alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.cache.layout import KVLayout
from llmcore.device.host import aligned
from llmcore.dims import concrete
from llmcore.errors import RegistryError
from llmcore.graph.graph import Graph
from llmcore.graph.inputs import StepInputs
from llmcore.graph.program import HERE, Compiler, Memory, Program
from llmcore.graph.weight_store import WeightStore
from llmcore.layers.base import State, Weight
from llmcore.ops import Apart, Case, OpSpec
from llmcore.plugins import plugins, resolve
from llmcore.registry.choose import Preference, Registry
from llmcore.testing.operands import Values, make_values, random_weight
from llmcore.weights.formats import tensor_format

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool
    from llmcore.weights.tensor import Tensor

NO_SYMBOLS = {"T": 1, "S": 1, "R": 1}  # every size is fixed
LEAST_S = 5e-4  # of one sample
TRIES = 5


@dataclass(frozen=True)
class Subject:
    """One op at one size: ``formats`` of the weights declared ``any``, by parameter."""

    op: OpSpec
    case: Case
    formats: tuple[tuple[str, str], ...] = ()

    @property
    def sizes(self) -> str:
        """Its dims, and which optional tensors it has."""
        return " ".join([*(f"{letter}={size}" for letter, size in self.case.dims.items()), *self.case.present])

    @property
    def weights(self) -> str:
        """The formats, each once."""
        return "+".join(dict.fromkeys(name for _, name in self.formats))


@dataclass(frozen=True)
class Single:
    """A program of one op, and what keeps its memory alive."""

    program: Program
    memory: Any

    def seconds(self, runs: int) -> float:
        """Seconds of one run, of ``runs`` in a row."""
        start = time.perf_counter()
        for _ in range(runs):
            self.program.run()
        return (time.perf_counter() - start) / runs

    def runs(self) -> int:
        """How many runs it takes to measure one."""
        once = min(self.seconds(1) for _ in range(TRIES))  # the first find their memory in no cache
        return max(1, round(LEAST_S / once))


def single(subject: Subject, backend: str, pool: Callable[[], WorkerPool], threads: int) -> Single:
    """The program of ``subject`` on ``backend``; a fused op that it does not offer is run as its parts.

    Raises:
        RegistryError: the backend has no kernel for it.
    """
    registry = Registry(plugins(), Preference((backend,), threads=threads))
    values = make_values(subject.op, subject.case, dict(subject.formats), "float32", 0)
    try:
        return _bound(subject, values, registry, pool, whole=True)
    except RegistryError:
        if subject.op.decompose is None:
            raise
        return _bound(subject, values, registry, pool, whole=False)


def _bound(
    subject: Subject, values: Values, registry: Registry, pool: Callable[[], WorkerPool], *, whole: bool
) -> Single:
    op, case = subject.op, subject.case
    inputs = {param.name: values.arrays[param.name] for param in op.of("input")}
    shapes = {name: (array.shape, "i32" if array.dtype.kind == "i" else "f32") for name, array in inputs.items()}
    graph = Graph(shapes)
    arguments: dict[str, Any] = {name: graph.input(name) for name in inputs}
    tensors = _weights(subject, values)
    arguments |= {name: Weight(name, tensor.shape) for name, tensor in tensors.items()}
    heads = _heads(case)
    arguments |= {param.name: State(0, *heads) for param in op.of("state")}
    if whole:
        made = graph.op(op.name, **arguments, **op.coerce(case.attrs))
    else:
        made = Apart(graph).op(op.name, **arguments, **op.coerce(case.attrs))
    results = made if isinstance(made, tuple) else () if made is None else (made,)
    graph.outputs = {param.name: value for param, value in zip(op.outputs, results, strict=True)}
    step = StepInputs(shapes, NO_SYMBOLS)
    for name, array in inputs.items():
        step.arrays[name][...] = array
    step.set_sizes(1, 1, 1)
    outputs = {
        name: np.zeros(concrete(value.shape, NO_SYMBOLS), HERE.dtypes[value.dtype])
        for name, value in graph.outputs.items()
    }
    memory = Memory(WeightStore(tensors), _states(subject, values, registry, heads), outputs)
    program = Compiler(registry, memory, step, pool).build(graph, NO_SYMBOLS)
    return Single(program, (memory, step))


def _weights(subject: Subject, values: Values) -> dict[str, Tensor]:
    """Every weight as a checkpoint holds it; values of float32 ones do not matter here."""
    rng = np.random.default_rng(1)
    plain = {
        param.name: random_weight(param.name, values.arrays[param.name].shape, tensor_format("F32"), rng)
        for param in subject.op.of("weight")
        if param.name in values.arrays
    }
    return {**plain, **values.stored}


def _heads(case: Case) -> tuple[int, int]:
    """Key heads and their size."""
    size = case.attrs.get("head_dim", 1)
    return case.attrs.get("kv_heads", case.dims.get("G", size) // size), size


def _states(subject: Subject, values: Values, registry: Registry, heads: tuple[int, int]) -> Mapping[int, Any]:
    """A cache with pages enough, in the layout of the one backend there is."""
    if not subject.op.of("state"):
        return {}
    page_size = subject.case.attrs["page_size"]
    tables, slots = values.arrays.get("block_tables"), values.arrays.get("slots")
    last = int(tables.max(initial=0)) if tables is not None else int(slots.max(initial=0)) // page_size  # type: ignore[union-attr]
    (backend,) = registry.backends.values()
    kv_dtype = registry.kv_dtype
    if kv_dtype not in backend.kv_layouts:
        raise RegistryError(f"backend {backend.name} has no KV cache of {kv_dtype}")
    layout: KVLayout = resolve(backend.kv_layouts[kv_dtype])
    shape = (last + 1, *layout.page_shape(*heads, page_size))
    dtype = layout.numpy
    return {0: aligned(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize).view(dtype).reshape(shape)}
