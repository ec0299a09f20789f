"""The most probable tokens of a row, for whoever wants to see them: a row is a chunk of work."""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import (
    claim,
    dim,
    i64_attr,
    inlined,
    load_f32,
    load_i32,
    native_kernel,
    scratch,
    store_f32,
    store_i32,
    tensor,
)
from llmcore.native.vector import any_above, larger, load, splat
from llmcore_numba.operands import operands_of
from llmcore_numba.scratch import LONGEST_LIST

LOGITS, IDS, R, V, _N, COUNT = operands_of("largest")
GROUP = 64  # neighbours that are passed over together
LOWEST = np.float32(-np.inf)


@inlined
def insert(value, index, values, ids, held):
    """Puts a value before all that are smaller in a list of ``held``, largest first; the others move by one place."""
    place = held
    while place > 0 and load_f32(values + (place - 1) * 4) < value:
        store_f32(values + place * 4, load_f32(values + (place - 1) * 4))
        store_i32(ids + place * 4, load_i32(ids + (place - 1) * 4))
        place -= 1
    store_f32(values + place * 4, value)
    store_i32(ids + place * 4, index)


@inlined
def any_larger(x, least):
    """Whether any of :data:`GROUP` values is above ``least``; NaN are not."""
    high = splat(LOWEST)
    for i in range(0, GROUP, 16):
        high = larger(load(x + i * 4), high)
    return any_above(high, splat(least))


@inlined
def list_largest(x, size, count, values, ids):
    """Writes the indices of the ``count`` largest; both lists have room for one more."""
    held, least = 0, LOWEST
    for first in range(0, size, GROUP):
        end = min(first + GROUP, size)
        if held == count and end - first == GROUP and not any_larger(x + first * 4, least):
            continue
        for i in range(first, end):
            value = load_f32(x + i * 4)
            value = value if value == value else LOWEST  # noqa: PLR0124  # NaN is not
            if held < count or value > least:
                insert(value, i, values, ids, held)
                held = min(held + 1, count)
                least = load_f32(values + (held - 1) * 4)


@native_kernel
def largest(operands, thread, _threads):
    rows, vocab, count = dim(operands, R), dim(operands, V), i64_attr(operands, COUNT)
    logits, out = tensor(operands, LOGITS), tensor(operands, IDS)
    values = scratch(operands, thread)
    ids = values + (LONGEST_LIST + 1) * 4
    row = claim(operands)
    while row < rows:
        list_largest(logits + row * vocab * 4, vocab, count, values, ids)
        for i in range(count):
            store_i32(out + (row * count + i) * 4, load_i32(ids + i * 4))
        row = claim(operands)
