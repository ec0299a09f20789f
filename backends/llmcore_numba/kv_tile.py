"""Register tiles of attention: a few rows of queries, or of weights, times keys or values, sums kept in registers.

Each sum runs through its products in order, so tiles of different shapes give the same bits.

Few rows wait for memory. Their tiles ask for what follows: with keys they ask for the values of the same positions,
with values for the keys of positions to come. Both take the same number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils

from llmcore.native.compiling import inlined, specialised
from llmcore.native.machine import machine
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import F32, FLOAT, INT, LANES, emit_constant, emit_load, emit_prefetch, emit_repeat
from llmcore_numba.float_arithmetic import FACTOR
from llmcore_numba.kv_types import UNIT, KVType, add

BLOCKS = 4  # of 16 positions that are looked at together
ENTRY = 40  # bytes that describe a block: addresses of its keys and values, its first position, positions in use,
VALUES, POSITION, IN_USE, NEXT = 8, 16, 24, 32  # and the address of keys that will be read after the values
SUMS = LANES * 4  # bytes of a row's sums of a vector

ROWS = 6  # of the largest tile
FEW_ROWS = 4  # there is a tile for each number up to this
VECTORS = 4 if machine().level == "avx512" else 1  # of a tile: 32 registers of 16 lanes; AVX2 has 16 of 8


def key_tile(kind: KVType, rows: int) -> Callable[..., None]:
    """``tile(queries, stride, entries, units, out, out_stride)``: ``rows`` queries times the keys of some blocks.

    ``out[row, VECTORS blocks, 16 positions]``. Queries are factors, ``units * UNIT`` elements; strides are in bytes.
    """

    @emits(types.void, *[types.int64] * 6)
    def tile(builder: Any, *values: Any) -> None:
        queries, stride, entries, units, out, out_stride = values
        ins = _strided(builder, queries, stride, rows)
        blocks = [add(builder, entries, ENTRY * i) for i in range(VECTORS)]
        keys = [_word(builder, entry) for entry in blocks]
        to_values = [builder.sub(_word(builder, add(builder, e, VALUES)), k) for e, k in zip(blocks, keys, strict=True)]
        sums = _sums(builder, rows, VECTORS)
        steps = UNIT // kind.span
        with cgutils.for_range(builder, units) as loop:
            places = [add(builder, each, (loop.index, kind.unit_bytes)) for each in keys]
            scales = [kind.scales(builder, unit) for unit in places]
            begin = builder.mul(loop.index, WORD(steps))
            with cgutils.for_range(builder, WORD(steps)) as step:
                if rows <= FEW_ROWS:
                    for unit, distance in zip(places, to_values, strict=True):
                        emit_prefetch(
                            builder, builder.add(kind.key_at(builder, unit, step.index), distance), near=False
                        )
                found = [
                    kind.keys(builder, unit, step.index, scale) for unit, scale in zip(places, scales, strict=True)
                ]
                at = [add(builder, each, (builder.add(begin, step.index), _factors(kind))) for each in ins]
                _add_products(builder, kind, at, found, sums)
        for row, place in zip(sums, _strided(builder, out, out_stride, rows), strict=True):
            for i, value in enumerate(row):
                _store(builder, value, add(builder, place, SUMS * i))

    return tile


def value_tile(kind: KVType, rows: int) -> Callable[..., None]:
    """``tile(weights, stride, entries, count, column, pitch, out, out_stride)``: adds to what is at ``out``.

    ``out[row, VECTORS * 16 elements from column]`` += weights times the values of ``count`` blocks, each of which has
    16 weights, which are factors. Elements beyond ``pitch`` repeat the last 16. Splitting blocks over calls changes
    nothing.
    """

    @emits(types.void, *[types.int64] * 8)
    def tile(builder: Any, *values: Any) -> None:
        weights, stride, entries, count, column, pitch, out, out_stride = values
        ins = _strided(builder, weights, stride, rows)
        columns = [
            _at_most(builder, add(builder, column, LANES * i), add(builder, pitch, -LANES)) for i in range(VECTORS)
        ]
        outs = [[add(builder, each, (at, 4)) for at in columns] for each in _strided(builder, out, out_stride, rows)]
        sums = _sums(builder, rows, VECTORS)
        for place, at in _pairs(sums, outs):
            builder.store(emit_load(builder, at, FLOAT), place)
        with cgutils.for_range(builder, count) as loop:
            entry = add(builder, entries, (loop.index, ENTRY))
            block, positions, after = (_word(builder, add(builder, entry, at)) for at in (VALUES, IN_USE, NEXT))
            to_next = builder.sub(after, block)
            begin = builder.mul(loop.index, WORD(LANES // kind.span))

            def step(index: Any, some: bool = False) -> None:
                if rows <= FEW_ROWS:
                    for at in columns:
                        emit_prefetch(
                            builder, builder.add(kind.value_at(builder, block, index, at, pitch), to_next), near=False
                        )
                found = [kind.values(builder, block, index, at, pitch, some) for at in columns]
                at = [add(builder, each, (builder.add(begin, index), _factors(kind))) for each in ins]
                _add_products(builder, kind, at, found, sums)

            whole = builder.udiv(positions, WORD(kind.span))
            with cgutils.for_range(builder, whole) as span:
                step(span.index)
            if kind.span > 1:
                rest = builder.icmp_signed("<", builder.mul(whole, WORD(kind.span)), positions)
                with builder.if_then(rest, likely=False):
                    step(whole, some=True)
        for place, at in _pairs(sums, outs):
            _store(builder, place, at)

    return tile


def _factors(kind: KVType) -> int:
    """Bytes of a span's factors."""
    return kind.span * kind.factor_bytes


def _word(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, address, WORD), align=8)


def _strided(builder: Any, first: Any, stride: Any, count: int) -> list[Any]:
    return [add(builder, first, (stride, i)) for i in range(count)]


def _at_most(builder: Any, value: Any, bound: Any) -> Any:
    return builder.select(builder.icmp_signed("<", value, bound), value, bound)


def _sums(builder: Any, rows: int, vectors: int) -> list[list[Any]]:
    """A place for each sum, which LLVM makes a register."""
    places = [[cgutils.alloca_once(builder, F32.ir) for _ in range(vectors)] for _ in range(rows)]
    for row in places:
        for place in row:
            builder.store(emit_constant(F32, 0.0), place)
    return places


def _pairs(places: list[list[Any]], addresses: list[list[Any]]) -> list[tuple[Any, Any]]:
    return [pair for row in zip(places, addresses, strict=True) for pair in zip(*row, strict=True)]


def _store(builder: Any, place: Any, address: Any) -> None:
    builder.store(builder.load(place), pointer(builder, address, F32.ir), align=4)


def _add_products(
    builder: Any, kind: KVType, factors: list[Any], found: list[list[Any]], sums: list[list[Any]]
) -> None:
    """Adds to each row's sums: its factors, from an address on, times the operands ``found`` for each vector."""
    arithmetic = kind.arithmetic
    for part in range(arithmetic.factors):
        for address, row in zip(factors, sums, strict=True):
            value = builder.load(pointer(builder, add(builder, address, FACTOR * part), INT), align=4)
            factor = arithmetic.factor(builder, emit_repeat(builder, value))
            for operands, place in zip(found, row, strict=True):
                builder.store(arithmetic.add(builder, factor, operands[part], builder.load(place)), place)


most = few = four = three = two = one = None  # tiles, each kernel's own


def _few_keys(rows, queries, stride, entries, units, out, out_stride):
    if rows == 4:
        four(queries, stride, entries, units, out, out_stride)
    elif rows == 3:
        three(queries, stride, entries, units, out, out_stride)
    elif rows == 2:
        two(queries, stride, entries, units, out, out_stride)
    elif rows == 1:
        one(queries, stride, entries, units, out, out_stride)


def _keys(rows, queries, stride, entries, count, units, out, out_stride):
    """:func:`key_tile` for any number of rows and ``count`` <= ``BLOCKS`` blocks."""
    row = 0
    while row < rows:
        some = ROWS if rows - row >= ROWS else min(FEW_ROWS, rows - row)
        for block in range(0, count, VECTORS):
            at, to = entries + block * ENTRY, out + row * out_stride + block * SUMS
            if some == ROWS:
                most(queries + row * stride, stride, at, units, to, out_stride)
            else:
                few(some, queries + row * stride, stride, at, units, to, out_stride)
        row += some


def _few_values(rows, weights, stride, entries, count, column, pitch, out, out_stride):
    if rows == 4:
        four(weights, stride, entries, count, column, pitch, out, out_stride)
    elif rows == 3:
        three(weights, stride, entries, count, column, pitch, out, out_stride)
    elif rows == 2:
        two(weights, stride, entries, count, column, pitch, out, out_stride)
    elif rows == 1:
        one(weights, stride, entries, count, column, pitch, out, out_stride)


def _values(rows, weights, stride, entries, count, pitch, out, out_stride):
    """:func:`value_tile` for any number of rows and all ``pitch`` elements."""
    row = 0
    while row < rows:
        some = ROWS if rows - row >= ROWS else min(FEW_ROWS, rows - row)
        for column in range(0, pitch, 16 * VECTORS):
            at, to = weights + row * stride, out + row * out_stride
            if some == ROWS:
                most(at, stride, entries, count, column, pitch, to, out_stride)
            else:
                few(some, at, stride, entries, count, column, pitch, to, out_stride)
        row += some


def _for_any_rows(template, few_rows, tile, kind):
    most, *fewer = (tile(kind, rows) for rows in (ROWS, *range(FEW_ROWS, 0, -1)))
    own = dict(zip(("four", "three", "two", "one"), fewer, strict=True))
    few = inlined(specialised(few_rows, f"{few_rows.__name__}_{kind.name}", **own))
    return inlined(specialised(template, f"{template.__name__}_{kind.name}", most=most, few=few))


def times_keys(kind: KVType) -> Callable[..., None]:
    """:func:`key_tile` for any number of rows of one element type, as a part of kernels."""
    return _for_any_rows(_keys, _few_keys, key_tile, kind)


def times_values(kind: KVType) -> Callable[..., None]:
    """:func:`value_tile` for any number of rows of one element type, as a part of kernels."""
    return _for_any_rows(_values, _few_values, value_tile, kind)
