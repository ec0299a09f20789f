"""qkv_rope_kv_write on packed integer weights, with or without the norm before it.

For any number of tokens there are three stages. Tokens are quantized (:mod:`llmcore_numba.tokens`); they are multiplied
with all three weights as if these were one matrix; then heads are normed and turned, and keys and values go to the
cache. Keys and values wait for that behind the quantized tokens in the workspace, queries where they will stay.

For one token all of it is one stage: a chunk is a head, and whoever makes it turns and writes it.
"""

from __future__ import annotations

from llmcore.native.abi import (
    claim,
    dim,
    f64_attr,
    i64_attr,
    inlined,
    load_i32,
    scratch,
    specialised,
    tensor,
)
from llmcore_numba.integer_linear import (
    NBYTES,
    STRIP,
    TOKEN_CHUNK,
    PerPacking,
    chunks_of,
    multiply_strip,
    parts_for,
    step_of,
    strip,
    strips_per_chunk,
    tokens_of,
)
from llmcore_numba.kv_pages import PerKVType
from llmcore_numba.kv_write import tokens_per_chunk, write_head, write_token
from llmcore_numba.operands import names_of
from llmcore_numba.packing import ALONE, COLUMNS, PACKINGS
from llmcore_numba.quantize import quantized_bytes
from llmcore_numba.rms_norm import normalise
from llmcore_numba.rope import rotate_heads

X = POSITIONS = SLOTS = WQ = WK = WV = BQ = BK = BV = NQ = NK = COS = SIN = KV = Q = 0  # operands: each op has its own
T = K = D = G = F = HEAD_DIM = PAGE_SIZE = INTERLEAVED = EPS = WORKSPACE = 0
ELEMENTS = None  # each kernel's own


@inlined
def keys_of(workspace, tokens, inner):
    """Where the keys wait; the values are behind them."""
    return workspace + quantized_bytes(tokens, inner)


def _project(operands, thread, threads):
    rows, inner, wide, narrow = dim(operands, T), dim(operands, K), dim(operands, D), dim(operands, G)
    out, keys = scratch(operands, thread), keys_of(tensor(operands, WORKSPACE), rows, inner)
    first_k = (wide + STRIP - 1) // STRIP
    first_v = first_k + (narrow + STRIP - 1) // STRIP
    strips = 2 * first_v - first_k
    some, step = strips_per_chunk(rows, strips, 2 * (inner // COLUMNS) * NBYTES), step_of(rows, threads)
    across = (strips + some - 1) // some
    tokens, chunk = tokens_of(operands, thread), claim(operands)
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
def turn(x, norm, cos, sin, width, head_dim, pairs, interleaved, eps):
    """Norms the heads of a token in place, if there is a ``norm``, and turns them."""
    head = 0
    while norm and head < width * 4:
        normalise(x + head, norm, x + head, head_dim, eps)
        head += head_dim * 4
    rotate_heads(x, x, cos, sin, width, head_dim, pairs, interleaved)


def _turn_and_write(operands, thread, _threads):
    tokens, wide, narrow, pairs = dim(operands, T), dim(operands, D), dim(operands, G), dim(operands, F)
    head_dim, interleaved = i64_attr(operands, HEAD_DIM), i64_attr(operands, INTERLEAVED)
    keys, eps = keys_of(tensor(operands, WORKSPACE), tokens, dim(operands, K)), f64_attr(operands, EPS)
    slots, kv = tensor(operands, SLOTS), tensor(operands, KV)
    norm_q, norm_k = tensor(operands, NQ), tensor(operands, NK)
    page_size, work, values = i64_attr(operands, PAGE_SIZE), scratch(operands, thread), tokens * narrow * 4
    chunk = tokens_per_chunk(tokens)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            q, k = tensor(operands, Q) + token * wide * 4, keys + token * narrow * 4
            angle = load_i32(tensor(operands, POSITIONS) + token * 4) * pairs * 4
            cos, sin = tensor(operands, COS) + angle, tensor(operands, SIN) + angle
            turn(q, norm_q, cos, sin, wide, head_dim, pairs, interleaved, eps)
            turn(k, norm_k, cos, sin, narrow, head_dim, pairs, interleaved, eps)
            slot = load_i32(slots + token * 4)
            write_token(ELEMENTS, k, k + values, slot, kv, narrow, head_dim, page_size, work)
        first = claim(operands) * chunk


def _alone(operands, thread, _threads):
    inner, pairs, head_dim = dim(operands, K), dim(operands, F), i64_attr(operands, HEAD_DIM)
    q_heads, kv_heads = dim(operands, D) // head_dim, dim(operands, G) // head_dim
    page_size, interleaved = i64_attr(operands, PAGE_SIZE), i64_attr(operands, INTERLEAVED)
    keys, eps, out = tensor(operands, WORKSPACE), f64_attr(operands, EPS), scratch(operands, thread)
    first_k, first_v = q_heads, q_heads + kv_heads
    heads, chunk = (first_v + kv_heads) * dim(operands, T), claim(operands)
    tokens = tokens_of(operands, thread) if chunk < heads else 0
    while chunk < heads:
        weight, bias, norm = tensor(operands, WQ), tensor(operands, BQ), tensor(operands, NQ)
        head, y = chunk, tensor(operands, Q)
        if chunk >= first_v:
            weight, bias, norm = tensor(operands, WV), tensor(operands, BV), 0
            head, y = chunk - first_v, keys + kv_heads * head_dim * 4
        elif chunk >= first_k:
            weight, bias, norm = tensor(operands, WK), tensor(operands, BK), tensor(operands, NK)
            head, y = chunk - first_k, keys
        end = (head + 1) * head_dim
        for row in range(head * head_dim, end, STRIP):
            multiply_strip(strip, NBYTES, tokens, 0, 1, row, weight, bias, 0, y, inner, end, 1, out)
        x = y + head * head_dim * 4
        if chunk < first_v:
            angle = load_i32(tensor(operands, POSITIONS)) * pairs * 4
            cos, sin = tensor(operands, COS) + angle, tensor(operands, SIN) + angle
            turn(x, norm, cos, sin, head_dim, head_dim, pairs, interleaved, eps)
        if chunk >= first_k:
            slot, values = load_i32(tensor(operands, SLOTS)), chunk >= first_v
            write_head(ELEMENTS, x, values, slot, tensor(operands, KV), kv_heads, head, head_dim, page_size, out)
        chunk = claim(operands)


class Stages:
    """``kernels.qkv_rope_kv_write``: a stage's kernels for that op, as ``make(op)`` has them."""

    def __init__(self, make) -> None:
        self.make = make

    def __getattr__(self, op: str):
        made = self.make(op)
        setattr(self, op, made)
        return made


class Alone:
    """``kernels.int4.bfloat16``: one kernel for every packing and element type of the cache."""

    def __init__(self, op: str) -> None:
        self.op = op

    def __getattr__(self, name: str):
        packing = next((packing for packing in PACKINGS.values() if packing.name == name), None)
        if packing is None:
            raise AttributeError(f"{self.op} has no kernel for {name}")
        parts = {**names_of(self.op), **parts_for(self.op, packing, alone=True)}
        kernels = PerKVType(specialised(_alone, f"{self.op}_{name}{ALONE}", **parts))
        setattr(self, name, kernels)
        return kernels


qkv_rope_kv_write = PerKVType(specialised(_turn_and_write, "qkv_rope_kv_write", **names_of("qkv_rope_kv_write")))
rms_norm_qkv_rope_kv_write = PerKVType(
    specialised(_turn_and_write, "rms_norm_qkv_rope_kv_write", **names_of("rms_norm_qkv_rope_kv_write"))
)
project = Stages(lambda op: PerPacking(op, _project))
alone = Stages(Alone)
