"""kv_write and attention over the pages of :mod:`llmcore_numba.kv_layout`.

Attention is one pass over the keys with a running maximum and sum (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et
al. 2022, arXiv:2205.14135): spans of up to 64 positions, always the same ones, so that a query's result does not depend
on how a prompt was divided or on who shares the batch.

A chunk of work is up to 48 query rows of one sequence that read one key head; a query row is one head of one token.
"""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import (
    claim,
    dim,
    f64_attr,
    i64_attr,
    inlined,
    load_f32,
    load_i32,
    load_i64,
    native_kernel,
    scratch,
    store_f32,
    store_i64,
    tensor,
)
from llmcore.native.exponential import exp
from llmcore.native.vector import (
    first_or,
    larger,
    largest,
    load,
    load_first,
    splat,
    store,
    store_first,
    total,
    zeros,
)
from llmcore_numba.operands import operands_of
from llmcore_numba.tile import outer, outer_runs

WRITE_K, WRITE_V, SLOTS, WRITE_KV, WRITE_T, WRITE_G, WRITE_HEAD_DIM, WRITE_PAGE_SIZE = operands_of("kv_write")
Q, STARTS, LENS, KV_LENS, TABLES, KV, Y, _T, D, S, B, HEAD_DIM, KV_HEADS, PAGE_SIZE, SCALE = operands_of("attention")

ROWS = 48  # query rows of a chunk
BLOCKS = 4  # of 16 positions in a span
SPAN = 16 * BLOCKS
NOTHING = np.float32(-np.inf)


@inlined
def padded(size):
    return (size + 15) & ~15


@native_kernel
def kv_write(operands, _thread, _threads):
    tokens, width = dim(operands, WRITE_T), dim(operands, WRITE_G)
    k, v, slots = tensor(operands, WRITE_K), tensor(operands, WRITE_V), tensor(operands, SLOTS)
    kv, head_dim = tensor(operands, WRITE_KV), i64_attr(operands, WRITE_HEAD_DIM)
    page_size = i64_attr(operands, WRITE_PAGE_SIZE)
    pitch = padded(head_dim)
    half = padded(page_size) * pitch  # floats of one head's keys in a page
    whole = head_dim & ~15
    token = claim(operands)
    while token < tokens:
        slot = load_i32(slots + token * 4)
        page, at = slot // page_size, slot % page_size
        for head in range(width // head_dim):
            source = (token * width + head * head_dim) * 4
            keys = kv + (page * (width // head_dim) + head) * 2 * half * 4
            lane = keys + (at // 16 * 16 * pitch + at % 16) * 4
            for i in range(head_dim):
                store_f32(lane + i * 64, load_f32(k + source + i * 4))
            values = keys + (half + at * pitch) * 4
            for i in range(0, whole, 16):
                store(values + i * 4, load(v + source + i * 4))
            if whole < head_dim:
                store(values + whole * 4, load_first(v + source + whole * 4, head_dim - whole))
        token = claim(operands)


@inlined
def find_blocks(blocks, first, kv, table, kv_heads, head, page_size, pitch, length):
    """Describes the blocks of a span that begins with block ``first``, four words each.

    Address of its keys, address of its values, its first position, and how many of its 16 positions there are below
    ``length``: 0 for blocks beyond it.
    """
    in_page = padded(page_size) // 16
    half = padded(page_size) * pitch * 4  # bytes of one head's keys in a page
    for block in range(first, first + BLOCKS):
        page, part = block // in_page, block % in_page
        position = page * page_size + part * 16
        count = max(0, min(16, page_size - part * 16, length - position))
        keys = kv + part * pitch * 64
        if count > 0:  # only then is there a page
            keys += (load_i32(table + page * 4) * kv_heads + head) * 2 * half
        at = blocks + (block - first) * 32
        store_i64(at, keys)
        store_i64(at + 8, keys + half)
        store_i64(at + 16, position)
        store_i64(at + 24, count)


@inlined
def soften(blocks, count, scores, limit, state, out, pitch):
    """Turns one row's scores of a span into weights, and rescales what was summed before.

    Args:
        blocks: the span, see :func:`find_blocks`; ``count`` of its blocks have positions.
        scores: 64 floats.
        limit: positions that the row sees; those from there on weigh nothing.
        state: 32 floats: the running sum in 16 lanes, then the running maximum.
        out: the running weighted sum of values, ``pitch`` floats.
    """
    nothing = splat(NOTHING)
    high = nothing
    for block in range(count):
        seen = min(load_i64(blocks + block * 32 + 24), limit - load_i64(blocks + block * 32 + 16))
        if seen < 16:
            store(scores + block * 64, first_or(load(scores + block * 64), seen, nothing))
        high = larger(high, load(scores + block * 64))
    before = load_f32(state + 64)
    now = max(before, largest(high))
    sums = load(state)
    if now > before:  # the factor would be exactly 1 otherwise
        factor = exp(splat(before - now))
        sums = sums * factor
        for i in range(0, pitch, 16):
            store(out + i * 4, load(out + i * 4) * factor)
        store_f32(state + 64, now)
    for block in range(count):
        weights = exp(load(scores + block * 64) - splat(now))
        store(scores + block * 64, weights)
        sums = sums + weights
    store(state, sums)


@inlined
def begin(queries, out, states, q, rows, row, group, width, head_dim, pitch, scale):
    """Gathers the scaled query rows ``row`` … and clears their results."""
    whole = head_dim & ~15
    factor = splat(scale)
    for r in range(rows):
        source = q + ((row + r) // group * width + (row + r) % group * head_dim) * 4
        for i in range(0, whole, 16):
            store(queries + (r * pitch + i) * 4, load(source + i * 4) * factor)
        if whole < head_dim:
            store(queries + (r * pitch + whole) * 4, load_first(source + whole * 4, head_dim - whole) * factor)
        for i in range(0, pitch, 16):
            store(out + (r * pitch + i) * 4, zeros())
        store(states + r * 128, zeros())
        store_f32(states + r * 128 + 64, NOTHING)


@inlined
def end(out, states, y, rows, row, group, width, head_dim, pitch):
    """Divides each row's sum of values by its sum of weights, and writes it."""
    whole = head_dim & ~15
    for r in range(rows):
        target = y + ((row + r) // group * width + (row + r) % group * head_dim) * 4
        weight = splat(total(load(states + r * 128)))
        for i in range(0, whole, 16):
            store(target + i * 4, load(out + (r * pitch + i) * 4) / weight)
        if whole < head_dim:
            store_first(target + whole * 4, load(out + (r * pitch + whole) * 4) / weight, head_dim - whole)


@inlined
def attend(work, q, y, kv, table, rows, row, group, width, position, head, kv_heads, head_dim, page_size, scale):
    """``rows`` query rows of one sequence and key head, from its query row ``row`` on.

    Args:
        q, y: the sequence's first token, at the first query head that reads this key head; ``width`` floats a token.
        table: the sequence's pages.
        row: token * ``group`` + member, where ``group`` query heads share a key head.
        position: of the sequence's first new token.
    """
    pitch = padded(head_dim)
    queries, out = work, work + ROWS * pitch * 4
    scores = out + ROWS * pitch * 4
    states = scores + ROWS * SPAN * 4
    blocks = states + ROWS * 128
    begin(queries, out, states, q, rows, row, group, width, head_dim, pitch, scale)
    length = position + (row + rows - 1) // group + 1  # positions that the last of these rows sees
    last = (length - 1) // page_size * (padded(page_size) // 16) + (length - 1) % page_size // 16
    for first in range(0, last + 1, BLOCKS):
        find_blocks(blocks, first, kv, table, kv_heads, head, page_size, pitch, length)
        count = min(BLOCKS, last + 1 - first)
        for block in range(count):
            keys = load_i64(blocks + block * 32)
            outer(rows, queries, pitch * 4, keys, 64, head_dim, scores + block * 64, SPAN * 4)
        for r in range(rows):
            limit = position + (row + r) // group + 1
            soften(blocks, count, scores + r * SPAN * 4, limit, states + r * 128, out + r * pitch * 4, pitch)
        for i in range(0, pitch * 4, 64):
            outer_runs(rows, scores, SPAN * 4, blocks + 8, count, i, pitch * 4, out + i, pitch * 4)
    end(out, states, y, rows, row, group, width, head_dim, pitch)


@native_kernel
def attention(operands, thread, _threads):
    width, sequences, table_width = dim(operands, D), dim(operands, S), dim(operands, B)
    q, kv, y, tables = tensor(operands, Q), tensor(operands, KV), tensor(operands, Y), tensor(operands, TABLES)
    starts, lens, kv_lens = tensor(operands, STARTS), tensor(operands, LENS), tensor(operands, KV_LENS)
    head_dim, kv_heads = i64_attr(operands, HEAD_DIM), i64_attr(operands, KV_HEADS)
    page_size, scale = i64_attr(operands, PAGE_SIZE), np.float32(f64_attr(operands, SCALE))
    group = width // head_dim // kv_heads
    work = scratch(operands, thread)
    sequence, before = 0, 0  # chunks of all sequences before this one
    chunk = claim(operands)
    while sequence < sequences:
        count = load_i32(lens + sequence * 4) * group  # query rows to a key head
        pieces = (count + ROWS - 1) // ROWS
        if chunk >= before + pieces * kv_heads:
            before += pieces * kv_heads
            sequence += 1
            continue
        piece, head = pieces - 1 - (chunk - before) // kv_heads, (chunk - before) % kv_heads  # the longest first
        at = (load_i32(starts + sequence * 4) * width + head * group * head_dim) * 4
        position = load_i32(kv_lens + sequence * 4) - load_i32(lens + sequence * 4)
        table = tables + sequence * table_width * 4
        row = piece * ROWS
        rows = min(ROWS, count - row)
        attend(
            work,
            q + at,
            y + at,
            kv,
            table,
            rows,
            row,
            group,
            width,
            position,
            head,
            kv_heads,
            head_dim,
            page_size,
            scale,
        )
        chunk = claim(operands)
