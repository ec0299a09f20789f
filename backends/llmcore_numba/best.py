"""The largest of many sums and where it is, found piece by piece; NaN is larger than all, and told apart at the end.

A slot is 8 bytes: the largest so far (float32) and its row (int32).
"""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import inlined, load_f32, load_i32, store_f32, store_i32
from llmcore.native.vector import any_above_or_nan, load, splat

SLOT = 8
NONE = -1  # in place of a row, where a sum was NaN


@inlined
def clear(slot, first):
    """Nothing yet: should no sum be above minus infinity, ``first`` is the row."""
    store_f32(slot, np.float32(-np.inf))
    store_i32(slot + 4, first)


@inlined
def note_best(sums, first, count, slot):
    """Keeps in ``slot`` the largest of ``count`` sums of rows from ``first``, the first among equals.

    NaN, once there, stays: nothing is larger.
    """
    best = load_f32(slot)
    for begin in range(0, count, 16):
        if begin + 16 <= count and not any_above_or_nan(load(sums + begin * 4), splat(best)):
            continue  # as nearly always
        for row in range(begin, min(begin + 16, count)):
            value = load_f32(sums + row * 4)
            if value > best or np.isnan(value):
                best = value
                store_f32(slot, value)
                store_i32(slot + 4, first + row)


@inlined
def row_of(slot):
    """The row that a slot has found, :data:`NONE` for NaN."""
    return np.int32(NONE) if np.isnan(load_f32(slot)) else load_i32(slot + 4)


@inlined
def best_of_chunks(slots, chunks, tokens, ids):
    """The best of every token's slots, one for each chunk: slots, changed here, are ``[chunk][token]``."""
    for token in range(tokens):
        first = slots + token * SLOT
        for chunk in range(1, chunks):
            other = slots + (chunk * tokens + token) * SLOT
            value = load_f32(other)
            if value > load_f32(first) or np.isnan(value):
                store_f32(first, value)
                store_i32(first + 4, load_i32(other + 4))
        store_i32(ids + token * 4, row_of(first))
