"""What stays of a row of probabilities: a row is a chunk of work, and no vocabulary is ever sorted.

top_k and top_p keep what is not below some probability. Both find it in the same way, digit by digit of its bits (radix
selection): non-negative floats are ordered like the integers with the same bits. A probability that it cannot be below
is found first, with vectors, and selection sees what is not below that: a few hundred values in place of a vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import (
    SCRATCH_BYTES,
    array,
    claim,
    dim,
    f32_from_bits,
    inlined,
    load_f32,
    load_i32,
    native_kernel,
    scratch,
    store_f32,
    tensor,
)
from llmcore.native.vector import (
    any_above,
    at_least,
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
from llmcore_numba.sampling import chance, largest_of, scale

X, LIMIT, Y, R, V = operands_of("top_k")  # and top_p, min_p

DIGITS = ((20, 11), (10, 10), (0, 10))  # shift and width of each, of 31 bits
LARGEST_DIGIT = 0x7F7  # the first of a finite number; those of infinity and NaN are larger
BINS = 2048
LIST = BINS * 8  # of scratch memory: the bins, then the values that selection sees
MOST_LISTED = (SCRATCH_BYTES - LIST) // 4 - 1  # one more is written and not counted
GROUP = 64  # neighbours of which only the largest is looked at first
FEW_OF = 4  # groups for each of the k largest, at least: else most groups hold one of them
SUM_ERROR = np.float32(4e-3)  # larger than what rounding does to sums of float32, up to a million of them


@inlined
def keep(x, y, size, bound):
    """``y = x`` where it is at least ``bound``, else (and for NaN) 0; then scaled to a sum of one."""
    bounds, sums = splat(bound), zeros()
    whole = size & ~15
    rest = size - whole
    for i in range(0, whole, 16):
        kept = at_least(load(x + i * 4), bounds)
        store(y + i * 4, kept)
        sums = sums + kept
    if rest:
        kept = at_least(load_first(x + whole * 4, rest), bounds)
        store_first(y + whole * 4, kept, rest)
        sums = sums + first_or(kept, rest, zeros())
    scale(y, size, total(sums))


@inlined
def select(x, size, limit, by_mass, work):
    """The smallest probability such that all larger ones together number (or weigh: ``by_mass``) less than ``limit``.

    At least the largest one; 0 where none is positive. ``work``: scratch memory for ``BINS`` float64.
    """
    bins = array(work, BINS, np.float64)
    prefix = 0
    above = 0.0  # of all that are larger in the digits so far
    for shift, width in DIGITS:
        bins[: 1 << width] = 0.0
        for i in range(size):
            bits = max(load_i32(x + i * 4), 0)
            if bits >> (shift + width) == prefix:
                bins[bits >> shift & ((1 << width) - 1)] += chance(x + i * 4) if by_mass else 1.0
        digit, found, before = min((1 << width) - 1, LARGEST_DIGIT), 0, above
        chosen = False
        while digit >= 0 and (before < limit or not chosen):
            if bins[digit] > 0.0:
                found, above = digit, before
                before += bins[digit]
                chosen = True
            digit -= 1
        prefix = prefix << width | found
    return f32_from_bits(np.int32(prefix))


@inlined
def gather(x, size, floor, kept):
    """Writes what of ``size`` values is not below ``floor``, which is above 0, and returns how many that are."""
    below = splat(f32_from_bits(np.int32(bits_of(floor) - 1)))
    count = 0
    for first in range(0, size, GROUP):
        end = min(first + GROUP, size)
        if end - first == GROUP and not any_above(group(x + first * 4), below):
            continue
        for i in range(first, end):
            value = load_f32(x + i * 4)
            store_f32(kept + count * 4, value)
            count += value >= floor
    return count


@inlined
def bits_of(value):
    """The bits of a float32 as an integer."""
    return np.float32(value).view(np.int32)


@inlined
def group(x):
    """Lanes whose largest is the largest of :data:`GROUP` values, or 0."""
    high = zeros()
    for i in range(0, GROUP, 16):
        high = larger(load(x + i * 4), high)
    return high


@inlined
def floor_of_count(x, size, k, work):
    """A probability that the ``k``-th largest cannot be below: the ``k``-th largest of groups; 0 for none."""
    groups = size // GROUP
    if groups < k * FEW_OF:
        return np.float32(0)
    for i in range(groups):
        store_f32(work + LIST + i * 4, largest(group(x + i * GROUP * 4)))
    return select(work + LIST, groups, float(k), False, work)


@inlined
def floor_of_mass(x, size, mass):
    """A probability that the last of those that reach ``mass`` cannot be below; 0 for none.

    All that is below ``f`` weighs less than ``f * size``. Where the rest of the whole weighs more than that, what is
    not below ``f`` reaches the mass.
    """
    sums, lowest = zeros(), splat(np.float32(0))
    for i in range(0, size & ~15, 16):
        sums = sums + at_least(load(x + i * 4), lowest)
    return (total(sums) * (np.float32(1) - SUM_ERROR) - mass) / np.float32(size)


@inlined
def bound_of(x, size, limit, by_mass, floor, work):
    """:func:`select` of all that is not below ``floor``."""
    if floor > 0 and size <= MOST_LISTED:
        count = gather(x, size, floor, work + LIST)
        return select(work + LIST, count, limit, by_mass, work)
    return select(x, size, limit, by_mass, work)


@native_kernel
def top_k(operands, thread, _threads):
    rows, vocab = dim(operands, R), dim(operands, V)
    probs, limits, out = tensor(operands, X), tensor(operands, LIMIT), tensor(operands, Y)
    row = claim(operands)
    while row < rows:
        x, y = probs + row * vocab * 4, out + row * vocab * 4
        k = load_i32(limits + row * 4)
        bound = np.float32(0)
        if 0 < k < vocab:
            work = scratch(operands, thread)
            bound = bound_of(x, vocab, float(k), False, floor_of_count(x, vocab, k, work), work)
        keep(x, y, vocab, bound)
        row = claim(operands)


@native_kernel
def top_p(operands, thread, _threads):
    rows, vocab = dim(operands, R), dim(operands, V)
    probs, limits, out = tensor(operands, X), tensor(operands, LIMIT), tensor(operands, Y)
    row = claim(operands)
    while row < rows:
        x, y = probs + row * vocab * 4, out + row * vocab * 4
        p = load_f32(limits + row * 4)
        bound = np.float32(0)
        if p < 1:
            bound = bound_of(x, vocab, float(p), True, floor_of_mass(x, vocab, p), scratch(operands, thread))
        keep(x, y, vocab, bound)
        row = claim(operands)


@native_kernel
def min_p(operands, _thread, _threads):
    rows, vocab = dim(operands, R), dim(operands, V)
    probs, limits, out = tensor(operands, X), tensor(operands, LIMIT), tensor(operands, Y)
    row = claim(operands)
    while row < rows:
        x, y = probs + row * vocab * 4, out + row * vocab * 4
        keep(x, y, vocab, max(load_f32(limits + row * 4), np.float32(0.0)) * largest_of(x, vocab))
        row = claim(operands)
