"""Tokens for the integer kernels: int8 in groups of 32, each with its scale.

A token of K elements is its K codes, then for each group its scale and its sum (the scale times the sum of its codes),
both float32. The largest element of a group is 127; rounding is to nearest, ties to even. Where that is too coarse
there are two planes of codes: K times ``high``, then K times ``low``, for the code ``128 * high + low``; the largest is
127 * 128. A NaN or an infinity makes its group's scale NaN, so that it is not lost.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from llmcore import ops
from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, specialised, tensor
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import BYTE, FLOAT, INT, LANES, emit_fold, emit_load, emit_repeat
from llmcore_numba.integer import PLANE_BITS
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.packing import COLUMNS, PLANES

FLOATS, INTS, BYTES = (ir.VectorType(element, LANES) for element in (FLOAT, INT, BYTE))


def _unary(builder: Any, name: str, vector: Any, result: Any) -> Any:
    kind = ir.FunctionType(result, [vector.type])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, [vector])


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _quantize_group(builder: Any, x: Any, planes: list[Any], head: Any) -> None:
    """32 float32 at ``x`` to 32 int8 at each of ``planes``, scale and sum to ``head``."""
    largest_code = 127.0 * (1 << PLANE_BITS * (len(planes) - 1))
    parts = [emit_load(builder, builder.add(x, WORD(64 * i)), FLOAT) for i in range(2)]
    sizes = [_unary(builder, "llvm.fabs.v16f32", part, FLOATS) for part in parts]
    largest = emit_fold(builder, _larger(builder, *sizes), lambda a, b: _larger(builder, a, b))
    nothing = builder.fcmp_ordered("==", largest, FLOAT(0.0))
    inverse = builder.select(nothing, FLOAT(0.0), builder.fdiv(FLOAT(largest_code), largest))
    repeated = emit_repeat(builder, inverse)
    ints = [_unary(builder, "llvm.lrint.v16i32.v16f32", builder.fmul(part, repeated), INTS) for part in parts]
    bits = ir.Constant(INTS, [PLANE_BITS] * LANES)
    half = ir.Constant(INTS, [1 << PLANE_BITS - 1] * LANES)
    rests = ints
    for plane in planes[:-1]:
        high = [builder.ashr(builder.add(part, half), bits) for part in ints]
        rests = [builder.sub(part, builder.shl(top, bits)) for part, top in zip(ints, high, strict=True)]
        _store_codes(builder, high, plane)
    _store_codes(builder, rests, planes[-1])
    flaw = emit_fold(builder, builder.fmul(builder.fadd(*parts), ir.Constant(FLOATS, [0.0] * LANES)), builder.fadd)
    scale = builder.fadd(builder.fdiv(largest, FLOAT(largest_code)), flaw)
    total = builder.sitofp(emit_fold(builder, builder.add(*ints), builder.add), FLOAT)
    for i, value in enumerate((scale, builder.fmul(scale, total))):
        builder.store(value, pointer(builder, builder.add(head, WORD(4 * i)), FLOAT), align=4)


def _store_codes(builder: Any, ints: list[Any], address: Any) -> None:
    for i, part in enumerate(ints):
        at = pointer(builder, builder.add(address, WORD(16 * i)), BYTES)
        builder.store(builder.trunc(part, BYTES), at, align=1)


@emits(types.void, types.int64, types.int64, types.int64)
def quantize_to_8(builder: Any, x: Any, codes: Any, head: Any) -> None:
    """32 float32 at ``x`` to one plane at ``codes``, scale and sum to ``head``."""
    _quantize_group(builder, x, [codes], head)


@emits(types.void, types.int64, types.int64, types.int64, types.int64)
def quantize_to_15(builder: Any, x: Any, high: Any, low: Any, head: Any) -> None:
    """32 float32 at ``x`` to two planes, scale and sum to ``head``."""
    _quantize_group(builder, x, [high, low], head)


@inlined
def token_bytes(inner, planes):
    """Bytes of a token of ``inner`` elements."""
    return inner * planes + inner // 4


@inlined
def quantize_token(x, out, inner, planes):
    """``inner`` float32 at ``x`` to a quantized token at ``out``."""
    heads = out + inner * planes
    for group in range(inner // COLUMNS):
        source, codes = x + group * 4 * COLUMNS, out + group * COLUMNS
        if planes == 2:
            quantize_to_15(source, codes, codes + inner, heads + group * 8)
        else:
            quantize_to_8(source, codes, heads + group * 8)


X = M = K = WORKSPACE = 0  # operands: each op has its own
PLANE_COUNT = 1
CHUNK = 4096  # elements, at least one token


def _quantize(operands, _thread, _threads):
    tokens, inner = dim(operands, M), dim(operands, K)
    x, out = tensor(operands, X), tensor(operands, WORKSPACE)
    chunk = max(1, CHUNK // inner)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            quantize_token(x + token * inner * 4, out + token * token_bytes(inner, PLANE_COUNT), inner, PLANE_COUNT)
        first = claim(operands) * chunk


class PerOp:
    """``kernels.linear`` quantizes the input ``x: act[M, K]`` of ``linear`` into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in PLANES:
            raise AttributeError(op)
        spec, numbers = ops.get(op), operands_of(op)
        names = [*(param.name for param in spec.params), *spec.dims, *spec.attrs]
        found = {letter: numbers[names.index(name)] for letter, name in {"X": "x", "M": "M", "K": "K"}.items()}
        kernel = native_kernel(
            specialised(_quantize, f"quantize_{op}", **found, WORKSPACE=workspace_of(op), PLANE_COUNT=PLANES[op])
        )
        setattr(self, op, kernel)
        return kernel


quantize = PerOp()
