"""Register tiles of attention: a few rows of queries, or of weights, times keys or values, sums kept in registers.

Each sum runs through its products in order, so tiles of different shapes give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils

from llmcore.native.compiling import inlined, specialised
from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import F32, FLOAT, LANES, emit_constant, emit_fma, emit_load, emit_repeat
from llmcore_numba.kv_types import UNIT, KVType, add

BLOCKS = 4  # of 16 positions that are looked at together
ENTRY = 32  # bytes that describe a block: addresses of its keys and values, its first position, positions in use
VALUES, POSITION, IN_USE = 8, 16, 24

MOST_ROWS = 12 if machine().level == "avx512" else 6  # 32 registers of 16 lanes; AVX2 has 16 of 8
FEW_ROWS = 4  # there is a tile for each number up to this


def key_tile(kind: KVType, rows: int) -> Callable[..., None]:
    """``tile(queries, stride, block, units, out, out_stride)``: ``rows`` queries times the keys of a block.

    ``out[row, 16 positions]``. The queries are ``units * UNIT`` float32; strides are in bytes.
    """

    @emits(types.void, *[types.int64] * 6)
    def tile(builder: Any, *values: Any) -> None:
        queries, stride, block, units, out, out_stride = values
        ins = _strided(builder, queries, stride, rows)
        keys = _word(builder, block)
        sums = [emit_constant(F32, 0.0)] * rows
        places = _places(builder, sums)
        with cgutils.for_range(builder, units) as loop:
            unit = add(builder, keys, (loop.index, kind.unit_bytes))
            scales = kind.scales(builder, unit)
            begin = builder.mul(loop.index, WORD(UNIT))
            with cgutils.for_range(builder, WORD(UNIT)) as step:
                vector = kind.key(builder, unit, step.index, scales)
                element = builder.add(begin, step.index)
                _add_products(builder, [add(builder, each, (element, 4)) for each in ins], vector, places)
        _store(builder, places, _strided(builder, out, out_stride, rows))

    return tile


def value_tile(kind: KVType, rows: int) -> Callable[..., None]:
    """``tile(weights, stride, blocks, count, column, pitch, out, out_stride)``: adds to what is at ``out``.

    ``out[row, 16 elements from column]`` += weights times the values of ``count`` blocks, each of which has 16 weights.
    Splitting the blocks over calls changes nothing.
    """

    @emits(types.void, *[types.int64] * 8)
    def tile(builder: Any, *values: Any) -> None:
        weights, stride, blocks, count, column, pitch, out, out_stride = values
        ins = _strided(builder, weights, stride, rows)
        outs = [add(builder, each, (column, 4)) for each in _strided(builder, out, out_stride, rows)]
        places = _places(builder, [emit_load(builder, at, FLOAT) for at in outs])
        with cgutils.for_range(builder, count) as loop:
            entry = add(builder, blocks, (loop.index, ENTRY))
            block, steps = (_word(builder, add(builder, entry, at)) for at in (VALUES, IN_USE))
            with cgutils.for_range(builder, steps) as step:
                vector = kind.value(builder, block, step.index, column, pitch)
                at = [add(builder, each, (loop.index, LANES * 4), (step.index, 4)) for each in ins]
                _add_products(builder, at, vector, places)
        _store(builder, places, outs)

    return tile


def _word(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, address, WORD), align=8)


def _strided(builder: Any, first: Any, stride: Any, count: int) -> list[Any]:
    return [add(builder, first, (stride, i)) for i in range(count)]


def _places(builder: Any, sums: list[Any]) -> list[Any]:
    """A place for each sum, which LLVM makes a register."""
    places = [cgutils.alloca_once(builder, F32.ir) for _ in sums]
    for value, place in zip(sums, places, strict=True):
        builder.store(value, place)
    return places


def _store(builder: Any, places: list[Any], outs: list[Any]) -> None:
    for at, place in zip(outs, places, strict=True):
        builder.store(builder.load(place), pointer(builder, at, F32.ir), align=4)


def _add_products(builder: Any, factors: list[Any], vector: Any, places: list[Any]) -> None:
    for at, place in zip(factors, places, strict=True):
        factor = emit_repeat(builder, builder.load(pointer(builder, at, FLOAT), align=4))
        builder.store(emit_fma(builder, factor, vector, builder.load(place)), place)


most = few = four = three = two = one = None  # tiles, each kernel's own


def _few_keys(rows, queries, stride, block, units, out, out_stride):
    if rows == 4:
        four(queries, stride, block, units, out, out_stride)
    elif rows == 3:
        three(queries, stride, block, units, out, out_stride)
    elif rows == 2:
        two(queries, stride, block, units, out, out_stride)
    elif rows == 1:
        one(queries, stride, block, units, out, out_stride)


def _keys(rows, queries, stride, blocks, count, units, out, out_stride):
    """:func:`key_tile` for any number of rows and ``count`` <= ``BLOCKS`` blocks."""
    row = 0
    while rows - row >= MOST_ROWS:
        for block in range(count):
            at, to = blocks + block * ENTRY, out + row * out_stride + block * 64
            most(queries + row * stride, stride, at, units, to, out_stride)
        row += MOST_ROWS
    while row < rows:
        some = min(FEW_ROWS, rows - row)
        for block in range(count):
            at, to = blocks + block * ENTRY, out + row * out_stride + block * 64
            few(some, queries + row * stride, stride, at, units, to, out_stride)
        row += some


def _few_values(rows, weights, stride, block, column, pitch, out, out_stride):
    if rows == 4:
        four(weights, stride, block, 1, column, pitch, out, out_stride)
    elif rows == 3:
        three(weights, stride, block, 1, column, pitch, out, out_stride)
    elif rows == 2:
        two(weights, stride, block, 1, column, pitch, out, out_stride)
    elif rows == 1:
        one(weights, stride, block, 1, column, pitch, out, out_stride)


def _values(rows, weights, stride, blocks, count, pitch, out, out_stride):
    """:func:`value_tile` for any number of rows and all ``pitch`` elements."""
    row = 0
    while rows - row >= MOST_ROWS:
        for column in range(0, pitch, 16):
            most(weights + row * stride, stride, blocks, count, column, pitch, out + row * out_stride, out_stride)
        row += MOST_ROWS
    while row < rows:
        some = min(FEW_ROWS, rows - row)
        for block in range(count):
            at, to = weights + row * stride + block * 64, out + row * out_stride
            for column in range(0, pitch, 16):
                few(some, at, stride, blocks + block * ENTRY, column, pitch, to, out_stride)
        row += some


def _for_any_rows(template, few_rows, tile, kind):
    most, *fewer = (tile(kind, rows) for rows in (MOST_ROWS, *range(FEW_ROWS, 0, -1)))
    own = dict(zip(("four", "three", "two", "one"), fewer, strict=True))
    few = inlined(specialised(few_rows, f"{few_rows.__name__}_{kind.name}", **own))
    return inlined(specialised(template, f"{template.__name__}_{kind.name}", most=most, few=few))


def times_keys(kind: KVType) -> Callable[..., None]:
    """:func:`key_tile` for any number of rows of one element type, as a part of kernels."""
    return _for_any_rows(_keys, _few_keys, key_tile, kind)


def times_values(kind: KVType) -> Callable[..., None]:
    """:func:`value_tile` for any number of rows of one element type, as a part of kernels."""
    return _for_any_rows(_values, _few_values, value_tile, kind)
