"""What an op is: a signature, a torch reference, and the cases that every kernel is tested on.

    @op(inputs=["x: act[M, K]"], weights=["weight: any[N, K]", "bias?: f32[N]"], outputs=["y: act[M, N]"])
    def linear(x, weight, bias=None): ...

The decorated function *is* the reference: it takes torch tensors under the names of the signature and returns the
output (or a tuple of them), computing in float32. torch is imported when it runs, not when it is declared.

A parameter is ``name: type[dims]``; ``name?`` may be absent. Types: ``act`` (the activations' dtype), ``f32``,
``i32``, ``any`` (a weight in whatever format the checkpoint has; kernels say which they read), ``state`` (memory that
outlives the step and whose layout belongs to the backend: the KV cache). Dims are letters that unify over one call:
the second ``K`` must equal the first. Keyword-only parameters of the function are the op's attributes, each annotated
with its type: ``int``, ``float`` or ``bool``. A dim that only outputs have is the attribute of the same letter, ``N``
that of ``n``.

A *fused* op has no reference of its own: its decomposition into other ops is its meaning, its reference and the
pattern that the fusion pass looks for. It is used only where a backend offers it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, Protocol

from llmcore.dims import Dim, Shape
from llmcore.errors import RegistryError, near

Role = Literal["input", "weight", "state", "output"]
PARAM = re.compile(r"(?P<name>\w+)(?P<optional>\??): (?P<type>act|f32|i32|any|state)(?:\[(?P<dims>[\w, ]*)\])?")

ACCEPTS: Mapping[type, type] = {bool: bool, int: Integral, float: Real}  # attribute type → what it may be given as


@dataclass(frozen=True)
class Param:
    """One tensor parameter of an op."""

    name: str
    role: Role
    type: str
    dims: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        shape = f"[{', '.join(self.dims)}]" if self.type != "state" else ""
        return f"{self.name}{'?' if self.optional else ''}: {self.type}{shape}"


@dataclass(frozen=True)
class Case:
    """One conformance case: sizes for the dims, values for the attributes, and which optional parameters are present.

    ``inputs`` makes the parameters that random numbers can't stand for (indices, page tables): it is called with the
    dims and a ``numpy.random.Generator`` and returns arrays by parameter name. ``one_each``: every sequence has one new
    token, token ``t`` that of sequence ``t``, which a kernel may count on (:class:`llmcore.registry.node.NodeView`).
    """

    dims: Mapping[str, int]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    present: tuple[str, ...] = ()
    inputs: Callable[[Mapping[str, int], Any], dict[str, Any]] | None = None
    note: str = ""
    one_each: bool = False


class Builder(Protocol):
    """Where a decomposition or a layer puts its ops: the graph, a pattern under construction, or torch itself."""

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Adds one call of op ``name``; returns its output, or a tuple of outputs."""


@dataclass(frozen=True)
class OpSpec:
    """One op of the contract.

    Attributes:
        params: inputs, then weights, then states, then outputs: also the order of a kernel's operands.
        attr_types: the compile-time attributes and their types, in operand order.
        inplace: output name → inputs whose memory it may take over.
        decompose: for a fused op, ``f(builder, **arguments)``, which returns the outputs.
        cases: makes the conformance cases.
    """

    name: str
    summary: str
    params: tuple[Param, ...]
    attr_types: Mapping[str, type]
    reference: Callable[..., Any]
    inplace: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decompose: Callable[..., Any] | None = None
    cases: Callable[[], Iterator[Case]] | None = None

    @property
    def attrs(self) -> tuple[str, ...]:
        """The names of the attributes, in operand order."""
        return tuple(self.attr_types)

    @property
    def fused(self) -> bool:
        """Whether the op stands for a composition of others."""
        return self.decompose is not None

    def of(self, *roles: Role) -> tuple[Param, ...]:
        """The parameters of the given roles, in order."""
        return tuple(param for param in self.params if param.role in roles)

    @property
    def outputs(self) -> tuple[Param, ...]:
        """The output parameters."""
        return self.of("output")

    @property
    def dims(self) -> tuple[str, ...]:
        """Every dim letter in order of first appearance: the order of a native kernel's dim operands."""
        return tuple(dict.fromkeys(dim for param in self.params for dim in param.dims))

    def unify(self, shapes: Mapping[str, Shape], attrs: Mapping[str, Any] | None = None) -> dict[str, Dim]:
        """Binds the dim letters to the shapes of the arguments; raises :class:`RegistryError` where two disagree.

        Letters of outputs alone are bound to ``attrs``.
        """
        given = {letter: (attrs or {}).get(letter.lower()) for param in self.outputs for letter in param.dims}
        bound: dict[str, Dim] = {letter: size for letter, size in given.items() if size is not None}
        for param in self.of("input", "weight"):
            if param.name not in shapes:
                continue
            shape = shapes[param.name]
            if len(shape) != len(param.dims):
                raise RegistryError(f"op {self.name}: {param} got shape {tuple(map(str, shape))}")
            for letter, dim in zip(param.dims, shape, strict=True):
                if bound.setdefault(letter, dim) != dim:
                    raise RegistryError(f"op {self.name}: {param}: dim {letter} is {bound[letter]} and {dim}")
        return bound

    def coerce(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """``attrs`` as the declared types: a native kernel reads a float's bits, whatever it was given.

        Raises:
            RegistryError: a name that is no attribute, or a value not of its type; an integer is a float too.
        """
        return {name: self._coerced(name, value) for name, value in attrs.items()}

    def _coerced(self, name: str, value: Any) -> bool | int | float:
        if name not in self.attr_types:
            raise RegistryError(f"op {self.name} has no attribute {name!r}", remedy=near(name, self.attrs))
        kind = self.attr_types[name]
        if not isinstance(value, ACCEPTS[kind]) or isinstance(value, bool) != (kind is bool):
            raise RegistryError(f"op {self.name}: attribute {name} is a {kind.__name__}, not {value!r}")
        coerced: bool | int | float = kind(value)
        return coerced

    def signature(self) -> str:
        """The signature on one line, as ``llmcore ops`` shows it."""
        ins = ", ".join(map(str, self.of("input", "weight", "state")))
        outs = ", ".join(map(str, self.outputs)) or "()"
        return f"{self.name}({ins}{'; ' + ', '.join(self.attrs) if self.attrs else ''}) -> {outs}"


OPS: dict[str, OpSpec] = {}  # filled by the decorators at import, never afterwards


def _parse(role: Role, texts: Sequence[str]) -> list[Param]:
    params = []
    for text in texts:
        match = PARAM.fullmatch(text)
        if match is None:
            raise RegistryError(f"cannot read the op parameter {text!r}", remedy="write it as 'name: type[dims]'")
        dims = tuple(dim.strip() for dim in (match["dims"] or "").split(",") if dim.strip())
        params.append(Param(match["name"], role, match["type"], dims, bool(match["optional"])))
    return params


def _attribute_type(op: str, parameter: inspect.Parameter) -> type:
    """The type that ``parameter`` is annotated with; annotations are text in modules that postpone them."""
    for kind in ACCEPTS:
        if parameter.annotation in (kind, kind.__name__):
            return kind
    raise RegistryError(
        f"op {op}: attribute {parameter.name} has no type that operand tables hold",
        remedy=f"annotate it as {', '.join(kind.__name__ for kind in ACCEPTS)}",
    )


def _declare(function: Callable[..., Any], params: list[Param], skip: int, **extra: Any) -> OpSpec:
    """Checks the function's parameters against the signature, so that the two cannot drift apart."""
    name = function.__name__
    arguments = list(inspect.signature(function).parameters.values())[skip:]
    tensors = [a.name for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD]
    declared = [param.name for param in params if param.role != "output"]
    if tensors != declared:
        raise RegistryError(f"op {name}: declares {declared}, its function takes {tensors}")
    attr_types = {a.name: _attribute_type(name, a) for a in arguments if a.kind is a.KEYWORD_ONLY}
    summary = (inspect.getdoc(function) or "").split("\n")[0]
    spec = OpSpec(name, summary, tuple(params), attr_types, **extra)
    if spec.name in OPS:
        raise RegistryError(f"op {spec.name} is declared twice")
    OPS[spec.name] = spec
    return spec


def op(
    *,
    inputs: Sequence[str],
    weights: Sequence[str] = (),
    states: Sequence[str] = (),
    outputs: Sequence[str] = (),
    inplace: Mapping[str, tuple[str, ...]] | None = None,
    cases: Callable[[], Iterator[Case]] | None = None,
    decomposition: bool = False,
) -> Callable[[Callable[..., Any]], OpSpec]:
    """Declares the decorated torch function as an op of the contract; for a ``decomposition`` see :data:`fused`."""
    params = [
        *_parse("input", inputs),
        *_parse("weight", weights),
        *_parse("state", states),
        *_parse("output", outputs),
    ]

    def declare(function: Callable[..., Any]) -> OpSpec:
        extra: dict[str, Any] = {"inplace": inplace or {}, "cases": cases}
        if decomposition:
            return _declare(function, params, 1, reference=partial(function, Eager()), decompose=function, **extra)
        return _declare(function, params, 0, reference=function, **extra)

    return declare


fused = partial(op, decomposition=True)
"""Declares a fused op by its decomposition, ``f(builder, *tensors, *, attrs)``; arguments as for :func:`op`."""


class Eager:
    """A builder that runs each op's reference at once: what a decomposition means."""

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Runs the reference of ``name`` on torch tensors."""
        return get(name).reference(**arguments)


class Apart:
    """A builder that puts the parts of fused ops, and of those that are parts of these, into another builder."""

    def __init__(self, builder: Builder) -> None:
        """``builder`` gets them."""
        self.builder = builder

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Adds the parts of op ``name``, or the op itself if it is not fused."""
        decompose = get(name).decompose
        return self.builder.op(name, **arguments) if decompose is None else decompose(self, **arguments)


def get(name: str) -> OpSpec:
    """The op ``name``; raises :class:`RegistryError` with near names."""
    if name not in OPS:
        raise RegistryError(f"there is no op {name!r}", remedy=near(name, OPS))
    return OPS[name]
