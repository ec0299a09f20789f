"""Float tiles: a few tokens times a few vectors of packed rows, over a run of columns; sums stay in registers.

Each sum is one lane that runs through the columns in order, whatever the tile, so tiles of every shape give the same
bits, and so does a run of columns that is cut in two.

An :class:`~llmcore_numba.float_arithmetic.Arithmetic` says what a vector of packed weights is multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import FLOAT, INT, LANES, emit_load, emit_repeat
from llmcore_numba.float_arithmetic import FACTOR, FLOATS, Arithmetic
from llmcore_numba.float_packing import VECTORS

SUMS = LANES * 4  # bytes of the sums of a token and a vector


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
        halves = [WORD(half * arithmetic.vector_bytes) for half in range(min(width, VECTORS))]
        xs = _spaced(builder, x, size, tokens, last_token)
        sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(width)] for _ in xs]
        places = [(place, WORD(WIDTH * i + SUMS * k)) for i, row in enumerate(sums) for k, place in enumerate(row)]
        for place, _ in places:
            builder.store(ir.Constant(FLOATS, [0.0] * LANES), place)
        with builder.if_then(builder.icmp_signed("!=", going_on, WORD(0)), likely=False):
            for place, at in places:
                builder.store(emit_load(builder, builder.add(out, at), FLOAT), place)

        def step(index: Any, count: int) -> None:
            at = builder.mul(index, WORD(VECTORS * arithmetic.vector_bytes))
            vectors = [builder.add(builder.add(block, at), half) for block in blocks for half in halves]
            found = [arithmetic.operands(builder, emit_load(builder, vector, arithmetic.lane)) for vector in vectors]
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
