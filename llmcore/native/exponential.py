"""The exponential, and what is made of it, over vectors of :mod:`llmcore.native.vector`."""

from __future__ import annotations

import math
from typing import Any

from llmcore.native.memory import emits
from llmcore.native.vector import F32, I32, emit_constant, emit_fma

LOWEST, HIGHEST = -87.3, 88.3  # exp of these is still a normal float32
ROUNDER = 1.5 * 2**23  # a float32 so large, plus a smaller one: its last bits are the integer nearest to that


def emit_exp(builder: Any, x: Any) -> Any:
    """:func:`exp`, as ``2**n * e**r``: ``n`` is the integer nearest to ``x / ln 2``, ``e**r`` a Taylor polynomial.

    Comparisons are the way round that lets NaN through.
    """
    lowest, highest = emit_constant(F32, LOWEST), emit_constant(F32, HIGHEST)
    below = builder.fcmp_ordered("<", x, lowest)
    clamped = builder.select(below, lowest, x)
    clamped = builder.select(builder.fcmp_ordered(">", clamped, highest), highest, clamped)
    rounded = emit_fma(builder, clamped, emit_constant(F32, 1 / math.log(2)), emit_constant(F32, ROUNDER))
    whole = builder.fsub(rounded, emit_constant(F32, ROUNDER))
    high = 0.693359375  # ln 2 in two parts: n * high is exact
    r = emit_fma(builder, whole, emit_constant(F32, -high), clamped)
    r = emit_fma(builder, whole, emit_constant(F32, high - math.log(2)), r)
    value = emit_constant(F32, 1 / math.factorial(7))
    for degree in range(6, -1, -1):
        value = emit_fma(builder, value, r, emit_constant(F32, 1 / math.factorial(degree)))
    n = builder.bitcast(rounded, I32.ir)  # and bits that the shift drops
    scale = builder.shl(builder.add(n, emit_constant(I32, 127)), emit_constant(I32, 23))  # the bits of 2**n
    value = builder.fmul(value, builder.bitcast(scale, F32.ir))
    return builder.select(below, emit_constant(F32, 0.0), value)


@emits(F32, F32)
def exp(builder: Any, x: Any) -> Any:
    """e to the x, within 2 units in the last place; 0 below -87.3, no larger than e**88.3, NaN stays NaN."""
    return emit_exp(builder, x)


POWERS_OF_TWO = (0.69314720, 0.24022648, 0.055503325, 0.0096184374, 0.0013398875, 0.00015353362)
"""``2**r = 1 + r * (…)`` for ``abs(r) <= 1/2``: the polynomial whose largest relative error, 2e-9, is smallest."""


@emits(F32, F32)
def exp2(builder: Any, x: Any) -> Any:
    """2 to the x for x below 127, within 2 units in the last place; 0 from -127 down, NaN stays NaN."""
    lowest = emit_constant(F32, -127.0)
    clamped = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    rounded = builder.fadd(clamped, emit_constant(F32, ROUNDER))
    r = builder.fsub(clamped, builder.fsub(rounded, emit_constant(F32, ROUNDER)))
    value = emit_constant(F32, POWERS_OF_TWO[-1])
    for factor in (*POWERS_OF_TWO[-2::-1], 1.0):
        value = emit_fma(builder, value, r, emit_constant(F32, factor))
    n = builder.bitcast(rounded, I32.ir)
    scale = builder.shl(builder.add(n, emit_constant(I32, 127)), emit_constant(I32, 23))  # 0 for n = -127
    return builder.fmul(value, builder.bitcast(scale, F32.ir))


@emits(F32, F32)
def sigmoid(builder: Any, x: Any) -> Any:
    """``1 / (1 + exp(-x))``, from the exponential of ``-abs(x)``, which cannot overflow."""
    one, positive = emit_constant(F32, 1.0), builder.fcmp_ordered(">", x, emit_constant(F32, 0.0))
    power = emit_exp(builder, builder.select(positive, builder.fneg(x), x))
    return builder.fdiv(builder.select(positive, one, power), builder.fadd(one, power))
