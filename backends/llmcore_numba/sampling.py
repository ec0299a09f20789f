"""From logits to tokens: a row is a chunk of work, and no vocabulary is ever sorted.

top_k and top_p keep what is not below some probability. Both find it in the same way, digit by digit of its bits (radix
selection): non-negative floats are ordered like the integers with the same bits.
"""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import (
    array,
    claim,
    dim,
    f32_from_bits,
    inlined,
    load_f32,
    load_i32,
    native_kernel,
    scratch,
    store_i32,
    tensor,
)
from llmcore.native.exponential import exp
from llmcore.native.vector import (
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
from llmcore_numba.best import clear, note_best, row_of
from llmcore_numba.operands import operands_of

ARGMAX_LOGITS, ARGMAX_IDS, ARGMAX_R, ARGMAX_V = operands_of("argmax")
LOGITS, TEMPERATURE, PROBS, SOFTMAX_R, SOFTMAX_V = operands_of("softmax")
X, LIMIT, Y, R, V = operands_of("top_k")  # and top_p, min_p
SAMPLE_PROBS, U, SAMPLE_IDS, SAMPLE_R, SAMPLE_V = operands_of("sample")

DIGITS = ((20, 11), (10, 10), (0, 10))  # shift and width of each, of 31 bits
LARGEST_DIGIT = 0x7F7  # the first of a finite number; those of infinity and NaN are larger
BINS = 2048
BLOCK = 256  # probabilities that sample() sums at a time
LOWEST = np.float32(-np.inf)
FINITE = np.float32(3.4028235e38)  # the largest


@inlined
def largest_of(x, size):
    """The largest of ``size`` float32; NaN are passed over."""
    lowest = splat(LOWEST)
    high = lowest
    whole = size & ~15
    for i in range(0, whole, 16):
        high = larger(load(x + i * 4), high)
    if whole < size:
        high = larger(first_or(load_first(x + whole * 4, size - whole), size - whole, lowest), high)
    return largest(high)


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
def scale(y, size, divisor):
    """Divides ``size`` float32 by ``divisor``; leaves them where it is 0, the sum of nothing."""
    if divisor == 0:
        return
    divisors = splat(divisor)
    whole = size & ~15
    for i in range(0, whole, 16):
        store(y + i * 4, load(y + i * 4) / divisors)
    if whole < size:
        store_first(y + whole * 4, load_first(y + whole * 4, size - whole) / divisors, size - whole)


@inlined
def chance(address):
    """The probability at an address, 0 for NaN."""
    value = load_f32(address)
    return value if value > np.float32(0) else np.float32(0)


@inlined
def bound_of(x, size, limit, by_mass, work):
    """The smallest probability such that all larger ones together number (or weigh: ``by_mass``) less than ``limit``.

    At least the largest one; 0 where none is positive. ``work``: scratch memory of ``BINS`` float64.
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


@native_kernel
def argmax(operands, thread, _threads):
    rows, vocab = dim(operands, ARGMAX_R), dim(operands, ARGMAX_V)
    logits, ids = tensor(operands, ARGMAX_LOGITS), tensor(operands, ARGMAX_IDS)
    slot = scratch(operands, thread)
    row = claim(operands)
    while row < rows:
        clear(slot, 0)
        note_best(logits + row * vocab * 4, 0, vocab, slot)
        store_i32(ids + row * 4, row_of(slot))
        row = claim(operands)


@inlined
def power(x, high, temperature):
    """``exp((x - high) / temperature)``, the difference first: a quotient of logits may overflow.

    1 for a logit above ``high``, which is infinite; 0 for NaN. ``temperature`` is negated.
    """
    return exp(larger(high - larger(x, splat(LOWEST)), zeros()) / temperature)


@native_kernel
def softmax(operands, _thread, _threads):
    rows, vocab = dim(operands, SOFTMAX_R), dim(operands, SOFTMAX_V)
    logits, temperature, probs = tensor(operands, LOGITS), tensor(operands, TEMPERATURE), tensor(operands, PROBS)
    whole = vocab & ~15
    rest = vocab - whole
    row = claim(operands)
    while row < rows:
        x, y = logits + row * vocab * 4, probs + row * vocab * 4
        divisors = splat(-load_f32(temperature + row * 4))
        high = splat(min(max(largest_of(x, vocab), -FINITE), FINITE))
        sums = zeros()
        for i in range(0, whole, 16):
            weights = power(load(x + i * 4), high, divisors)
            store(y + i * 4, weights)
            sums = sums + weights
        if rest:
            weights = power(load_first(x + whole * 4, rest), high, divisors)
            store_first(y + whole * 4, weights, rest)
            sums = sums + first_or(weights, rest, zeros())
        scale(y, vocab, total(sums))
        row = claim(operands)


@native_kernel
def top_k(operands, thread, _threads):
    rows, vocab = dim(operands, R), dim(operands, V)
    probs, limits, out = tensor(operands, X), tensor(operands, LIMIT), tensor(operands, Y)
    row = claim(operands)
    while row < rows:
        x, y = probs + row * vocab * 4, out + row * vocab * 4
        k = load_i32(limits + row * 4)
        bound = bound_of(x, vocab, float(k), False, scratch(operands, thread)) if 0 < k < vocab else np.float32(0.0)
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
        bound = bound_of(x, vocab, float(p), True, scratch(operands, thread)) if p < 1 else np.float32(0.0)
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


@inlined
def block_sum(x, first, end):
    """The sum in float64 of probabilities ``first`` … ``end``, in four chains of additions."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = first + ((end - first) & ~3)
    for i in range(first, whole, 4):
        a += chance(x + i * 4)
        b += chance(x + i * 4 + 4)
        c += chance(x + i * 4 + 8)
        d += chance(x + i * 4 + 12)
    for i in range(whole, end):
        a += chance(x + i * 4)
    return (a + b) + (c + d)


@inlined
def draw(x, size, u):
    """The first index whose cumulative probability exceeds ``u`` of the whole: first its block, then within.

    0 where the whole is nothing.
    """
    whole = 0.0
    for first in range(0, size, BLOCK):
        whole += block_sum(x, first, min(first + BLOCK, size))
    target = u * whole
    reached, last = 0.0, 0  # the last possible index so far: rounding may leave a block's own sum short of the target
    for first in range(0, size, BLOCK):
        end = min(first + BLOCK, size)
        within = block_sum(x, first, end)
        if reached + within > target:
            running = reached
            for i in range(first, end):
                p = chance(x + i * 4)
                running += p
                if p > 0:
                    last = i
                    if running > target:
                        break
            return last
        reached += within
    return last


@native_kernel
def sample(operands, _thread, _threads):
    rows, vocab = dim(operands, SAMPLE_R), dim(operands, SAMPLE_V)
    probs, us, ids = tensor(operands, SAMPLE_PROBS), tensor(operands, U), tensor(operands, SAMPLE_IDS)
    row = claim(operands)
    while row < rows:
        store_i32(ids + row * 4, draw(probs + row * vocab * 4, vocab, load_f32(us + row * 4)))
        row = claim(operands)
