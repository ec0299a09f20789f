"""Tokens for the kernels that multiply pairs of bfloat16: rounded to nearest, ties to even; the odd one gets a zero."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore import ops
from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, specialised, tensor
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import BYTE, F32, LANES, load, load_first
from llmcore_numba.float_arithmetic import BFLOAT
from llmcore_numba.float_packing import FLOAT_OPS
from llmcore_numba.operands import operands_of, workspace_of

X = M = K = WORKSPACE = 0  # operands: each op has its own
CHUNK = 4096  # elements, at least one token


@emits(types.void, types.int64, F32, types.int64)
def store_rounded(builder: Any, address: Any, vector: Any, count: Any) -> None:
    """Writes the first ``count`` <= 16 lanes as bfloat16."""
    place = cgutils.alloca_once(builder, ir.VectorType(BFLOAT, LANES))
    builder.store(builder.fptrunc(vector, ir.VectorType(BFLOAT, LANES)), place)
    target, source = pointer(builder, address, BYTE), builder.bitcast(place, BYTE.as_pointer())
    cgutils.raw_memcpy(builder, target, source, builder.mul(count, WORD(2)), 1, align=1)


@inlined
def round_token(x, out, inner):
    """``inner`` float32 at ``x`` to bfloat16 at ``out``, an even number of them."""
    whole = inner & ~15
    for i in range(0, whole, 16):
        store_rounded(out + i * 2, load(x + i * 4), 16)
    if whole < inner:
        rest = inner - whole
        store_rounded(out + whole * 2, load_first(x + whole * 4, rest), rest + 1 & ~1)


def _round(operands, _thread, _threads):
    tokens, inner = dim(operands, M), dim(operands, K)
    x, out = tensor(operands, X), tensor(operands, WORKSPACE)
    chunk = max(1, CHUNK // inner)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            round_token(x + token * inner * 4, out + token * (inner + 1 & ~1) * 2, inner)
        first = claim(operands) * chunk


class PerOp:
    """``kernels.linear`` rounds the input ``x: act[M, K]`` of ``linear`` into the workspace."""

    def __getattr__(self, op: str) -> NativeFunction:
        if op not in FLOAT_OPS:
            raise AttributeError(op)
        spec = ops.get(op)
        numbers = operands_of(op)
        names = [*(param.name for param in spec.params), *spec.dims, *spec.attrs]
        found = {letter: numbers[names.index(name)] for letter, name in {"X": "x", "M": "M", "K": "K"}.items()}
        kernel = native_kernel(specialised(_round, f"round_{op}", **found, WORKSPACE=workspace_of(op)))
        setattr(self, op, kernel)
        return kernel


rounded = PerOp()
