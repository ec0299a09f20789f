"""linear, and linear with the residual added, in float32: one kernel for every quantized weight format.

A chunk is up to 16 weight rows and 192 tokens. ``linear.Q4_1`` is the kernel for Q4_1 weights.
"""

from __future__ import annotations

from llmcore.native.abi import claim, dim, inlined, scratch, tensor
from llmcore.native.vector import load
from llmcore_numba.operands import operands_of
from llmcore_numba.unpack import FORMATS
from llmcore_numba.weights import (
    TOKEN_CHUNK,
    PerFormat,
    few_tokens,
    load_up_to,
    one_token,
    results_of,
    row_bytes,
    rows_per_chunk,
    store_up_to,
    unpack_rows,
)

FORMAT = FORMATS["Q8_0"]  # each kernel has its own

X, WEIGHT, BIAS, Y, M, K, N = operands_of("linear")
ADD_X, ADD_RESIDUAL, ADD_WEIGHT, ADD_BIAS, ADD_Y, ADD_M, ADD_K, ADD_N = operands_of("linear_add")


@inlined
def finish(sums, bias, residual, y, at, first, count):
    """One token's results of a chunk: ``y = residual + (sums + bias)``."""
    value = load(sums)
    if bias:
        value = value + load_up_to(bias + first * 4, count)
    if residual:
        value = load_up_to(residual + at, count) + value
    store_up_to(y + at, value, count)


@inlined
def multiply(fmt, operands, thread, x, weight, bias, residual, y, tokens, inner, outer):
    """``y = residual + x @ weight.T + bias``; ``bias`` and ``residual`` may be 0, ``y`` may be ``residual``."""
    work, out = scratch(operands, thread), results_of(operands, thread)
    block = rows_per_chunk(inner)
    row_chunks, token_chunks = (outer + block - 1) // block, (tokens + TOKEN_CHUNK - 1) // TOKEN_CHUNK
    chunk = claim(operands)
    while chunk < row_chunks * token_chunks:
        first, token = chunk % row_chunks * block, chunk // row_chunks * TOKEN_CHUNK
        count, end = min(block, outer - first), min(token + TOKEN_CHUNK, tokens)
        if tokens == 1:
            size = row_bytes(fmt, inner)
            one_token(fmt, x, weight + first * size, size, count, inner, out)
            finish(out, bias, residual, y, first * 4, first, count)
        else:
            unpack_rows(fmt, weight, first, count, inner, work)
            while token < end:
                done = few_tokens(x, token, end, work, count, inner, out)
                for i in range(done):
                    finish(out + i * 64, bias, residual, y, ((token + i) * outer + first) * 4, first, count)
                token += done
        chunk = claim(operands)


@PerFormat
def linear(operands, thread, _threads):
    tokens, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    x, weight, bias = tensor(operands, X), tensor(operands, WEIGHT), tensor(operands, BIAS)
    multiply(FORMAT, operands, thread, x, weight, bias, 0, tensor(operands, Y), tokens, inner, outer)


@PerFormat
def linear_add(operands, thread, _threads):
    tokens, inner, outer = dim(operands, ADD_M), dim(operands, ADD_K), dim(operands, ADD_N)
    x, weight, bias = tensor(operands, ADD_X), tensor(operands, ADD_WEIGHT), tensor(operands, ADD_BIAS)
    residual, y = tensor(operands, ADD_RESIDUAL), tensor(operands, ADD_Y)
    multiply(FORMAT, operands, thread, x, weight, bias, residual, y, tokens, inner, outer)
