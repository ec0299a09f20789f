"""Tokens for the integer kernels: int8 in groups of 32, each with its scale, and a list of outliers.

The largest element of a group that is not an outlier is 127 steps; rounding is to nearest, ties to even.
:mod:`llmcore_numba.packing` has the layout. A NaN or an infinity makes its token's scales NaN, so that it is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.abi import (
    inlined,
    load_f32,
    specialised,
    store_f32,
    store_i32,
)
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import (
    BYTE,
    F32,
    FLOAT,
    INT,
    LANES,
    emit_fold,
    emit_load,
    emit_repeat,
    load,
    total,
    zeros,
)
from llmcore_numba import packing
from llmcore_numba.packing import (
    CODES,
    COLUMNS,
    ENTRY,
    FOR_TOKEN,
    LESS,
    LISTED,
    OUTLIER,
    PANEL,
    RECORD,
    SCALE,
    TOTAL,
)

FLOATS, INTS, BYTES = (ir.VectorType(element, LANES) for element in (FLOAT, INT, BYTE))


def _unary(builder: Any, name: str, vector: Any, result: Any) -> Any:
    kind = ir.FunctionType(result, [vector.type])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, [vector])


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@emits(F32, F32)
def size_of(builder: Any, vector: Any) -> Any:
    """The absolute value of each lane."""
    return _unary(builder, "llvm.fabs.v16f32", vector, FLOATS)


def _group_writer(panel: int) -> Callable[..., None]:
    """``quantize_group(x, which, record, entries, limit, flaw)``: 32 float32 at ``x`` to a group of one of ``panel``.

    Elements beyond ``limit`` are left out, and listed from ``entries`` on; returns where the next one goes. ``which``
    is the group's first column and its token, as they are listed. ``flaw`` is 0, or NaN for a token with a NaN or an
    infinity.
    """

    @emits(types.int64, *[types.int64] * 4, types.float32, types.float32)
    def quantize_group(builder: Any, *values: Any) -> Any:
        x, which, record, entries, limit, flaw = values
        following = cgutils.alloca_once(builder, WORD)
        builder.store(entries, following)

        def put(value: Any, part: int) -> None:
            at = builder.add(record, WORD(part * panel))
            builder.store(value, pointer(builder, at, value.type), align=1)

        places = [cgutils.alloca_once(builder, FLOATS) for _ in range(2)]
        for i, place in enumerate(places):
            builder.store(emit_load(builder, builder.add(x, WORD(64 * i)), FLOAT), place)
        largest = cgutils.alloca_once(builder, FLOAT)
        builder.store(_largest(builder, places), largest)
        with builder.if_then(builder.fcmp_ordered(">", builder.load(largest), limit), likely=False):
            bound, first = emit_repeat(builder, limit), builder.trunc(which, INT)
            for i, place in enumerate(places):
                elements = builder.load(place)
                beyond = builder.fcmp_ordered(">", _size(builder, elements), bound)
                here = builder.add(first, INT(LANES * i << FOR_TOKEN))
                _list(builder, builder.add(x, WORD(64 * i)), here, beyond, following)
                builder.store(builder.select(beyond, ir.Constant(FLOATS, [0.0] * LANES), elements), place)
            builder.store(_largest(builder, places), largest)
        most, size = FLOAT(127.0), builder.load(largest)
        nothing = builder.fcmp_ordered("==", size, FLOAT(0.0))
        inverse = builder.select(nothing, FLOAT(0.0), builder.fdiv(most, size))
        codes = _rounded(builder, [builder.load(place) for place in places], inverse)
        for i, part in enumerate(codes):
            quads = builder.bitcast(builder.trunc(part, BYTES), ir.VectorType(INT, 4))
            if panel == 1:
                put(quads, CODES + 16 * i)
            else:
                for quad in range(4):
                    put(builder.extract_element(quads, INT(quad)), CODES + (4 * i + quad) * 4)
        count = emit_fold(builder, builder.add(*codes), builder.add)
        scale = builder.fadd(builder.fdiv(size, most), flaw)
        put(scale, SCALE)
        put(builder.fmul(scale, builder.sitofp(count, FLOAT)), TOTAL)
        put(builder.neg(count), LESS)
        return builder.load(following)

    return quantize_group


def _size(builder: Any, vector: Any) -> Any:
    return _unary(builder, "llvm.fabs.v16f32", vector, FLOATS)


def _largest(builder: Any, places: list[Any]) -> Any:
    sizes = [_size(builder, builder.load(place)) for place in places]
    return emit_fold(builder, _larger(builder, *sizes), lambda a, b: _larger(builder, a, b))


def _list(builder: Any, x: Any, which: Any, lanes: Any, following: Any) -> None:
    """Lists those of the 16 elements at ``x`` whose lane is set; ``following`` is the place of where they go."""
    left = cgutils.alloca_once(builder, INT)
    builder.store(builder.zext(builder.bitcast(lanes, ir.IntType(LANES)), INT), left)
    with cgutils.for_range(builder, WORD(LANES)) as lane:
        mask = builder.load(left)
        with builder.if_then(builder.trunc(mask, ir.IntType(1))):
            entry = builder.load(following)
            column = builder.shl(builder.trunc(lane.index, INT), INT(FOR_TOKEN))
            builder.store(builder.add(which, column), pointer(builder, entry, INT), align=4)
            value = builder.load(pointer(builder, builder.add(x, builder.mul(lane.index, WORD(4))), FLOAT), align=4)
            builder.store(value, pointer(builder, builder.add(entry, WORD(4)), FLOAT), align=4)
            builder.store(builder.add(entry, WORD(ENTRY)), following)
        builder.store(builder.lshr(mask, INT(1)), left)


def _rounded(builder: Any, parts: list[Any], factor: Any) -> list[Any]:
    repeated = emit_repeat(builder, factor)
    products = (builder.fmul(values, repeated) for values in parts)
    return [_unary(builder, "llvm.lrint.v16i32.v16f32", values, INTS) for values in products]


quantize_group_alone, quantize_group_in_panel = _group_writer(1), _group_writer(PANEL)


list_head = inlined(packing.list_head)
panel_bytes = inlined(specialised(packing.panel_bytes, "panel_bytes", list_head=list_head))
quantized_bytes = inlined(specialised(packing.quantized_bytes, "quantized_bytes", panel_bytes=panel_bytes))


OUTLIER_MEANS = np.float32(8.0)  # each op has its own


def _limits(x, limits, inner):
    """What makes an element of the token at ``x`` an outlier, and its flaw, to ``limits``."""
    sizes = zeros()
    for i in range(0, inner, 16):
        sizes = sizes + size_of(load(x + i * 4))
    size = total(sizes)
    store_f32(limits, size * OUTLIER_MEANS / np.float32(inner))
    store_f32(limits + 4, size * np.float32(0))


def limits_for(op: str) -> Callable[..., None]:
    """``limits_of(x, limits, inner)`` with the bound that tokens of ``op`` have."""
    return inlined(specialised(_limits, f"limits_{op}", OUTLIER_MEANS=np.float32(OUTLIER[op])))


@inlined
def quantize_panel(limits_of, x, out, first, last, inner, panel, work):
    """Tokens from ``first`` on to the panel at ``out``; those behind ``last`` repeat it. ``work`` is scratch memory."""
    outliers = out + panel * (inner // COLUMNS) * RECORD
    begin = outliers + list_head(panel)
    entries = begin
    store_i32(outliers, 0)
    for listed in range(0, panel, LISTED):
        some = min(LISTED, panel)
        for token in range(listed, listed + some):
            limits_of(x + min(first + token, last) * inner * 4, work + token * 8, inner)
        for column in range(0, inner, COLUMNS):
            record = out + column // COLUMNS * RECORD * panel
            for token in range(listed, listed + some):
                source, which = x + (min(first + token, last) * inner + column) * 4, (column << FOR_TOKEN) + token
                limit, flaw = load_f32(work + token * 8), load_f32(work + token * 8 + 4)
                if panel == 1:
                    entries = quantize_group_alone(source, which, record, entries, limit, flaw)
                else:
                    entries = quantize_group_in_panel(source, which, record + token * 4, entries, limit, flaw)
        store_i32(outliers + (listed // LISTED + 1) * 4, (entries - begin) // ENTRY)
