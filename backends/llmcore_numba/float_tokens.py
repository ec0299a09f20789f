"""Tokens of the float kernels: as they are, normed, or rounded to pairs of bfloat16.

Rounding is to nearest, ties to even; the odd one of a token gets a zero beside it. Ops whose tokens are neither normed
nor rounded read them where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmcore.native.abi import NativeFunction, claim, dim, inlined, native_kernel, scratch, specialised
from llmcore.native.memory import WORD, emits, pointer
from llmcore.native.vector import BYTE, F32, LANES, load, load_first
from llmcore_numba.family import Family
from llmcore_numba.float_arithmetic import ARITHMETIC, BFLOAT
from llmcore_numba.float_packing import FLOAT_OPS
from llmcore_numba.inputs import begins_with_norm, constants_for, input_of, part, prepared
from llmcore_numba.scratch import OWN_TOKEN

T = K = 0  # operands: each op has its own
PAIRS = False  # each arithmetic has its own
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


@inlined
def token_bytes(pairs, inner):
    """Bytes of a prepared token."""
    return (inner + 1 & ~1) * 2 if pairs else inner * 4


@inlined
def prepare_token(operands, token, out, rows, inner):
    """Writes a token to ``out``, rounded or normed; ``rows`` is memory for one that is both."""
    if PAIRS:
        round_token(input_of(operands, token, token, rows) + token * inner * 4, out, inner)
    else:
        input_of(operands, token, token, out)


def _prepare(operands, thread, _threads):
    tokens, inner = dim(operands, T), dim(operands, K)
    out, work, size = prepared(operands), scratch(operands, thread), token_bytes(PAIRS, inner)
    chunk = max(1, CHUNK // inner)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            prepare_token(operands, token, out + token * size, work, inner)
        first = claim(operands) * chunk


def _as_it_lies(operands, _thread):
    return input_of(operands, 0, 0, 0)


def _shared(operands, _thread):
    return prepared(operands)


def _own(operands, thread):
    inner, out = dim(operands, K), scratch(operands, thread) + OWN_TOKEN
    prepare_token(operands, 0, out, out + (token_bytes(PAIRS, inner) + 63 & ~63), inner)
    return out


def _constants(op: str, name: str) -> dict[str, Any]:
    constants = {**constants_for(op), "PAIRS": ARITHMETIC[name].columns > 1}
    return {**constants, "prepare_token": part(prepare_token.py_func, f"{op}_{name}", constants)}


def tokens_for(op: str, name: str, *, alone: bool) -> Callable[[int, int], int]:
    """``tokens_of(operands, thread)``: the address of the op's tokens as arithmetic ``name`` multiplies them.

    ``alone``: there is one token, and nobody has prepared it yet.
    """
    constants = _constants(op, name)
    if not constants["PAIRS"] and not begins_with_norm(op):
        return part(_as_it_lies, f"{op}_{name}", constants)
    return part(_own if alone else _shared, f"{op}_{name}", constants)


def _stage(op: str, name: str) -> NativeFunction:
    if op not in FLOAT_OPS or name not in ARITHMETIC:
        raise AttributeError(f"{op}.{name}")
    return native_kernel(specialised(_prepare, f"prepare_{op}_{name}", **_constants(op, name)))


prepares = Family(lambda op: Family(lambda name: _stage(op, name)))
"""``prepares.linear.BF16_pairs`` writes the tokens of ``linear`` to the workspace."""
