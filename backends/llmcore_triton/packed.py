"""Device functions over packed weights: their products with a token, with many, and their values.

:mod:`llmcore_triton.packing` describes the layout. Codes become floats without a conversion instruction: or-ed into the
mantissa of 2**23, a field of a word is a float from which 2**23 is subtracted, exactly. A field that does not begin at
bit 0 comes out times a power of two, which its factor is divided by. So a weight costs three instructions or so, of
which two are arithmetic, where conversions would bound codes of 4 bits below the memory's speed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmcore_triton import packing

EIGHT, HALVES = tl.constexpr(packing.EIGHT), tl.constexpr(packing.HALVES)
SMALL, MINIMA = tl.constexpr(packing.SMALL), tl.constexpr(packing.MINIMA)
UNIT = tl.constexpr(packing.UNIT)


@triton.jit
def magic_of(columns):
    """The bits of 2**23. Nobody who compiles knows that ``columns`` is not negative, and so that this is a constant:

    as two constants, mask and magic would be an instruction each; with one of them in a register both are one.
    """
    return 0x4B000000 + (columns >> 31)


@triton.jit
def field(words, magic, F: tl.constexpr, FORM: tl.constexpr):
    """Field ``F`` of ``words`` less the zero, as float32, times the power of two at which it begins in its half."""
    BITS: tl.constexpr = 8 if EIGHT & FORM else 4
    HALF: tl.constexpr = 16 // BITS  # fields of the lower half of a word
    ZERO: tl.constexpr = 128 if EIGHT & FORM else (0 if MINIMA & FORM else 8)
    SHIFT: tl.constexpr = F % HALF * BITS
    if F >= HALF:
        words = words >> 16
    mantissa = words & (((1 << BITS) - 1) << SHIFT)
    return (mantissa | magic).to(tl.float32, bitcast=True) - (8388608.0 + ZERO * (1 << SHIFT))


@triton.jit
def codes_at(weight, rows, unit, known, columns, FORM: tl.constexpr):
    """Words [rows, units, words] of the units ``unit``; zero where a unit is not ``known``."""
    WORDS: tl.constexpr = 8 if EIGHT & FORM else 4
    base = weight.to(tl.pointer_type(tl.int32))
    word = tl.arange(0, WORDS)
    row = rows * (columns // UNIT * WORDS)  # [rows], int64
    at = row[:, None, None] + (unit[:, None] * WORDS + word[None, :])[None, :, :]
    return tl.load(base + at, mask=known[None, :, None], other=0)


@triton.jit
def factors_at(
    weight, count, rows, unit, known, columns, HALF: tl.constexpr, MINIMUM: tl.constexpr, FORM: tl.constexpr
):
    """Scales (or minima) [rows, units], float32, of the groups of the units' half ``HALF``; zero where not ``known``.

    ``count``: rows of the matrix, int64.
    """
    PER_UNIT: tl.constexpr = 2 if HALVES & FORM else 1
    CODES: tl.constexpr = 1 if EIGHT & FORM else 2  # codes in a byte
    groups = columns // UNIT * PER_UNIT  # of a row
    group = (unit * PER_UNIT + HALF)[None, :]
    region = weight + count * (columns // CODES)
    mask = known[None, :]
    if SMALL & FORM:
        supers = columns // 256
        factors = region.to(tl.pointer_type(tl.float16))
        if MINIMUM:
            factors += count * supers
        region += count * (supers * (4 if MINIMA & FORM else 2))
        if MINIMUM:
            region += count * groups
        small = tl.load(region.to(tl.pointer_type(tl.int8)) + (rows * groups)[:, None] + group, mask=mask, other=0)
        factor = tl.load(factors + (rows * supers)[:, None] + group // (8 * PER_UNIT), mask=mask, other=0.0)
        return factor.to(tl.float32) * small.to(tl.float32)
    scales = region.to(tl.pointer_type(tl.float16))
    if MINIMUM:
        scales += count * groups
    return tl.load(scales + (rows * groups)[:, None] + group, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def packed_gemv(x, weight, count, rows, columns, begin, end, FORM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows ``rows`` [BN] of a packed matrix times one token: float32 [BN], over the columns ``begin`` … ``end``."""
    BITS: tl.constexpr = 8 if EIGHT & FORM else 4
    WORDS: tl.constexpr = BITS
    FIELDS: tl.constexpr = 4 if EIGHT & FORM else 8
    GROUPS: tl.constexpr = 2 if HALVES & FORM else 1  # of a unit
    UNITS: tl.constexpr = BK // UNIT
    word = tl.arange(0, WORDS)
    acc = tl.zeros([BN, UNITS], tl.float32)
    magic = magic_of(columns)
    for first in range(begin, end, BK):
        unit = first // UNIT + tl.arange(0, UNITS)
        known = unit < columns // UNIT
        words = codes_at(weight, rows, unit, known, columns, FORM)
        tokens = x + unit[:, None] * UNIT + word[None, :]  # [units, words]
        for half in tl.static_range(0, GROUPS):
            total = tl.zeros([BN, UNITS, WORDS], tl.float32)
            plain = tl.zeros([UNITS, WORDS], tl.float32)
            for f in tl.static_range(half * (FIELDS // GROUPS), (half + 1) * (FIELDS // GROUPS)):
                v = tl.load(tokens + f * WORDS, mask=known[:, None], other=0.0).to(tl.float32)
                if MINIMA & FORM:
                    plain += v
                total += field(words, magic, f, FORM) * (v * (1.0 / (1 << f % (FIELDS // 2) * BITS)))[None, :, :]
            acc += factors_at(weight, count, rows, unit, known, columns, half, False, FORM) * tl.sum(total, 2)
            if MINIMA & FORM:
                minima = factors_at(weight, count, rows, unit, known, columns, half, True, FORM)
                acc += minima * tl.sum(plain, 1)[None, :]
    return tl.sum(acc, 1)


@triton.jit
def values_of(words, magic, scales, minima, F: tl.constexpr, FORM: tl.constexpr):
    """The weights of field ``F``, float32 [rows, units, words], by their groups' scales and minima [rows, units]."""
    POWER: tl.constexpr = 1 << F % (2 if EIGHT & FORM else 4) * (8 if EIGHT & FORM else 4)
    values = field(words, magic, F, FORM) * (scales * (1.0 / POWER))[:, :, None]
    if MINIMA & FORM:
        values += minima[:, :, None]
    return values


@triton.jit
def packed_dot(
    x,
    weight,
    count,
    rows,
    tokens,
    columns,
    begin,
    end,
    FORM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Rows ``rows`` [BN] of a packed matrix times the rows ``tokens`` [BM] of ``x``: float32 [BN, BM].

    Weights are rounded to the tokens' type. A field at a time, so they are never put in their columns' order.
    """
    WORDS: tl.constexpr = 8 if EIGHT & FORM else 4
    FIELDS: tl.constexpr = 4 if EIGHT & FORM else 8
    GROUPS: tl.constexpr = 2 if HALVES & FORM else 1  # of a unit
    UNITS: tl.constexpr = BK // UNIT
    INNER: tl.constexpr = UNITS * WORDS  # columns of a product
    inner = tl.arange(0, INNER)
    acc = tl.zeros([BN, BM], tl.float32)
    magic = magic_of(columns)
    for first in range(begin, end, BK):
        unit = first // UNIT + tl.arange(0, UNITS)
        known = unit < columns // UNIT
        words = codes_at(weight, rows, unit, known, columns, FORM)
        column = first + inner // WORDS * UNIT + inner % WORDS
        for half in tl.static_range(0, GROUPS):
            scales = factors_at(weight, count, rows, unit, known, columns, half, False, FORM)
            minima = scales
            if MINIMA & FORM:
                minima = factors_at(weight, count, rows, unit, known, columns, half, True, FORM)
            for f in tl.static_range(half * (FIELDS // GROUPS), (half + 1) * (FIELDS // GROUPS)):
                values = values_of(words, magic, scales, minima, f, FORM)
                at = (tokens * columns)[None, :] + (column + f * WORDS)[:, None]  # [INNER, BM]
                v = tl.load(x + at, mask=(column < columns)[:, None], other=0.0)
                acc = tl.dot(values.to(v.dtype).reshape(BN, INNER), v, acc, input_precision="ieee")
    return acc


@triton.jit
def packed_values(weight, count, rows, column, columns, FORM: tl.constexpr):
    """Single weights, float32 [R, C]: ``rows`` [R] (int64) at ``column`` [C], which may lie beyond the last: zero.

    For whoever needs some rows in their columns' order: an embedding that shares its table with the classifier.
    """
    BITS: tl.constexpr = 8 if EIGHT & FORM else 4
    WORDS: tl.constexpr = BITS
    ZERO: tl.constexpr = 128 if EIGHT & FORM else (0 if MINIMA & FORM else 8)
    unit, inner = column // UNIT, column % UNIT
    known = column < columns
    base = weight.to(tl.pointer_type(tl.int32)) + (rows * (columns // UNIT * WORDS))[:, None]
    words = tl.load(base + (unit * WORDS + inner % WORDS)[None, :], mask=known[None, :], other=0)
    codes = (words >> (inner // WORDS * BITS)[None, :]) & ((1 << BITS) - 1)
    scales = factors_at(weight, count, rows, unit, known, columns, 0, False, FORM)
    if HALVES & FORM:
        upper = factors_at(weight, count, rows, unit, known, columns, 1, False, FORM)
        scales = tl.where((inner < UNIT // 2)[None, :], scales, upper)
    values = (codes - ZERO).to(tl.float32) * scales
    if MINIMA & FORM:
        minima = factors_at(weight, count, rows, unit, known, columns, 0, True, FORM)
        if HALVES & FORM:
            upper = factors_at(weight, count, rows, unit, known, columns, 1, True, FORM)
            minima = tl.where((inner < UNIT // 2)[None, :], minima, upper)
        values += minima
    return tl.where(known[None, :], values, 0.0)
