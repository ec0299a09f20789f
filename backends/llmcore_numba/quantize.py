"""Tokens for the integer kernels: int8 in groups of 32, each with its scale; 15 bits where a group has an outlier.

The largest element of a group is 127 steps, or 127 * 128; rounding is to nearest, ties to even.
:mod:`llmcore_numba.packing` has the layout. A NaN or an infinity makes its token's scales NaN, so that it is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from llmcore import ops
from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, specialised, tensor
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
    store,
    total,
    zeros,
)
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.packing import (
    COLUMNS,
    HIGH,
    LESS,
    LESS_LOW,
    LOW,
    OUTLIER,
    PANEL,
    PLANE_BITS,
    RECORD,
    SCALE,
    SHIFT,
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
    """``quantize_group(x, record, limit, flaw)``: 32 float32 at ``x`` to a group of one of ``panel`` tokens.

    Beyond ``limit`` in 15 bits; else ``LOW``, which holds zeros, is left alone. ``flaw`` is 0, or NaN for a token
    with a NaN or an infinity.
    """

    @emits(types.void, types.int64, types.int64, types.float32, types.float32)
    def quantize_group(builder: Any, x: Any, record: Any, limit: Any, flaw: Any) -> None:
        def put(value: Any, part: int) -> None:
            at = builder.add(record, WORD(part * panel))
            builder.store(value, pointer(builder, at, value.type), align=1)

        def put_plane(codes: list[Any], place: int, less: int) -> Any:
            """Returns the sum of the codes."""
            for i, values in enumerate(codes):
                quads = builder.bitcast(builder.trunc(values, BYTES), ir.VectorType(INT, 4))
                if panel == 1:
                    put(quads, place + 16 * i)
                else:
                    for quad in range(4):
                        put(builder.extract_element(quads, INT(quad)), place + (4 * i + quad) * 4)
            count = emit_fold(builder, builder.add(*codes), builder.add)
            put(builder.neg(count), less)
            return count

        def put_heads(most: Any, shift: Any, count: Any) -> None:
            scale = builder.fadd(builder.fdiv(largest, most), flaw)
            put(scale, SCALE)
            put(builder.fmul(scale, builder.sitofp(count, FLOAT)), TOTAL)
            put(shift, SHIFT)

        parts = [emit_load(builder, builder.add(x, WORD(64 * i)), FLOAT) for i in range(2)]
        sizes = [_unary(builder, "llvm.fabs.v16f32", values, FLOATS) for values in parts]
        largest = emit_fold(builder, _larger(builder, *sizes), lambda a, b: _larger(builder, a, b))
        with builder.if_else(builder.fcmp_ordered(">", largest, limit), likely=False) as (wide, narrow):
            with wide:
                most = FLOAT(127.0 * (1 << PLANE_BITS))
                ints = _rounded(builder, parts, builder.fdiv(most, largest))
                bits, half = (ir.Constant(INTS, [n] * LANES) for n in (PLANE_BITS, 1 << PLANE_BITS - 1))
                high = [builder.ashr(builder.add(values, half), bits) for values in ints]
                low = [builder.sub(all_, builder.shl(top, bits)) for all_, top in zip(ints, high, strict=True)]
                count = builder.shl(put_plane(high, HIGH, LESS), INT(PLANE_BITS))
                put_heads(most, INT(PLANE_BITS), builder.add(count, put_plane(low, LOW, LESS_LOW)))
            with narrow:
                most, nothing = FLOAT(127.0), builder.fcmp_ordered("==", largest, FLOAT(0.0))
                inverse = builder.select(nothing, FLOAT(0.0), builder.fdiv(most, largest))
                put_heads(most, INT(0), put_plane(_rounded(builder, parts, inverse), HIGH, LESS))

    return quantize_group


def _rounded(builder: Any, parts: list[Any], factor: Any) -> list[Any]:
    repeated = emit_repeat(builder, factor)
    products = (builder.fmul(values, repeated) for values in parts)
    return [_unary(builder, "llvm.lrint.v16i32.v16f32", values, INTS) for values in products]


quantize_group_alone, quantize_group_in_panel = _group_writer(1), _group_writer(PANEL)


@inlined
def token_bytes(inner):
    """Bytes of a quantized token of ``inner`` elements."""
    return inner // COLUMNS * RECORD


@inlined
def clear_low(out, groups, panel):
    """Writes zeros to ``LOW`` and ``LESS_LOW`` of a panel's groups: as many bytes as a vector of floats at a time."""
    nothing = zeros()
    for group in range(groups):
        first = out + (group * RECORD + LOW) * panel
        last = first + (RECORD - LOW) * panel - 64
        for at in range(first, last, 64):
            store(at, nothing)
        store(last, nothing)


def _quantize_token(x, out, inner, panel):
    """``inner`` float32 at ``x`` to the token at ``out``, one of a panel of ``panel``."""
    sizes = zeros()
    for i in range(0, inner, 16):
        sizes = sizes + size_of(load(x + i * 4))
    size = total(sizes)
    limit, flaw = size * OUTLIER_MEANS / np.float32(inner), size * np.float32(0)
    for group in range(inner // COLUMNS):
        source, record = x + group * 4 * COLUMNS, out + group * RECORD * panel
        if panel == 1:
            quantize_group_alone(source, record, limit, flaw)
        else:
            quantize_group_in_panel(source, record, limit, flaw)


X = M = K = WORKSPACE = 0  # operands: each op has its own
OUTLIER_MEANS = np.float32(8.0)
quantize_token = inlined(_quantize_token)


def _quantize(operands, _thread, _threads):
    tokens, inner = dim(operands, M), dim(operands, K)
    x, out = tensor(operands, X), tensor(operands, WORKSPACE)
    panel = PANEL if tokens > 1 else 1
    first = claim(operands) * panel
    while first < tokens:
        clear_low(out + first * token_bytes(inner), inner // COLUMNS, panel)
        for token in range(panel):
            source = x + min(first + token, tokens - 1) * inner * 4
            quantize_token(source, out + first * token_bytes(inner) + token * 4, inner, panel)
        first = claim(operands) * panel


class PerOp:
    """``kernels.linear`` quantizes the first input of ``linear``, ``x: act[M, K]``, into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in OUTLIER:
            raise AttributeError(op)
        spec, numbers = ops.get(op), operands_of(op)
        names = [*(param.name for param in spec.params), *spec.dims, *spec.attrs]
        wanted = {"X": "x", "M": spec.params[0].dims[0], "K": "K"}  # tokens are M or T
        found = {letter: numbers[names.index(name)] for letter, name in wanted.items()}
        token = inlined(specialised(_quantize_token, "quantize_token", OUTLIER_MEANS=np.float32(OUTLIER[op])))
        constants = {**found, "WORKSPACE": workspace_of(op), "quantize_token": token}
        kernel = native_kernel(specialised(_quantize, f"quantize_{op}", **constants))
        setattr(self, op, kernel)
        return kernel


quantize = PerOp()
