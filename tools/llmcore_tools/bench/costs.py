"""What one call of an op must read, write and compute at least: from its signature, its sizes and its weights' bytes.

Every tensor is counted once, as if caches were large enough for all but the first look at it, and operations as the
op's definition has them, whatever a kernel does. A fused op computes what its parts do, but what passes between them
is neither read nor written. So these are bounds, the same for every backend: a kernel that is twice as fast has twice
the GB/s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from llmcore import ops
from llmcore.dims import Shape
from llmcore.ops import Apart, OpSpec, Param

ELEMENT = 4  # bytes of an activation, a float32 weight, an index

Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, and operations: a multiplication and an addition are two."""

    reads: float = 0
    writes: float = 0
    operations: float = 0

    @property
    def nbytes(self) -> float:
        """All bytes."""
        return self.reads + self.writes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.nbytes if self.nbytes else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.reads + other.reads, self.writes + other.writes, self.operations + other.operations)


@dataclass(frozen=True)
class Attended:
    """What attention looks at in a step.

    Attributes:
        cached: tokens in the cache, summed over sequences: each is read once.
        pairs: (new token, token that it looks at): each is a product of a query and a key, and one with a value.
        token_bytes: bytes of one token's keys and values in the cache of one layer.
    """

    cached: int = 0
    pairs: int = 0
    token_bytes: float = 0.0

    @classmethod
    def of(cls, batch: Collection[tuple[int, int]], token_bytes: float) -> Attended:
        """For sequences of (tokens before the step, new tokens)."""
        cached = sum(depth + new for depth, new in batch)
        return cls(cached, sum(depth * new + new * (new + 1) // 2 for depth, new in batch), token_bytes)


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        dims: letter → size in this step.
        weights: weight declared ``any`` → bytes of all of it as the kernel reads it.
        present: the tensor parameters that the call has.
    """

    op: OpSpec
    dims: Mapping[str, int]
    weights: Mapping[str, int] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    attended: Attended = Attended()


# Operations of each op; an op that is not here computes one for every element of its outputs.
OPERATIONS: Mapping[str, Callable[[Sizes, Attended], float]] = {
    "linear": lambda d, _: 2 * d["M"] * d["K"] * d["N"],
    "add": lambda d, _: d["M"] * d["D"],
    "rms_norm": lambda d, _: 4 * d["M"] * d["D"],  # square, sum, two products
    "swiglu": lambda d, _: 5 * d["M"] * d["F"],  # exp, sum, quotient, two products
    "rope": lambda d, _: 6 * d["T"] * d["F"] * (d["D"] // d["head_dim"]),  # four products and two sums a pair
    "attention": lambda d, a: 4 * d["D"] * a.pairs,
    "argmax": lambda d, _: d["R"] * d["V"],
    "embedding": lambda _, __: 0,
    "gather": lambda _, __: 0,
    "kv_write": lambda _, __: 0,
}

WITH_ROPE = ("qkv_rope_kv_write", "rms_norm_qkv_rope_kv_write")

# Tables of which a call reads some rows only: (op, parameter) → the dim that counts them.
LOOKED_UP = {
    ("embedding", "weight"): "T",
    ("gather", "x"): "R",
    **{(op, table): "T" for op in ("rope", *WITH_ROPE) for table in ("cos", "sin")},
}
READS_CACHE, WRITES_CACHE = ("attention",), ("kv_write", *WITH_ROPE)


def cost(call: Call) -> Cost:
    """The least that ``call`` reads, writes and computes."""
    reads: float = sum(_read(call, param) for param in call.op.of("input", "weight") if param.name in call.present)
    writes: float = sum(_elements(param, call.dims) * ELEMENT for param in call.op.outputs)
    if call.op.name in READS_CACHE:
        reads += call.attended.cached * call.attended.token_bytes
    if call.op.name in WRITES_CACHE:
        writes += call.dims["T"] * call.attended.token_bytes
    return Cost(reads, writes, operations(call))


def _elements(param: Param, dims: Mapping[str, int]) -> int:
    return prod(dims[letter] for letter in param.dims)


def _read(call: Call, param: Param) -> float:
    whole = call.weights.get(param.name, _elements(param, call.dims) * ELEMENT)
    counter = LOOKED_UP.get((call.op.name, param.name))
    if counter is None:
        return whole
    rows = call.dims[param.dims[0]]
    return whole * min(call.dims[counter], rows) / rows if rows else 0.0


def operations(call: Call) -> float:
    """The operations of ``call``; those of a fused op are its parts'."""
    if call.op.decompose is None:
        return _plain_operations(call.op, {**call.dims, **call.attrs}, call.attended, "bias" in call.present)
    counter = _Counter(call.attended)
    shapes = {
        param.name: tuple(call.dims[letter] for letter in param.dims) if param.name in call.present else None
        for param in call.op.of("input", "weight")
    }
    states = {param.name: () for param in call.op.of("state")}
    Apart(counter).op(call.op.name, **shapes, **states, **call.attrs)
    return counter.total


def _plain_operations(op: OpSpec, sizes: Sizes, attended: Attended, bias: bool) -> float:
    rule = OPERATIONS.get(op.name)
    made = sum(_elements(param, sizes) for param in op.outputs)
    return (made if rule is None else rule(sizes, attended)) + (made if bias else 0)


class _Counter:
    """A builder whose values are shapes: it adds up what the parts of a decomposition compute."""

    def __init__(self, attended: Attended) -> None:
        self.total = 0.0
        self._attended = attended

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Counts one part; returns the shapes of its outputs."""
        spec = ops.get(name)
        shapes: dict[str, Shape] = {name: value for name, value in arguments.items() if isinstance(value, tuple)}
        dims = spec.unify(shapes)
        attrs = {name: arguments[name] for name in spec.attrs}
        self.total += _plain_operations(spec, {**dims, **attrs}, self._attended, "bias" in shapes)
        made = tuple(tuple(dims[letter] for letter in param.dims) for param in spec.outputs)
        return made[0] if len(made) == 1 else made or None
