"""The program: a graph bound to kernels and memory for steps of up to a given size, built once and run every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.device import HOST, Place
from llmcore.dims import STEP_DIMS, Bounds, Sym, concrete, extent
from llmcore.errors import RegistryError
from llmcore.graph.fusion import fuse
from llmcore.graph.graph import Graph, Node, Value
from llmcore.graph.inputs import StepInputs
from llmcore.graph.memory import Plan, plan
from llmcore.graph.segments import (
    BoundCall,
    CallSegment,
    CapturedSegment,
    NativeRow,
    NativeSegment,
    Segment,
    bits,
)
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.layers.base import Const, State
from llmcore.native import LOOPS
from llmcore.native.build import compile_missing, missing
from llmcore.native.code import loader
from llmcore.ops import Param
from llmcore.plugins import resolve
from llmcore.registry.choose import Choice, Registry
from llmcore.registry.node import NodeView
from llmcore.registry.operand import Operand

if TYPE_CHECKING:  # the pool imports numba, which a program of torch calls does not need
    from llmcore.native.pool import WorkerPool

Array = np.ndarray[Any, Any]
HERE = Place(HOST)  # this machine's memory, float32


@dataclass(frozen=True)
class Row:
    """What ``llmcore explain`` shows of one node."""

    op: str
    path: str
    backend: str
    kernel: str
    abi: str
    reason: str
    segment: int


@dataclass
class Memory:
    """Everything outside of the arena that a program's operands lie in.

    Attributes:
        states: layer → its KV pages.
        outputs: output name → where it is written; its leading axis is as long as any program needs.
        constants: tables of layers, where kernels read them.
    """

    weights: WeightStore
    states: Mapping[int, Any]
    outputs: Mapping[str, Any]
    constants: dict[Const, Any] = field(default_factory=dict)


class Compiler:
    """Makes programs for one model: chooses kernels, fuses, plans, binds."""

    def __init__(
        self,
        registry: Registry,
        memory: Memory,
        inputs: StepInputs,
        pool: Callable[[], WorkerPool],
        place: Place = HERE,
    ) -> None:
        """Its programs share inputs, weights, states, outputs, arena and workers (started when first needed)."""
        self.registry = registry
        self.memory = memory
        self.inputs = inputs
        self.pool = pool
        self.place = place
        self.arena = self._memory(0)

    def _memory(self, nbytes: int) -> Any:
        return self.place.device.zeros((nbytes,), "uint8")

    def reserve(self, graphs: Iterable[Graph], sizes: Mapping[str, int]) -> int:
        """Makes the arena large enough for programs of ``graphs`` up to ``sizes``, so that all of them share one.

        Returns the largest live set among them, in bytes; raises :class:`RegistryError` for a node that no backend has
        a kernel for.
        """
        plans = [self.plan(graph, self.choose(graph, sizes), sizes) for graph in graphs]
        self.arena = self._memory(max(each.nbytes for each in plans))
        return max(each.lower_bound for each in plans)

    def fuse(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        """Replaces parts of ``graph`` by fused ops that a backend at least as wanted as those of the parts offers."""
        asked = self.registry.preference

        def rank(backend: str) -> int:
            return asked.order.index(backend) if backend in asked.order else -1

        def accept(node: Node, parts: list[Node]) -> bool:
            choice, _ = self.registry.find(self.view(node, sizes))
            if choice is None:
                return False
            if node.op.name in asked.ops:
                return True
            if any(part.op.name in asked.ops for part in parts):
                return False  # the user chose a kernel for a part: it must run
            chosen = (self.registry.find(self.view(part, sizes))[0] for part in parts)
            return all(part is None or rank(choice.backend) <= rank(part.backend) for part in chosen)

        fuse(graph, accept)

    def view(self, node: Node, sizes: Mapping[str, int]) -> NodeView:
        """``node`` as kernels are asked about it."""
        formats = {
            name: self.memory.weights.format(value.name) for name, value in node.args.items() if value.dtype == "any"
        }
        dims = {letter: extent(dim, sizes) for letter, dim in node.dims.items()}
        present = frozenset(param.name for param in node.op.params if param.optional and param.name in node.args)
        one_each = isinstance(sizes, Bounds) and sizes.one_each
        kind, dtype = self.place.device.kind, self.place.dtype
        return NodeView(node.op.name, node.path, kind, dtype, dims, formats, node.attrs, present, one_each)

    def plan(self, graph: Graph, choices: Sequence[Choice], sizes: Mapping[str, int]) -> Plan:
        """Where temporaries lie, and what the chosen kernels work in."""
        workspaces = {
            i: int(resolve(choice.kernel.workspace)(self.view(node, sizes)))
            for i, (node, choice) in enumerate(zip(graph.nodes, choices, strict=True))
            if choice.kernel.workspace
        }
        return plan(graph, sizes, self.place.dtypes, workspaces)

    def choose(self, graph: Graph, sizes: Mapping[str, int]) -> list[Choice]:
        """A kernel for every node; raises :class:`RegistryError` for a node that no backend has one for."""
        return [self.registry.choose(self.view(node, sizes)) for node in graph.nodes]

    def compile(self, steps: Iterable[tuple[Graph, Mapping[str, int]]]) -> None:
        """Compiles what programs of these graphs and sizes will need and no process has compiled before, all at once.

        Where nothing of the first is missing, the others are not looked at: they will be when they are built.
        """
        targets: list[str] = []
        for graph, sizes in steps:
            kernels = [choice.kernel for choice in self.choose(graph, sizes) if choice.kernel.abi == "native"]
            targets += (target for kernel in kernels for target in (*kernel.before, kernel.target))
            if not missing(targets):
                return
        compile_missing([*targets, *LOOPS], self.registry.preference.threads)

    def build(self, graph: Graph, sizes: Mapping[str, int]) -> Program:
        """Binds ``graph`` for steps of up to ``sizes``.

        Raises:
            RegistryError: a node that no backend has a kernel for, naming what each lacks.
        """
        self.compile([(graph, sizes)])
        choices = self.choose(graph, sizes)
        for backend in {choice.backend for choice in choices}:
            self.registry.prepare(backend)
        layout = self.plan(graph, choices, sizes)
        if layout.nbytes > self.arena.nbytes:
            self.arena = self._memory(layout.nbytes)  # programs built before keep the old one
        self.memory.weights.prepare(
            (value.name, choice.kernel)
            for node, choice in zip(graph.nodes, choices, strict=True)
            for value in node.args.values()
            if value.kind == "weight" and value.dtype == "any"
        )
        binder = Binder(self, graph, layout, sizes)
        segments: list[Segment] = []
        rows: list[Row] = []
        records = isinstance(sizes, Bounds) and sizes.one_each and self.place.device.captures
        for kind, group in groupby(range(len(choices)), key=lambda i: _kind(choices[i].kernel, records=records)):
            members = list(group)
            for i in members:
                choice, node = choices[i], graph.nodes[i]
                kernel, abi = choice.kernel.target, choice.kernel.abi
                rows.append(Row(node.op.name, node.path, choice.backend, kernel, abi, choice.reason, len(segments)))
            if kind == "native":
                native = [binder.row(i, graph.nodes[i], choices[i]) for i in members]
                segments.append(NativeSegment(self.pool(), members, native))
                continue
            calls = [binder.call(graph.nodes[i], choices[i]) for i in members]
            if kind == "captured":
                segments.append(CapturedSegment(members, calls, self.place.device))
            else:
                segments.append(CallSegment(members, calls))
        return Program(segments, rows, layout, binder.keep)


def _kind(kernel: KernelInfo, *, records: bool) -> str:
    """The kind of segment that a kernel belongs to; ``records``: where the device can record what it does."""
    return "captured" if records and kernel.captured else kernel.abi


class Binder:
    """Turns nodes into rows and calls: finds each argument's memory."""

    def __init__(self, compiler: Compiler, graph: Graph, layout: Plan, sizes: Mapping[str, int]) -> None:
        """A binder for one program."""
        self.memory = compiler.memory
        self.inputs = compiler.inputs
        self.place = compiler.place
        self.arena = compiler.arena
        self.layout = layout
        self.sizes = sizes
        self.names = {value: name for name, value in graph.outputs.items()}
        fixed = sorted({0} | {dim for node in graph.nodes for dim in node.dims.values() if isinstance(dim, int)})
        self.keep: list[Any] = [self.arena]  # the program holds what native operands point to
        self.constants = np.array(fixed, np.int64)  # fixed dims: kernels read every dim from an address
        self.keep.append(self.constants)
        self.constant_at = {dim: int(self.constants.ctypes.data) + 8 * i for i, dim in enumerate(fixed)}

    def operand(self, value: Value, choice: Choice) -> Operand:
        """The memory of ``value`` as the chosen kernel reads it."""
        if value in self.names:
            return Operand(value.name, self.memory.outputs[self.names[value]], value.shape)
        if value.kind == "input":
            return Operand(value.name, self.inputs.there[value.name], value.shape)
        if isinstance(value.source, State):
            return Operand(value.name, self.memory.states[value.source.layer], ())
        if isinstance(value.source, Const):
            return Operand(value.name, self.constant(value.source), value.shape)
        if value.kind == "weight":
            store = self.memory.weights
            array = store.operand(value.name, choice.kernel) if value.dtype == "any" else store.float32(value.name)
            return Operand(value.name, array, value.shape)
        dims, dtype = concrete(value.shape, self.sizes), self.place.dtypes[value.dtype]
        temporary = self.place.device.view(self.arena, self.layout.offsets[value], dims, dtype)
        return Operand(value.name, temporary, value.shape)

    def constant(self, table: Const) -> Any:
        """A layer's table, brought to the device once."""
        found = self.memory.constants
        if table not in found:
            found[table] = self.place.device.put(table.array)
        return found[table]

    def operands(self, node: Node, choice: Choice) -> list[Operand | None]:
        """Memory for every parameter of the op in order, None for those that are absent."""

        def find(param: Param) -> Operand | None:
            value = node.outputs.get(param.name) or node.args.get(param.name)
            return None if value is None else self.operand(value, choice)

        found = [find(param) for param in node.op.params]
        self.keep += (operand.array for operand in found if operand is not None)
        return found

    def row(self, index: int, node: Node, choice: Choice) -> NativeRow:
        """A native call: addresses of tensors and dims, attributes, then the workspace of a kernel that has one."""
        tensors = [0 if operand is None else operand.address for operand in self.operands(node, choice)]
        dims = [self.address_of(node, letter) for letter in node.op.dims]
        attrs = [bits(node.attrs[name]) for name in node.op.attrs]
        if choice.kernel.workspace:
            attrs.append(int(self.arena.ctypes.data) + self.layout.workspaces[index])
        try:
            function, *before = map(loader().address, (choice.kernel.target, *choice.kernel.before))
        except TypeError as error:
            raise RegistryError(
                f"kernel {choice.kernel.target} of backend {choice.backend} is not native: {error}",
                remedy='a target with abi="native" returns the address of its function',
            ) from error
        return NativeRow(function, [*tensors, *dims, *attrs], before)

    def address_of(self, node: Node, letter: str) -> int:
        """Where the current size of a dim lies; that of an absent parameter is 0."""
        dim = node.dims.get(letter, 0)
        return self.inputs.address_of(dim.name) if isinstance(dim, Sym) else self.constant_at[dim]

    def call(self, node: Node, choice: Choice) -> BoundCall:
        """A Python call with its views."""
        slots = {dim.name: i for i, dim in enumerate(STEP_DIMS)}
        function = resolve(choice.kernel.target)
        operands = self.operands(node, choice)
        return BoundCall(function, operands, choice.kernel.view, node.attrs, self.inputs.block, slots)


class Program:
    """Segments over one arena.

    Attributes:
        rows: every node with its kernel and the reason for it.
        plan: the memory plan.
    """

    def __init__(self, segments: list[Segment], rows: list[Row], layout: Plan, keep: Sequence[Any]) -> None:
        """``keep`` is memory that operand tables point to."""
        self.segments = segments
        self.rows = rows
        self.plan = layout
        self._keep = keep

    def run(self) -> None:
        """Runs the step whose inputs and sizes the compiler's StepInputs hold."""
        for segment in self.segments:
            segment.run()
