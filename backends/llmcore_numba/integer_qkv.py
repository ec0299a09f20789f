"""qkv_rope_kv_write on packed integer weights, in three stages.

Tokens are quantized (:mod:`llmcore_numba.quantize`); they are multiplied with all three weights as if these were one
matrix; then heads are normed and turned, and keys and values go to the cache. Keys and values wait for that behind the
quantized tokens in the workspace, queries where they will stay.
"""

from __future__ import annotations

from llmcore.native.abi import claim, dim, f64_attr, i64_attr, inlined, load_i32, scratch, tensor
from llmcore_numba.integer_linear import (
    NBYTES,
    STRIP,
    TOKEN_CHUNK,
    PerPacking,
    chunks_of,
    multiply_strip,
    step_of,
    strip,
    strips_per_chunk,
)
from llmcore_numba.kv_pages import PerKVType
from llmcore_numba.kv_write import tokens_per_chunk, write_token
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.packing import COLUMNS
from llmcore_numba.quantize import quantized_bytes
from llmcore_numba.rms_norm import normalise
from llmcore_numba.rope import rotate_heads

OP = "qkv_rope_kv_write"
X, POSITIONS, SLOTS, WQ, WK, WV, BQ, BK, BV, NQ, NK, COS, SIN, KV, Q, *_DIMS_AND_ATTRS = operands_of(OP)
T, K, D, G, _C, _P, F, HEAD_DIM, PAGE_SIZE, INTERLEAVED, EPS = _DIMS_AND_ATTRS
TOKENS = workspace_of(OP)
ELEMENTS = None  # each kernel's own


@inlined
def keys_of(operands):
    """Where the keys wait; the values are behind them."""
    return tensor(operands, TOKENS) + quantized_bytes(dim(operands, T), dim(operands, K))


@PerPacking
def project(operands, thread, threads):
    rows, inner, wide, narrow = dim(operands, T), dim(operands, K), dim(operands, D), dim(operands, G)
    tokens, out = tensor(operands, TOKENS), scratch(operands, thread)
    keys = keys_of(operands)
    first_k = (wide + STRIP - 1) // STRIP
    first_v = first_k + (narrow + STRIP - 1) // STRIP
    strips = 2 * first_v - first_k
    some, step = strips_per_chunk(rows, strips, 2 * (inner // COLUMNS) * NBYTES), step_of(rows, threads)
    across = (strips + some - 1) // some
    chunk = claim(operands)
    while chunk < chunks_of(rows, strips, some):
        first, begin = chunk % across * some, chunk // across * TOKEN_CHUNK
        for index in range(first, min(first + some, strips)):
            weight, bias, y, outer, at = tensor(operands, WQ), tensor(operands, BQ), tensor(operands, Q), wide, index
            if index >= first_v:
                weight, bias, y, outer = tensor(operands, WV), tensor(operands, BV), keys + rows * narrow * 4, narrow
                at = index - first_v
            elif index >= first_k:
                weight, bias, y, outer, at = tensor(operands, WK), tensor(operands, BK), keys, narrow, index - first_k
            end = min(begin + TOKEN_CHUNK, rows)
            multiply_strip(strip, NBYTES, tokens, begin, end, at * STRIP, weight, bias, 0, y, inner, outer, step, out)
        chunk = claim(operands)


@inlined
def norm_heads(x, weight, width, head_dim, eps):
    """Norms each head of a token in place."""
    head = 0
    while head < width * 4:
        normalise(x + head, weight, x + head, head_dim, eps)
        head += head_dim * 4


@PerKVType
def qkv_rope_kv_write(operands, thread, _threads):
    tokens, wide, narrow, pairs = dim(operands, T), dim(operands, D), dim(operands, G), dim(operands, F)
    head_dim, interleaved = i64_attr(operands, HEAD_DIM), i64_attr(operands, INTERLEAVED)
    keys, eps = keys_of(operands), f64_attr(operands, EPS)
    cos, sin, slots, kv = tensor(operands, COS), tensor(operands, SIN), tensor(operands, SLOTS), tensor(operands, KV)
    page_size, work, values = i64_attr(operands, PAGE_SIZE), scratch(operands, thread), tokens * narrow * 4
    chunk = tokens_per_chunk(tokens)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            q, k = tensor(operands, Q) + token * wide * 4, keys + token * narrow * 4
            if tensor(operands, NQ):
                norm_heads(q, tensor(operands, NQ), wide, head_dim, eps)
                norm_heads(k, tensor(operands, NK), narrow, head_dim, eps)
            angle = load_i32(tensor(operands, POSITIONS) + token * 4) * pairs * 4
            rotate_heads(q, q, cos + angle, sin + angle, wide, head_dim, pairs, interleaved)
            rotate_heads(k, k, cos + angle, sin + angle, narrow, head_dim, pairs, interleaved)
            slot = load_i32(slots + token * 4)
            write_token(ELEMENTS, k, k + values, slot, kv, narrow, head_dim, page_size, work)
        first = claim(operands) * chunk
