"""Fused ops: one pass where their parts would need two, and logits that are never kept.

``linear_add`` is in :mod:`llmcore_numba.linear`.
"""

from __future__ import annotations

from llmcore.native.abi import (
    claim,
    dim,
    f64_attr,
    fetch_add,
    inlined,
    load_i64,
    native_kernel,
    scratch,
    tensor,
)
from llmcore.native.vector import load, load_first, store, store_first
from llmcore_numba.best import best_of_chunks, clear, note_best
from llmcore_numba.elementwise import gated
from llmcore_numba.operands import operands_of
from llmcore_numba.rms_norm import CHUNK, normalise
from llmcore_numba.scratch import SHARED, SHARED_BYTES
from llmcore_numba.unpack import FORMATS
from llmcore_numba.weights import (
    ROWS,
    TOKEN_CHUNK,
    PerFormat,
    few_tokens,
    one_token,
    results_of,
    row_bytes,
    rows_per_chunk,
    store_up_to,
    unpack_rows,
)

FORMAT = FORMATS["Q8_0"]  # each kernel has its own

A, B, NORM, TOTAL, NORMED, ADD_M, ADD_D, ADD_C, EPS = operands_of("add_rms_norm")
GATE_X, GATE, UP, GATED, GATE_M, GATE_K, GATE_F = operands_of("gate_up_swiglu")
X, WEIGHT, IDS, M, K, N = operands_of("classifier_argmax")


@inlined
def add_row(a, b, y, size):
    """``y = a + b``; ``y`` may be either."""
    whole = size & ~15
    for i in range(0, whole, 16):
        store(y + i * 4, load(a + i * 4) + load(b + i * 4))
    if whole < size:
        at, rest = whole * 4, size - whole
        store_first(y + at, load_first(a + at, rest) + load_first(b + at, rest), rest)


@native_kernel
def add_rms_norm(operands, _thread, _threads):
    rows, width, size = dim(operands, ADD_M), dim(operands, ADD_D), dim(operands, ADD_C)
    a, b, weight = tensor(operands, A), tensor(operands, B), tensor(operands, NORM)
    sums, y, eps = tensor(operands, TOTAL), tensor(operands, NORMED), f64_attr(operands, EPS)
    chunk = max(1, CHUNK // width)
    first = claim(operands) * chunk
    while first < rows:
        for row in range(first, min(first + chunk, rows)):
            group, end = row * width, (row + 1) * width
            add_row(a + group * 4, b + group * 4, sums + group * 4, width)
            while group < end:
                normalise(sums + group * 4, weight, y + group * 4, size, eps)
                group += size
        first = claim(operands) * chunk


@PerFormat
def gate_up_swiglu(operands, thread, _threads):
    tokens, inner, outer = dim(operands, GATE_M), dim(operands, GATE_K), dim(operands, GATE_F)
    x, gate, up, y = (
        tensor(operands, GATE_X),
        tensor(operands, GATE),
        tensor(operands, UP),
        tensor(operands, GATED),
    )
    work, gates = scratch(operands, thread), results_of(operands, thread)
    ups = gates + 16 * ROWS * 4
    size = row_bytes(FORMAT, inner)
    block = rows_per_chunk(2 * inner)
    row_chunks, token_chunks = (outer + block - 1) // block, (tokens + TOKEN_CHUNK - 1) // TOKEN_CHUNK
    chunk = claim(operands)
    while chunk < row_chunks * token_chunks:
        first, token = chunk % row_chunks * block, chunk // row_chunks * TOKEN_CHUNK
        count, end = min(block, outer - first), min(token + TOKEN_CHUNK, tokens)
        if tokens == 1:
            one_token(FORMAT, x, gate + first * size, size, count, inner, gates)
            one_token(FORMAT, x, up + first * size, size, count, inner, ups)
            store_up_to(y + first * 4, gated(load(gates), load(ups)), count)
        else:
            up_rows = work + block * inner * 4
            unpack_rows(FORMAT, gate, first, count, inner, work)
            unpack_rows(FORMAT, up, first, count, inner, up_rows)
            while token < end:
                few_tokens(x, token, end, work, count, inner, gates)
                done = few_tokens(x, token, end, up_rows, count, inner, ups)
                for i in range(done):
                    at = y + ((token + i) * outer + first) * 4
                    store_up_to(at, gated(load(gates + i * 64), load(ups + i * 64)), count)
                token += done
        chunk = claim(operands)


@PerFormat
def classifier_argmax(operands, thread, _threads):
    tokens, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    x, weight = tensor(operands, X), tensor(operands, WEIGHT)
    work, out, slots = scratch(operands, thread), results_of(operands, thread), scratch(operands, 0) + SHARED
    size = row_bytes(FORMAT, inner)
    block = rows_per_chunk(inner)
    blocks, most_chunks = (outer + block - 1) // block, max(1, SHARED_BYTES // (8 * max(1, tokens)))
    rows = block * max(4, (blocks + most_chunks - 1) // most_chunks)  # of a chunk: so many that the slots fit
    chunks = (outer + rows - 1) // rows if tokens else 0
    chunk = claim(operands)
    while chunk < chunks:
        mine = slots + chunk * tokens * 8
        for token in range(tokens):
            clear(mine + token * 8, chunk * rows)
        for first in range(chunk * rows, min((chunk + 1) * rows, outer), block):
            count = min(block, outer - first)
            if tokens == 1:
                one_token(FORMAT, x, weight + first * size, size, count, inner, out)
                note_best(out, first, count, mine)
            else:
                unpack_rows(FORMAT, weight, first, count, inner, work)
                token = 0
                while token < tokens:
                    done = few_tokens(x, token, tokens, work, count, inner, out)
                    for i in range(done):
                        note_best(out + i * 64, first, count, mine + (token + i) * 8)
                    token += done
        if fetch_add(load_i64(operands) + 8, 1) == chunks - 1:  # this was the last chunk to be done
            best_of_chunks(slots, chunks, tokens, tensor(operands, IDS))
        chunk = claim(operands)
