"""Register tiles: dot products of a few tokens with a few weight rows at once, sums kept in registers.

One product is the sum over 16 lanes of ``x[k] * w[k]``, each lane running through k = lane, lane + 16, … in order.
Every tile sums each product in just this order, so tiles of different shapes give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils

from llmcore.native.compiling import inlined
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import (
    F32,
    FLOAT,
    LANES,
    emit_constant,
    emit_fma,
    emit_fold,
    emit_load,
    emit_load_first,
    emit_repeat,
)


def dot_tile(tokens: int, rows: int) -> Callable[..., None]:
    """``tile(*x, *w, length, out)``: float32 ``out[token * 16 + row]`` = ``x[token] · w[row]``.

    ``x`` are ``tokens`` addresses, ``w`` are ``rows``; all of ``length`` float32.
    """

    @emits(types.void, *[types.int64] * (tokens + rows + 2))
    def tile(builder: Any, *values: Any) -> None:
        xs, ws, (length, out) = values[:tokens], values[tokens : tokens + rows], values[-2:]
        sums = [[cgutils.alloca_once(builder, F32.ir) for _ in ws] for _ in xs]
        for place in itertools.chain(*sums):
            builder.store(emit_constant(F32, 0.0), place)

        def step(offset: Any, load: Callable[[Any], Any]) -> None:
            inputs = [load(builder.add(x, offset)) for x in xs]
            for row, w in enumerate(ws):
                weight = load(builder.add(w, offset))
                for token, x in enumerate(inputs):
                    place = sums[token][row]
                    builder.store(emit_fma(builder, x, weight, builder.load(place)), place)

        whole = builder.sdiv(length, WORD(LANES))
        with cgutils.for_range(builder, whole) as loop:
            step(builder.mul(loop.index, WORD(LANES * 4)), lambda at: emit_load(builder, at, FLOAT))
        rest = builder.srem(length, WORD(LANES))
        with builder.if_then(builder.icmp_signed(">", rest, WORD(0)), likely=False):
            step(builder.mul(whole, WORD(LANES * 4)), lambda at: emit_load_first(builder, at, rest, FLOAT, 4))
        for token, places in enumerate(sums):
            for row, place in enumerate(places):
                value = emit_fold(builder, builder.load(place), builder.fadd)
                at = builder.add(out, WORD((token * LANES + row) * 4))
                builder.store(value, pointer(builder, at, FLOAT), align=4)

    return tile


TOKENS = 3  # of the large tile: 3 tokens x 2 rows x 16 lanes are 12 AVX2 registers
tile_3x2 = dot_tile(TOKENS, 2)


def outer_tile(rows: int) -> Callable[..., None]:
    """``tile(a, a_stride, b, b_stride, steps, out, out_stride)``: writes ``rows`` vectors of 16 float32 to ``out``.

    ``out[row] = Σ_i a[row, i] * b[i]`` with ``a[row]`` consecutive float32 and ``b[i]`` vectors of 16; strides in
    bytes. Each lane sums over i in order.
    """

    @emits(types.void, *[types.int64] * 7)
    def tile(builder: Any, *values: Any) -> None:
        a, a_stride, b, b_stride, steps, out, out_stride = values
        sums = [cgutils.alloca_once(builder, F32.ir) for _ in range(rows)]
        for place in sums:
            builder.store(emit_constant(F32, 0.0), place)
        _add_products(builder, _strided(builder, a, a_stride, rows), b, b_stride, steps, sums)
        for at, place in zip(_strided(builder, out, out_stride, rows), sums, strict=True):
            builder.store(builder.load(place), pointer(builder, at, F32.ir), align=4)

    return tile


RUN_BYTES = 32
RUN_STEPS = 16  # bytes from a run's address to its number of steps


def outer_runs_tile(rows: int) -> Callable[..., None]:
    """``tile(a, a_stride, runs, count, offset, b_stride, out, out_stride)``: adds to what is at ``out``.

    Like :func:`outer_tile` with a ``b`` that lies in ``count`` pieces of up to 16 steps. Each is described by an
    address, to which ``offset`` is added, and a number of steps; 16 elements of ``a`` belong to each. Splitting the
    runs over calls changes nothing.
    """

    @emits(types.void, *[types.int64] * 8)
    def tile(builder: Any, *values: Any) -> None:
        a, a_stride, runs, count, offset, b_stride, out, out_stride = values
        ins, outs = _strided(builder, a, a_stride, rows), _strided(builder, out, out_stride, rows)
        sums = [cgutils.alloca_once(builder, F32.ir) for _ in range(rows)]
        for at, place in zip(outs, sums, strict=True):
            builder.store(emit_load(builder, at, FLOAT), place)
        with cgutils.for_range(builder, count) as loop:
            run = builder.add(runs, builder.mul(loop.index, WORD(RUN_BYTES)))
            b, steps = (builder.load(pointer(builder, builder.add(run, WORD(at)), WORD)) for at in (0, RUN_STEPS))
            elements = builder.mul(loop.index, WORD(LANES * 4))
            factors = [builder.add(each, elements) for each in ins]
            _add_products(builder, factors, builder.add(b, offset), b_stride, steps, sums)
        for at, place in zip(outs, sums, strict=True):
            builder.store(builder.load(place), pointer(builder, at, F32.ir), align=4)

    return tile


def _strided(builder: Any, first: Any, stride: Any, count: int) -> list[Any]:
    return [builder.add(first, builder.mul(stride, WORD(i))) for i in range(count)]


def _add_products(builder: Any, ins: list[Any], b: Any, b_stride: Any, steps: Any, sums: list[Any]) -> None:
    """``sums[row] += ins[row][i] * b[i]`` for i in order."""
    with cgutils.for_range(builder, steps) as loop:
        vector = emit_load(builder, builder.add(b, builder.mul(b_stride, loop.index)), FLOAT)
        for at, place in zip(ins, sums, strict=True):
            element = builder.add(at, builder.mul(loop.index, WORD(4)))
            factor = emit_repeat(builder, builder.load(pointer(builder, element, FLOAT), align=4))
            builder.store(emit_fma(builder, factor, vector, builder.load(place)), place)


outer_6, outer_3, outer_1 = (outer_tile(rows) for rows in (6, 3, 1))  # 6 x 16 lanes: 12 AVX2 registers
outer_runs_6, outer_runs_3, outer_runs_1 = (outer_runs_tile(rows) for rows in (6, 3, 1))


@inlined
def outer(rows, a, a_stride, b, b_stride, steps, out, out_stride):
    """:func:`outer_tile` for any number of rows."""
    row = 0
    while rows - row >= 6:
        outer_6(a + row * a_stride, a_stride, b, b_stride, steps, out + row * out_stride, out_stride)
        row += 6
    if rows - row >= 3:
        outer_3(a + row * a_stride, a_stride, b, b_stride, steps, out + row * out_stride, out_stride)
        row += 3
    while row < rows:
        outer_1(a + row * a_stride, a_stride, b, b_stride, steps, out + row * out_stride, out_stride)
        row += 1


@inlined
def outer_runs(rows, a, a_stride, runs, count, offset, b_stride, out, out_stride):
    """:func:`outer_runs_tile` for any number of rows."""
    row = 0
    while rows - row >= 6:
        outer_runs_6(a + row * a_stride, a_stride, runs, count, offset, b_stride, out + row * out_stride, out_stride)
        row += 6
    if rows - row >= 3:
        outer_runs_3(a + row * a_stride, a_stride, runs, count, offset, b_stride, out + row * out_stride, out_stride)
        row += 3
    while row < rows:
        outer_runs_1(a + row * a_stride, a_stride, runs, count, offset, b_stride, out + row * out_stride, out_stride)
        row += 1
