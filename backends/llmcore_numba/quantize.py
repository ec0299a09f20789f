"""Tokens for the integer kernels: int8 in groups of 32, each with its scale; 15 bits where a group has an outlier.

The largest element of a group is 127 steps, or 127 * 128; rounding is to nearest, ties to even.
:mod:`llmcore_numba.packing` has the layout. A NaN or an infinity makes its group's scale NaN, so that it is not lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from llmcore import ops
from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, specialised, tensor
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import BYTE, F32, FLOAT, INT, LANES, emit_fold, emit_load, emit_repeat, load, total, zeros
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


@emits(types.void, types.int64, types.int64, types.int64, types.float32)
def quantize_group(builder: Any, x: Any, record: Any, panel: Any, limit: Any) -> None:
    """32 float32 at ``x`` to the group at ``record``, in a panel of ``panel`` tokens; beyond ``limit`` in 15 bits."""

    def part(offset: Any, kind: Any) -> Any:
        return pointer(builder, builder.add(record, builder.mul(panel, WORD(offset))), kind)

    parts = [emit_load(builder, builder.add(x, WORD(64 * i)), FLOAT) for i in range(2)]
    sizes = [_unary(builder, "llvm.fabs.v16f32", values, FLOATS) for values in parts]
    largest = emit_fold(builder, _larger(builder, *sizes), lambda a, b: _larger(builder, a, b))
    wide = builder.fcmp_ordered(">", largest, limit)
    shift = builder.select(wide, INT(PLANE_BITS), INT(0))
    most = builder.select(wide, FLOAT(127.0 * (1 << PLANE_BITS)), FLOAT(127.0))
    inverse = builder.select(builder.fcmp_ordered("==", largest, FLOAT(0.0)), FLOAT(0.0), builder.fdiv(most, largest))
    repeated = emit_repeat(builder, inverse)
    ints = [_unary(builder, "llvm.lrint.v16i32.v16f32", builder.fmul(values, repeated), INTS) for values in parts]
    half = emit_repeat(builder, builder.select(wide, INT(1 << PLANE_BITS - 1), INT(0)))
    shifts = emit_repeat(builder, shift)
    high = [builder.ashr(builder.add(values, half), shifts) for values in ints]
    low = [builder.sub(values, builder.shl(top, shifts)) for values, top in zip(ints, high, strict=True)]
    for codes, place, less in ((high, HIGH, LESS), (low, LOW, LESS_LOW)):
        for i, values in enumerate(codes):
            quads = builder.bitcast(builder.trunc(values, BYTES), ir.VectorType(INT, 4))
            for quad in range(4):
                target = part(place + (4 * i + quad) * 4, INT)
                builder.store(builder.extract_element(quads, INT(quad)), target, align=1)
        count = emit_fold(builder, builder.add(*codes), builder.add)
        builder.store(builder.neg(count), part(less, INT), align=1)
    flaw = emit_fold(builder, builder.fmul(builder.fadd(*parts), ir.Constant(FLOATS, [0.0] * LANES)), builder.fadd)
    scale = builder.fadd(builder.fdiv(largest, most), flaw)
    count = builder.sitofp(emit_fold(builder, builder.add(*ints), builder.add), FLOAT)
    builder.store(shift, part(SHIFT, INT), align=1)
    builder.store(scale, part(SCALE, FLOAT), align=1)
    builder.store(builder.fmul(scale, count), part(TOTAL, FLOAT), align=1)


@inlined
def token_bytes(inner):
    """Bytes of a quantized token of ``inner`` elements."""
    return inner // COLUMNS * RECORD


def _quantize_token(x, out, inner, panel):
    """``inner`` float32 at ``x`` to the token at ``out``, one of a panel of ``panel``."""
    sizes = zeros()
    for i in range(0, inner, 16):
        sizes = sizes + size_of(load(x + i * 4))
    limit = total(sizes) * OUTLIER_MEANS / np.float32(inner)
    for group in range(inner // COLUMNS):
        quantize_group(x + group * 4 * COLUMNS, out + group * RECORD * panel, panel, limit)


X = M = K = WORKSPACE = 0  # operands: each op has its own
OUTLIER_MEANS = np.float32(8.0)
quantize_token = inlined(_quantize_token)


def _quantize(operands, _thread, _threads):
    tokens, inner = dim(operands, M), dim(operands, K)
    x, out = tensor(operands, X), tensor(operands, WORKSPACE)
    panel = PANEL if tokens > 1 else 1
    first = claim(operands) * panel
    while first < tokens:
        for token in range(panel):
            source = x + min(first + token, tokens - 1) * inner * 4
            quantize_token(source, out + first * token_bytes(inner) + token * 4, inner, panel)
        first = claim(operands) * panel


class PerOp:
    """``kernels.linear`` quantizes the input ``x: act[M, K]`` of ``linear`` into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in OUTLIER:
            raise AttributeError(op)
        spec, numbers = ops.get(op), operands_of(op)
        names = [*(param.name for param in spec.params), *spec.dims, *spec.attrs]
        found = {letter: numbers[names.index(name)] for letter, name in {"X": "x", "M": "M", "K": "K"}.items()}
        token = inlined(specialised(_quantize_token, "quantize_token", OUTLIER_MEANS=np.float32(OUTLIER[op])))
        constants = {**found, "WORKSPACE": workspace_of(op), "quantize_token": token}
        kernel = native_kernel(specialised(_quantize, f"quantize_{op}", **constants))
        setattr(self, op, kernel)
        return kernel


quantize = PerOp()
