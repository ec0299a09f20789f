"""From logits to tokens: a row is a chunk of work."""

from __future__ import annotations

import numpy as np

from llmcore.native.abi import claim, dim, inlined, load_f32, native_kernel, scratch, store_f32, store_i32, tensor
from llmcore.native.exponential import exp
from llmcore.native.vector import (
    any_above,
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
SUM_LOGITS, HIGH, TOTAL, SUM_R, SUM_V = operands_of("exp_sum")
SAMPLE_PROBS, U, SAMPLE_IDS, SAMPLE_R, SAMPLE_V = operands_of("sample")

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
def scale(y, size, divisor):
    """Divides ``size`` float32 by ``divisor``; leaves them where it is 0, the sum of nothing.

    It multiplies by the inverse, a fifth of the time, unless that is infinite.
    """
    if divisor == 0:
        return
    inverse = np.float32(1) / divisor
    inverses, divisors = splat(inverse), splat(divisor)
    whole = size & ~15
    if inverse > FINITE:
        for i in range(0, whole, 16):
            store(y + i * 4, load(y + i * 4) / divisors)
    else:
        for i in range(0, whole, 16):
            store(y + i * 4, load(y + i * 4) * inverses)
    if whole < size:
        store_first(y + whole * 4, load_first(y + whole * 4, size - whole) / divisors, size - whole)


@inlined
def chance(address):
    """The probability at an address, 0 for NaN."""
    value = load_f32(address)
    return value if value > np.float32(0) else np.float32(0)


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
def power(x, high, factor):
    """``exp((high - x) * factor)``, the difference first: a product of logits may overflow.

    1 for a logit above ``high``, which is infinite; 0 for NaN. ``factor`` is below 0, and finite.
    """
    return exp(larger(high - larger(x, splat(LOWEST)), zeros()) * factor)


@inlined
def highest(x, size):
    """The largest of ``size`` logits as a finite number."""
    return min(max(largest_of(x, size), -FINITE), FINITE)


@native_kernel
def softmax(operands, _thread, _threads):
    rows, vocab = dim(operands, SOFTMAX_R), dim(operands, SOFTMAX_V)
    logits, temperature, probs = tensor(operands, LOGITS), tensor(operands, TEMPERATURE), tensor(operands, PROBS)
    whole = vocab & ~15
    rest = vocab - whole
    row = claim(operands)
    while row < rows:
        x, y = logits + row * vocab * 4, probs + row * vocab * 4
        factors = splat(-min(np.float32(1) / load_f32(temperature + row * 4), FINITE))
        high = splat(highest(x, vocab))
        sums = zeros()
        for i in range(0, whole, 16):
            weights = power(load(x + i * 4), high, factors)
            store(y + i * 4, weights)
            sums = sums + weights
        if rest:
            weights = power(load_first(x + whole * 4, rest), high, factors)
            store_first(y + whole * 4, weights, rest)
            sums = sums + first_or(weights, rest, zeros())
        scale(y, vocab, total(sums))
        row = claim(operands)


@native_kernel
def exp_sum(operands, _thread, _threads):
    rows, vocab = dim(operands, SUM_R), dim(operands, SUM_V)
    logits, highs, totals = tensor(operands, SUM_LOGITS), tensor(operands, HIGH), tensor(operands, TOTAL)
    whole = vocab & ~15
    rest = vocab - whole
    factors = splat(np.float32(-1))
    row = claim(operands)
    while row < rows:
        x = logits + row * vocab * 4
        best = highest(x, vocab)
        high, sums = splat(best), zeros()
        for i in range(0, whole, 16):
            sums = sums + power(load(x + i * 4), high, factors)
        if rest:
            sums = sums + first_or(power(load_first(x + whole * 4, rest), high, factors), rest, zeros())
        store_f32(highs + row * 4, best)
        store_f32(totals + row * 4, total(sums))
        row = claim(operands)


@inlined
def block_sum(x, first, end):
    """The sum in float64 of probabilities ``first`` … ``end``, in four chains of additions."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    if end - first == BLOCK:
        high = zeros()
        for i in range(first, end, 16):
            high = larger(load(x + i * 4), high)
        if not any_above(high, zeros()):
            return 0.0  # most blocks, behind a filter
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
