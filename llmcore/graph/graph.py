"""The graph: ops in the order in which they run, over values with symbolic shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from llmcore import ops
from llmcore.dims import Dim, Shape
from llmcore.errors import RegistryError, near
from llmcore.layers.base import Const, State, Weight
from llmcore.ops import OpSpec, Param

Kind = Literal["input", "weight", "const", "state", "temp"]
ACCEPTS: Mapping[
    str, tuple[str, ...]
] = {  # parameter type → the types of values that it takes; activations are float32
    "act": ("act", "f32"),
    "f32": ("f32", "act"),
    "i32": ("i32",),
    "any": ("any",),
    "state": ("state",),
}


@dataclass(eq=False)
class Value:
    """One edge of the graph.

    Attributes:
        dtype: ``act``, ``f32``, ``i32``, ``any`` (a weight in its own format) or ``state``.
        source: the layer's Weight, Const or State, where it is one.
    """

    name: str
    shape: Shape
    dtype: str
    kind: Kind
    source: Weight | Const | State | None = None


@dataclass(eq=False)
class Node:
    """One call of an op.

    Attributes:
        args: parameter name → value, for inputs, weights and states that are present.
        outputs: output name → value.
        dims: dim letter → size.
    """

    op: OpSpec
    path: str
    args: dict[str, Value]
    attrs: dict[str, Any]
    dims: dict[str, Dim]
    outputs: dict[str, Value] = field(default_factory=dict)

    def values(self) -> Iterator[Value]:
        """Everything that it reads or writes."""
        yield from self.args.values()
        yield from self.outputs.values()


class Graph:
    """A graph under construction; it is the builder that layers and decompositions write to."""

    def __init__(self, inputs: Mapping[str, tuple[Shape, str]]) -> None:
        """A graph without nodes that may read the given inputs."""
        self.inputs = {name: Value(name, shape, dtype, "input") for name, (shape, dtype) in inputs.items()}
        self.nodes: list[Node] = []
        self.outputs: dict[str, Value] = {}
        self._weights: dict[str, Value] = {}
        self._others: dict[Const | State, Value] = {}
        self._path: list[str] = []

    def fork(self) -> Graph:
        """A graph that begins with this one's nodes and values, and grows by itself."""
        other = Graph({})
        other.inputs, other.nodes, other.outputs = dict(self.inputs), list(self.nodes), dict(self.outputs)
        other._weights, other._others = dict(self._weights), dict(self._others)
        return other

    def input(self, name: str) -> Value:
        """The step input ``name``; raises :class:`RegistryError` with near names."""
        if name not in self.inputs:
            raise RegistryError(f"there is no step input {name!r}", remedy=near(name, self.inputs))
        return self.inputs[name]

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Ops added inside belong to ``path``."""
        self._path.append(path)
        try:
            yield
        finally:
            self._path.pop()

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Every checkpoint tensor that the graph reads, with the shape that it must have."""
        return {key: value.source.shape for key, value in self._weights.items() if isinstance(value.source, Weight)}

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Adds a call of op ``name``; its output, a tuple of several, or None.

        Raises:
            RegistryError: an unknown op or argument, or shapes that do not fit together.
        """
        spec = ops.get(name)
        given = {key: value for key, value in arguments.items() if value is not None}
        _check_names(spec, given)
        attrs = spec.coerce({key: given[key] for key in spec.attrs})
        args = {param.name: self._value(given[param.name], spec, param) for param in _tensors(spec, given)}
        dims = spec.unify({key: value.shape for key, value in args.items()}, attrs)
        node = Node(spec, self._path[-1] if self._path else "", args, attrs, dims)
        for param in spec.outputs:
            shape = tuple(dims[letter] for letter in param.dims)
            node.outputs[param.name] = Value(f"{node.path}:{param.name}", shape, param.type, "temp")
        self.nodes.append(node)
        made = tuple(node.outputs.values())
        return made[0] if len(made) == 1 else made or None

    def _value(self, given: Any, spec: OpSpec, param: Param) -> Value:
        """The value that argument ``given`` stands for, after checking that ``param`` can be one of its kind."""
        if isinstance(given, Value):
            value = given
        elif isinstance(given, Weight):
            value = self._weights.setdefault(given.key, Value(given.key, given.shape, param.type, "weight", given))
            if value.shape != given.shape or value.dtype != param.type:
                wanted, first = f"{given.shape} {param.type}", f"{value.shape} {value.dtype}"
                raise RegistryError(
                    f"op {spec.name}: weight {given.key} is used as {wanted} here, elsewhere as {first}"
                )
        elif isinstance(given, Const):
            value = self._others.setdefault(given, Value(given.name, given.array.shape, "f32", "const", given))
        elif isinstance(given, State):
            value = self._others.setdefault(given, Value(f"kv.{given.layer}", (), "state", "state", given))
        else:
            kind = type(given).__name__
            raise RegistryError(f"op {spec.name}: argument {param.name} is a {kind}, not a value of the graph")
        if value.dtype not in ACCEPTS[param.type]:
            raise RegistryError(f"op {spec.name}: {param} got {value.name}, which is {value.dtype}")
        return value


def _tensors(spec: OpSpec, given: Collection[str]) -> list[Param]:
    """The tensor parameters of ``spec`` that a call gives."""
    return [param for param in spec.of("input", "weight", "state") if param.name in given]


def _check_names(spec: OpSpec, given: Collection[str]) -> None:
    tensors = spec.of("input", "weight", "state")
    needed = {*(param.name for param in tensors if not param.optional), *spec.attrs}
    unknown = set(given) - {*(param.name for param in tensors), *spec.attrs}
    if needed - set(given) or unknown:
        raise RegistryError(f"op {spec.name} got {', '.join(sorted(given))}", remedy=spec.signature())


def consumers(nodes: list[Node]) -> dict[Value, list[Node]]:
    """Value → the nodes that read it, in order."""
    found: dict[Value, list[Node]] = {}
    for node in nodes:
        for value in node.args.values():
            found.setdefault(value, []).append(node)
    return found
