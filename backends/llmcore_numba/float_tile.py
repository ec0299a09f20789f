"""Float tiles: a few tokens times a few vectors of packed rows, over a run of columns; sums stay in registers.

Each sum is one lane that runs through the columns in order, whatever the tile, so tiles of every shape give the same
bits, and so does a run of columns that is cut in two.

An :class:`Arithmetic` says what a vector of packed weights becomes, and what it is multiplied with. What a token has
for it is a *factor* of 4 bytes: a float32, or a pair of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emit_half, emits, pointer
from llmcore.native.vector import FLOAT, INT, LANES, SHORT, emit_fma, emit_load, emit_repeat
from llmcore_numba.float_packing import FLOAT_PACKINGS, VECTORS, FloatPacking

FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
FACTOR, SUMS = 4, LANES * 4  # bytes: of a factor, of the sums of a token and a vector


class _BFloat(ir.types._BaseFloatType):
    """LLVM's bfloat, which llvmlite has no type for."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
BFLOAT = _BFloat()
BFLOATS = ir.VectorType(BFLOAT, 2 * LANES)


class Shape(NamedTuple):
    """How many tokens and vectors the largest tile has; ``few``: tokens of the next."""

    tokens: int
    few: int
    vectors: int


def _shape() -> Shape:
    """Sums, weights and a factor fit the registers: 32 of sixteen lanes, 16 of eight, or 16 of four."""
    if machine().has("avx512f"):
        return Shape(6, 3, 4)
    return Shape(6, 3, 1) if machine().has("avx2") else Shape(2, 2, 1)


SHAPE = _shape()
STRIP = 2  # blocks that share the tokens in a cache, and their place for sums
WIDTH = STRIP * VECTORS * SUMS  # bytes of a token's sums


class Arithmetic(NamedTuple):
    """How packed weights are multiplied.

    Attributes:
        packing: of the weights.
        columns: of a factor.
        weights: ``f(builder, address)``: the operands that a vector of packed weights becomes, one for each factor.
        factor: ``f(builder, repeated)``: the operand that a factor, an int32 repeated in sixteen lanes, becomes.
        add: ``f(builder, factor, weights, sums)``: sums and products.
    """

    packing: FloatPacking
    columns: int
    weights: Callable[[Any, Any], list[Any]]
    factor: Callable[[Any, Any], Any]
    add: Callable[[Any, Any, Any, Any], Any] = emit_fma

    @property
    def factors(self) -> int:
        """Of a vector of packed weights."""
        return self.packing.columns // self.columns


def _float(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, FLOATS)


def _f32(builder: Any, address: Any) -> list[Any]:
    return [emit_load(builder, address, FLOAT)]


def _f16(builder: Any, address: Any) -> list[Any]:
    return [emit_half(builder, emit_load(builder, address, SHORT), lambda element: ir.VectorType(element, LANES))]


def _bf16(builder: Any, address: Any) -> list[Any]:
    """A bfloat16 is the upper half of a float32."""
    pairs = emit_load(builder, address, INT)
    first = builder.shl(pairs, ir.Constant(INTS, [16] * LANES))
    second = builder.and_(pairs, ir.Constant(INTS, [-(1 << 16)] * LANES))
    return [_float(builder, first), _float(builder, second)]


def _pairs(builder: Any, address: Any) -> list[Any]:
    return [_pair(builder, emit_load(builder, address, INT))]


def _pair(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, BFLOATS)


def _add_pairs(builder: Any, factor: Any, weights: Any, sums: Any) -> Any:
    kind = ir.FunctionType(FLOATS, [FLOATS, BFLOATS, BFLOATS])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(dot, [sums, weights, factor])


ARITHMETIC = {
    "F32": Arithmetic(FLOAT_PACKINGS["F32"], 1, _f32, _float),
    "F16": Arithmetic(FLOAT_PACKINGS["F16"], 1, _f16, _float),
    "BF16": Arithmetic(FLOAT_PACKINGS["BF16"], 1, _bf16, _float),
    "BF16_pairs": Arithmetic(FLOAT_PACKINGS["BF16"], 2, _pairs, _pair, _add_pairs),
}
"""``BF16_pairs`` multiplies tokens that have been rounded to bfloat16, and needs AVX512 BF16."""


def float_tile(arithmetic: Arithmetic, tokens: int, width: int) -> Callable[..., None]:
    """``tile(weights, stride, last_block, x, size, last_token, factors, going_on, out)``.

    Writes float32 ``out[token, vector, 16 rows]``, a token's ``WIDTH`` bytes from the next one's: sums over ``factors``
    of each token; with ``going_on`` it adds them to what is there. ``width`` is one vector, or those of some blocks.
    Blocks are ``stride`` bytes apart, tokens ``size``; those beyond the last repeat it.
    """

    @emits(types.void, *[types.int64] * 9)
    def tile(builder: Any, *values: Any) -> None:
        first, stride, last_block, x, size, last_token, factors, going_on, out = values
        blocks = _spaced(builder, first, stride, max(1, width // VECTORS), last_block)
        halves = [WORD(half * arithmetic.packing.vector_bytes) for half in range(min(width, VECTORS))]
        xs = _spaced(builder, x, size, tokens, last_token)
        sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(width)] for _ in xs]
        places = [(place, WORD(WIDTH * i + SUMS * k)) for i, row in enumerate(sums) for k, place in enumerate(row)]
        for place, _ in places:
            builder.store(ir.Constant(FLOATS, [0.0] * LANES), place)
        with builder.if_then(builder.icmp_signed("!=", going_on, WORD(0)), likely=False):
            for place, at in places:
                builder.store(emit_load(builder, builder.add(out, at), FLOAT), place)

        def step(index: Any, count: int) -> None:
            at = builder.mul(index, WORD(VECTORS * arithmetic.packing.vector_bytes))
            vectors = [builder.add(builder.add(block, at), half) for block in blocks for half in halves]
            found = [arithmetic.weights(builder, vector) for vector in vectors]
            for part in range(count):
                behind = builder.add(builder.mul(index, WORD(FACTOR * arithmetic.factors)), WORD(FACTOR * part))
                for row, token in zip(sums, xs, strict=True):
                    value = builder.load(pointer(builder, builder.add(token, behind), INT), align=1)
                    factor = arithmetic.factor(builder, emit_repeat(builder, value))
                    for place, weights in zip(row, found, strict=True):
                        builder.store(arithmetic.add(builder, factor, weights[part], builder.load(place)), place)

        whole = builder.udiv(factors, WORD(arithmetic.factors))
        with cgutils.for_range(builder, whole) as loop:
            step(loop.index, arithmetic.factors)
        if arithmetic.factors > 1:
            rest = builder.icmp_signed("<", builder.mul(whole, WORD(arithmetic.factors)), factors)
            with builder.if_then(rest, likely=False):
                step(whole, 1)
        for place, at in places:
            builder.store(builder.load(place), pointer(builder, builder.add(out, at), FLOATS), align=4)

    return tile


def _spaced(builder: Any, first: Any, stride: Any, count: int, last: Any) -> list[Any]:
    """``count`` addresses, the last repeated."""
    found = [first]
    for i in range(1, count):
        number = builder.select(builder.icmp_signed("<", last, WORD(i)), last, WORD(i))
        found.append(builder.add(first, builder.mul(stride, number)))
    return found
