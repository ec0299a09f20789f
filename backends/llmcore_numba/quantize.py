"""Tokens for the integer kernels: int8 in groups of 32, each with its scale.

A token of K elements becomes ``K * 5 / 4`` bytes: K codes, then for each group its scale and its sum (the scale times
the sum of its codes), both float32. The largest element of a group is 127; rounding is to nearest, ties to even. A NaN
or an infinity makes its group's scale NaN, so that it is not lost.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from llmcore import ops
from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, specialised, tensor
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import BYTE, FLOAT, INT, LANES, emit_fold, emit_load, emit_repeat
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.packing import COLUMNS

FLOATS, INTS, BYTES = (ir.VectorType(element, LANES) for element in (FLOAT, INT, BYTE))


def _unary(builder: Any, name: str, vector: Any, result: Any) -> Any:
    kind = ir.FunctionType(result, [vector.type])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, [vector])


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@emits(types.void, types.int64, types.int64, types.int64)
def quantize_group(builder: Any, x: Any, codes: Any, head: Any) -> None:
    """32 float32 at ``x`` to 32 int8 at ``codes``, scale and sum to ``head``."""
    parts = [emit_load(builder, builder.add(x, WORD(64 * i)), FLOAT) for i in range(2)]
    sizes = [_unary(builder, "llvm.fabs.v16f32", part, FLOATS) for part in parts]
    largest = emit_fold(builder, _larger(builder, *sizes), lambda a, b: _larger(builder, a, b))
    nothing = builder.fcmp_ordered("==", largest, FLOAT(0.0))
    inverse = builder.select(nothing, FLOAT(0.0), builder.fdiv(FLOAT(127.0), largest))
    repeated = emit_repeat(builder, inverse)
    ints = [_unary(builder, "llvm.lrint.v16i32.v16f32", builder.fmul(part, repeated), INTS) for part in parts]
    for i, part in enumerate(ints):
        at = pointer(builder, builder.add(codes, WORD(16 * i)), BYTES)
        builder.store(builder.trunc(part, BYTES), at, align=1)
    flaw = emit_fold(builder, builder.fmul(builder.fadd(*parts), ir.Constant(FLOATS, [0.0] * LANES)), builder.fadd)
    scale = builder.fadd(builder.fdiv(largest, FLOAT(127.0)), flaw)
    total = builder.sitofp(emit_fold(builder, builder.add(*ints), builder.add), FLOAT)
    for i, value in enumerate((scale, builder.fmul(scale, total))):
        builder.store(value, pointer(builder, builder.add(head, WORD(4 * i)), FLOAT), align=4)


@inlined
def token_bytes(inner):
    """Bytes of a token of ``inner`` elements."""
    return inner + inner // 4


@inlined
def quantize_token(x, out, inner):
    """``inner`` float32 at ``x`` to a quantized token at ``out``."""
    for group in range(inner // COLUMNS):
        quantize_group(x + group * 4 * COLUMNS, out + group * COLUMNS, out + inner + group * 8)


X = M = K = WORKSPACE = 0  # operands: each op has its own
CHUNK = 4096  # elements, at least one token


def _quantize(operands, _thread, _threads):
    tokens, inner = dim(operands, M), dim(operands, K)
    x, out = tensor(operands, X), tensor(operands, WORKSPACE)
    chunk = max(1, CHUNK // inner)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            quantize_token(x + token * inner * 4, out + token * token_bytes(inner), inner)
        first = claim(operands) * chunk


class PerOp:
    """``kernels.linear`` quantizes the input ``x: act[M, K]`` of ``linear`` into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in ops.OPS:
            raise AttributeError(op)
        spec, numbers = ops.get(op), operands_of(op)
        names = [*(param.name for param in spec.params), *spec.dims, *spec.attrs]
        found = {letter: numbers[names.index(name)] for letter, name in {"X": "x", "M": "M", "K": "K"}.items()}
        kernel = native_kernel(specialised(_quantize, f"quantize_{op}", **found, WORKSPACE=workspace_of(op)))
        setattr(self, op, kernel)
        return kernel


quantize = PerOp()
