"""The ops before attention, over whatever multiplies their weights: :mod:`integer_qkv`, :mod:`float_qkv`.

For any number of tokens there are stages: tokens are prepared; they are multiplied with all three weights as if these
were one matrix; then heads are normed and turned, and keys and values go to the cache. Until then keys and values wait
at the beginning of the workspace, queries where they will stay.

For one token all of it is one stage: a chunk is a head, and whoever makes it turns and writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llmcore.native.abi import (
    claim,
    dim,
    f64_attr,
    i64_attr,
    inlined,
    load_i32,
    native_kernel,
    scratch,
    specialised,
    tensor,
)
from llmcore_numba.chunks import claims_early, next_run
from llmcore_numba.family import Family
from llmcore_numba.kv_pages import PerKVType
from llmcore_numba.kv_write import tokens_per_chunk, write_head, write_token
from llmcore_numba.operands import names_of
from llmcore_numba.rms_norm import normalise
from llmcore_numba.rope import rotate_heads

POSITIONS = SLOTS = WQ = WK = WV = BQ = BK = BV = NQ = NK = COS = SIN = KV = Q = 0  # operands: each op has its own
T = K = D = G = F = HEAD_DIM = PAGE_SIZE = INTERLEAVED = EPS = WORKSPACE = 0
ELEMENTS = None  # each kernel's own


class Multiplier(NamedTuple):
    """How a kind of weights is multiplied, in strips of rows.

    Attributes:
        rows: of a strip.
        tokens: that share a strip while it is in the cache.
        strip_bytes: ``f(inner)``.
        multiply: ``f(tokens, begin, end, at, weight, bias, y, inner, outer, following, out)``: rows from ``at`` on, up
            to ``outer``, for tokens ``begin`` … ``end`` - 1; ``following`` is the address of the strip that this thread
            comes to next, or 0, ``out`` scratch memory.
        tokens_of: ``f(operands, thread)``: the address of the prepared tokens.
    """

    rows: int
    tokens: int
    strip_bytes: Callable[..., int]
    multiply: Callable[..., None]
    tokens_of: Callable[..., int]


BY = Multiplier(1, 1, min, min, min)  # each kernel's own


def _project(operands, thread, threads):
    rows, inner, wide, narrow = dim(operands, T), dim(operands, K), dim(operands, D), dim(operands, G)
    keys, out, height = tensor(operands, WORKSPACE), scratch(operands, thread), BY.rows
    first_k = (wide + height - 1) // height
    first_v = first_k + (narrow + height - 1) // height
    strips = 2 * first_v - first_k
    units = strips * ((rows + BY.tokens - 1) // BY.tokens)
    unit, end, past = next_run(operands, thread, threads, units, 0)
    early = claims_early(rows, units, threads)
    tokens = BY.tokens_of(operands, thread) if unit < end else 0
    while unit < end:
        index, begin = unit % strips, unit // strips * BY.tokens
        unit += 1
        if unit == end and early:
            unit, end, past = next_run(operands, thread, threads, units, past)
        weight, bias, y, outer, at = tensor(operands, WQ), tensor(operands, BQ), tensor(operands, Q), wide, index
        if index >= first_v:
            weight, bias, y, outer = tensor(operands, WV), tensor(operands, BV), keys + rows * narrow * 4, narrow
            at = index - first_v
        elif index >= first_k:
            weight, bias, y, outer, at = tensor(operands, WK), tensor(operands, BK), keys, narrow, index - first_k
        then = 0
        if unit < end:
            then = unit % strips
            if then >= first_v:
                then = tensor(operands, WV) + (then - first_v) * BY.strip_bytes(inner)
            elif then >= first_k:
                then = tensor(operands, WK) + (then - first_k) * BY.strip_bytes(inner)
            else:
                then = tensor(operands, WQ) + then * BY.strip_bytes(inner)
        BY.multiply(tokens, begin, min(begin + BY.tokens, rows), at * height, weight, bias, y, inner, outer, then, out)
        if unit == end:
            unit, end, past = next_run(operands, thread, threads, units, past)


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
    keys, eps = tensor(operands, WORKSPACE), f64_attr(operands, EPS)
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


def _alone(operands, thread, threads):
    inner, pairs, head_dim = dim(operands, K), dim(operands, F), i64_attr(operands, HEAD_DIM)
    q_heads, kv_heads = dim(operands, D) // head_dim, dim(operands, G) // head_dim
    page_size, interleaved = i64_attr(operands, PAGE_SIZE), i64_attr(operands, INTERLEAVED)
    keys, eps, out = tensor(operands, WORKSPACE), f64_attr(operands, EPS), scratch(operands, thread)
    first_k, first_v = q_heads, q_heads + kv_heads
    heads = (first_v + kv_heads) * dim(operands, T)
    chunk, last, past = next_run(operands, thread, threads, heads, 0)
    tokens = BY.tokens_of(operands, thread) if chunk < last else 0
    while chunk < last:
        weight, bias, norm = tensor(operands, WQ), tensor(operands, BQ), tensor(operands, NQ)
        head, y = chunk, tensor(operands, Q)
        if chunk >= first_v:
            weight, bias, norm = tensor(operands, WV), tensor(operands, BV), 0
            head, y = chunk - first_v, keys + kv_heads * head_dim * 4
        elif chunk >= first_k:
            weight, bias, norm = tensor(operands, WK), tensor(operands, BK), tensor(operands, NK)
            head, y = chunk - first_k, keys
        end = (head + 1) * head_dim
        for row in range(head * head_dim, end, BY.rows):
            BY.multiply(tokens, 0, 1, row, weight, bias, y, inner, end, 0, out)
        x = y + head * head_dim * 4
        if chunk < first_v:
            angle = load_i32(tensor(operands, POSITIONS)) * pairs * 4
            cos, sin = tensor(operands, COS) + angle, tensor(operands, SIN) + angle
            turn(x, norm, cos, sin, head_dim, head_dim, pairs, interleaved, eps)
        if chunk >= first_k:
            slot, values = load_i32(tensor(operands, SLOTS)), chunk >= first_v
            write_head(ELEMENTS, x, values, slot, tensor(operands, KV), kv_heads, head, head_dim, page_size, out)
        chunk += 1
        if chunk == last:
            chunk, last, past = next_run(operands, thread, threads, heads, past)


MultiplierFor = Callable[..., Multiplier]


def project_by(multiplier: MultiplierFor) -> Family:
    """``project.op.name``: the second stage, by ``multiplier(op, name, alone=False)``."""

    def make(op: str, name: str) -> Any:
        parts = {**names_of(op), "BY": multiplier(op, name, alone=False)}
        return native_kernel(specialised(_project, f"{op}_project_{name}", **parts))

    return Family(lambda op: Family(lambda name: make(op, name)))


def alone_by(multiplier: MultiplierFor) -> Family:
    """``alone.op.name.kv_dtype``: all of the op for one token, by ``multiplier(op, name, alone=True)``."""

    def make(op: str, name: str) -> Any:
        parts = {**names_of(op), "BY": multiplier(op, name, alone=True)}
        return PerKVType(specialised(_alone, f"{op}_{name}_alone", **parts))

    return Family(lambda op: Family(lambda name: make(op, name)))


write = Family(lambda op: PerKVType(specialised(_turn_and_write, f"{op}_write", **names_of(op))))
"""``write.op.kv_dtype``: the last stage."""
