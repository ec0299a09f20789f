"""attention over the pages of :mod:`llmcore_numba.kv_layout`.

Attention is one pass over the keys with a running maximum and sum (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et
al. 2022, arXiv:2205.14135), in spans of 64 positions. Every 256 positions are a part that is summed by itself, and the
parts are merged in order. With pages of one size, or any multiples of 16, spans and parts are always the same ones, so
that a query's result does not depend on how a prompt was divided, on who shares the batch, or on whether the parts of a
long sequence went to several threads.

A query row is one head of one token. A chunk of work is up to 48 query rows of one sequence that read one key head, or
one part of what a sequence's single new token reads of it.

What is summed of a row is a *record*: the sum of weights in 16 lanes, the score that they are relative to, the weighted
sum of values. That score is the largest so far, or some less: as in FlashAttention-4, sums are not rescaled for little.
Scores are logarithms to base 2: queries are scaled for that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llmcore.native.abi import (
    claim,
    dim,
    f64_attr,
    fetch_add,
    i64_attr,
    inlined,
    load_f32,
    load_i32,
    load_i64,
    scratch,
    store_f32,
    tensor,
)
from llmcore.native.exponential import exp2
from llmcore.native.vector import (
    any_above,
    first_or,
    fma,
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
from llmcore_numba.kv_pages import Head, PerKVType, blocks_in, blocks_of, find_blocks, padded, position_of
from llmcore_numba.kv_tile import BLOCKS, ENTRY, IN_USE, POSITION
from llmcore_numba.kv_types import UNIT
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.scratch import PART_BLOCKS, RECORD_HEAD, ROWS

Q, STARTS, LENS, KV_LENS, TABLES, KV, Y, _T, D, S, B, HEAD_DIM, KV_HEADS, PAGE_SIZE, SCALE = operands_of("attention")
PARTIAL = workspace_of("attention")

SCORES = 16 * BLOCKS * 4  # bytes of a row's scores in a span
HIGHEST = 64  # where a record has the score that its weights are relative to
SLACK = np.float32(8)  # weights are no more than 2**8
NOTHING = np.float32(-np.inf)
LOG2_E = 1 / math.log(2)


ELEMENTS = None  # each kernel's own


class Rows(NamedTuple):
    """Query rows ``first`` … of one sequence and key head: row / ``group`` is the token, the rest the query head.

    Attributes:
        q, y: the sequence's first new token, at the first query head that reads this key head; a token has ``width``
            floats.
        position: of that token.
    """

    q: int
    y: int
    first: int
    count: int
    group: int
    width: int
    position: int
    head_dim: int


@inlined
def record_bytes(head_dim):
    return RECORD_HEAD + padded(head_dim) * 4


@inlined
def seen_by(rows, r):
    """How many positions row ``r`` of ``rows`` sees."""
    return rows.position + (rows.first + r) // rows.group + 1


@inlined
def higher(high, record, pitch):
    """What the record's weights are relative to: a score that no lane of ``high`` is more than ``SLACK`` above.

    Where one is it becomes the largest of them, and what was summed before is rescaled.
    """
    highest = load_f32(record + HIGHEST)
    if any_above(high, splat(highest + SLACK)):
        now = largest(high)
        factor = exp2(splat(highest - now))
        store(record, load(record) * factor)
        for i in range(RECORD_HEAD, RECORD_HEAD + pitch * 4, 64):
            store(record + i, load(record + i) * factor)
        store_f32(record + HIGHEST, now)
        highest = now
    return highest


@inlined
def soften_all(elements, scores, record, pitch):
    """:func:`soften` for a row that sees all of a span: 64 positions."""
    first, second = load(scores), load(scores + 64)
    third, fourth = load(scores + 128), load(scores + 192)
    highest = splat(higher(larger(larger(larger(first, second), third), fourth), record, pitch))
    step = 16 * elements.factor_bytes
    sums = load(record) + elements.put(scores, exp2(first - highest))
    sums = sums + elements.put(scores + step, exp2(second - highest))
    sums = sums + elements.put(scores + 2 * step, exp2(third - highest))
    store(record, sums + elements.put(scores + 3 * step, exp2(fourth - highest)))


@inlined
def soften(elements, entries, count, scores, limit, record, pitch):
    """Turns one row's scores of a span into weights, in their place, and rescales what was summed before.

    Args:
        entries: the span, see :func:`find_blocks`; ``count`` of its blocks have positions.
        scores: 64 floats, logarithms to base 2.
        limit: positions that the row sees; those from there on weigh nothing.
    """
    if limit <= load_i64(entries + POSITION):  # nothing of it
        for block in range(count):
            elements.put(scores + block * 16 * elements.factor_bytes, zeros())
        return
    nothing = splat(NOTHING)
    high = nothing
    for block in range(count):
        entry = entries + block * ENTRY
        seen = min(load_i64(entry + IN_USE), limit - load_i64(entry + POSITION))
        if seen < 16:
            store(scores + block * 64, first_or(load(scores + block * 64), seen, nothing))
        high = larger(high, load(scores + block * 64))
    highest = splat(higher(high, record, pitch))
    sums = load(record)
    for block in range(count):
        weights = exp2(load(scores + block * 64) - highest)
        sums = sums + elements.put(scores + block * 16 * elements.factor_bytes, weights)
    store(record, sums)


@inlined
def clear(rows, records):
    size = record_bytes(rows.head_dim)
    for r in range(rows.count):
        for i in range(0, size, 64):
            store(records + r * size + i, zeros())
        store_f32(records + r * size + HIGHEST, NOTHING)


@inlined
def merge(record, other, size):
    """Adds a record of later positions to one of earlier ones."""
    before, now = load_f32(record + HIGHEST), load_f32(other + HIGHEST)
    if now > before:
        factor = exp2(splat(before - now))
        store_f32(record + HIGHEST, now)
        store(record, fma(load(record), factor, load(other)))
        for i in range(RECORD_HEAD, size, 64):
            store(record + i, fma(load(record + i), factor, load(other + i)))
    else:
        factor = exp2(splat(now - before))
        store(record, fma(load(other), factor, load(record)))
        for i in range(RECORD_HEAD, size, 64):
            store(record + i, fma(load(other + i), factor, load(record + i)))


@inlined
def finish(record, y, head_dim):
    """Divides the weighted sum of values by the sum of weights, and writes it."""
    whole, out = head_dim & ~15, record + RECORD_HEAD
    weight = splat(total(load(record)))
    for i in range(0, whole, 16):
        store(y + i * 4, load(out + i * 4) / weight)
    if whole < head_dim:
        store_first(y + whole * 4, load(out + whole * 4) / weight, head_dim - whole)


@inlined
def place_of(rows, r):
    """Bytes from the sequence's first new token to row ``r`` of ``rows``, in the queries and in the output."""
    row = rows.first + r
    return (row // rows.group * rows.width + row % rows.group * rows.head_dim) * 4


@inlined
def gather_queries(elements, rows, queries, scale):
    """Copies the rows times ``scale``, and zeros up to a multiple of 16."""
    whole, pitch, factors = rows.head_dim & ~15, padded(rows.head_dim), splat(scale)
    for r in range(rows.count):
        source, target = rows.q + place_of(rows, r), queries + r * pitch * elements.factor_bytes
        for i in range(0, whole, 16):
            elements.put(target + i * elements.factor_bytes, load(source + i * 4) * factors)
        if whole < rows.head_dim:
            rest = load_first(source + whole * 4, rows.head_dim - whole) * factors
            elements.put(target + whole * elements.factor_bytes, rest)


@inlined
def parts_of(length, page_size):
    """Parts of a sequence."""
    return (blocks_of(length, page_size) + PART_BLOCKS - 1) // PART_BLOCKS


@inlined
def divided_into(new, length, group, page_size):
    """How many chunks the rows of a sequence and key head are divided into by position: a single token's alone."""
    return parts_of(length, page_size) if new == 1 and group <= ROWS else 1


@inlined
def attend(elements, head, rows, scale, records, first, stop, follow, follow_length, work):
    """Sums what ``rows`` see of the parts ``first`` … ``stop`` - 1, each row in its record.

    The head ``follow``, of a sequence of ``follow_length``, is probably what this thread reads next.
    """
    pitch, size, units = padded(rows.head_dim), record_bytes(rows.head_dim), (rows.head_dim + UNIT - 1) // UNIT
    queries, scores = work, work + ROWS * pitch * 4
    entries, later = scores + ROWS * SCORES, scores + ROWS * SCORES + BLOCKS * ENTRY
    gather_queries(elements, rows, queries, scale)
    length = seen_by(rows, rows.count - 1)
    end = min(stop * PART_BLOCKS, blocks_of(length, head.page_size))
    target = records
    clear(rows, target)
    for span in range(first * PART_BLOCKS, end, BLOCKS):
        count = min(BLOCKS, end - span)
        whole = find_blocks(entries, span, head, length, follow, follow_length) == BLOCKS * 16
        elements.times_keys(rows.count, queries, pitch * elements.factor_bytes, entries, count, units, scores, SCORES)
        behind = load_i64(entries + (BLOCKS - 1) * ENTRY + POSITION) + 16
        for r in range(rows.count):
            seen, place, record = seen_by(rows, r), scores + r * SCORES, target + r * size
            if whole and seen >= behind:
                soften_all(elements, place, record, pitch)
            else:
                soften(elements, entries, count, place, seen, record, pitch)
        elements.times_values(rows.count, scores, SCORES, entries, count, pitch, target + RECORD_HEAD, size)
        if (span + BLOCKS) % PART_BLOCKS == 0 or span + BLOCKS >= end:  # the end of a part
            if target != records:
                for r in range(rows.count):
                    if position_of(span & -PART_BLOCKS, head.page_size) < seen_by(rows, r):
                        merge(records + r * size, later + r * size, size)
            target = later
            clear(rows, target)


@inlined
def divided(lens, kv_lens, sequences, kv_heads, group, page_size):
    """Chunks of all sequences that are divided by position."""
    chunks = 0
    for sequence in range(sequences):
        parts = divided_into(load_i32(lens + sequence * 4), load_i32(kv_lens + sequence * 4), group, page_size)
        if parts > 1:
            chunks += parts * kv_heads
    return chunks


@inlined
def join(records, lens, kv_lens, starts, y, sequences, kv_heads, group, width, head_dim, page_size, most_parts):
    """Merges the parts of every sequence that was divided, and writes its rows."""
    size = record_bytes(head_dim)
    for sequence in range(sequences):
        parts = divided_into(load_i32(lens + sequence * 4), load_i32(kv_lens + sequence * 4), group, page_size)
        if parts > 1:
            for row in range(kv_heads * group):
                first = records + ((sequence * kv_heads + row // group) * most_parts * group + row % group) * size
                for part in range(1, parts):
                    merge(first, first + part * group * size, size)
                finish(first, y + (load_i32(starts + sequence * 4) * width + row * head_dim) * 4, head_dim)


@PerKVType
def attention(operands, thread, threads):
    width, sequences, table_width = dim(operands, D), dim(operands, S), dim(operands, B)
    q, kv, y, tables = tensor(operands, Q), tensor(operands, KV), tensor(operands, Y), tensor(operands, TABLES)
    starts, lens, kv_lens = tensor(operands, STARTS), tensor(operands, LENS), tensor(operands, KV_LENS)
    head_dim, kv_heads = i64_attr(operands, HEAD_DIM), i64_attr(operands, KV_HEADS)
    page_size, scale = i64_attr(operands, PAGE_SIZE), np.float32(f64_attr(operands, SCALE) * LOG2_E)
    group = width // head_dim // kv_heads
    work, partial = scratch(operands, thread), tensor(operands, PARTIAL)
    block, size = padded(head_dim) * ELEMENTS.column_bytes, record_bytes(head_dim)
    half = blocks_in(page_size) * block
    most_parts = (table_width * blocks_in(page_size) + PART_BLOCKS - 1) // PART_BLOCKS
    shared = divided(lens, kv_lens, sequences, kv_heads, group, page_size)
    sequence, before = 0, 0  # chunks of all sequences before this one
    chunk = claim(operands)
    while sequence < sequences:
        new, length = load_i32(lens + sequence * 4), load_i32(kv_lens + sequence * 4)
        pieces, parts = (new * group + ROWS - 1) // ROWS, divided_into(new, length, group, page_size)
        if chunk >= before + pieces * parts * kv_heads:
            before += pieces * parts * kv_heads
            sequence += 1
            continue
        index, member = (chunk - before) // kv_heads, (chunk - before) % kv_heads
        at = (load_i32(starts + sequence * 4) * width + member * group * head_dim) * 4
        table = tables + sequence * table_width * 4
        head = Head(kv + member * 2 * half, 2 * half * kv_heads, half, table, page_size, block)
        first = 0 if parts > 1 else (pieces - 1 - index) * ROWS  # the longest first
        rows = Rows(q + at, y + at, first, min(ROWS, new * group - first), group, width, length - new, head_dim)
        if parts > 1:
            begin, end = index, index + 1
            records = partial + ((sequence * kv_heads + member) * most_parts + index) * group * size
        else:
            begin, end, records = 0, parts_of(seen_by(rows, rows.count - 1), page_size), work
        next_sequence, next_member = sequence + (member + threads) // kv_heads, (member + threads) % kv_heads
        follow, follow_length = head, 0
        if new == 1 and next_sequence < sequences:
            follow_length = load_i32(kv_lens + next_sequence * 4)
            next_table = tables + next_sequence * table_width * 4
            follow = Head(kv + next_member * 2 * half, 2 * half * kv_heads, half, next_table, page_size, block)
        attend(ELEMENTS, head, rows, scale, records, begin, end, follow, follow_length, work + ROWS * size)
        if parts > 1:
            if fetch_add(load_i64(operands) + 8, 1) == shared - 1:  # this was the last of them to be done
                join(
                    partial,
                    lens,
                    kv_lens,
                    starts,
                    y,
                    sequences,
                    kv_heads,
                    group,
                    width,
                    head_dim,
                    page_size,
                    most_parts,
                )
        else:
            for r in range(rows.count):
                finish(records + r * size, rows.y + place_of(rows, r), head_dim)
        chunk = claim(operands)
