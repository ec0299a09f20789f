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


@emits(F32, F32)
def sigmoid(builder: Any, x: Any) -> Any:
    """``1 / (1 + exp(-x))``, from the exponential of ``-abs(x)``, which cannot overflow."""
    one, positive = emit_constant(F32, 1.0), builder.fcmp_ordered(">", x, emit_constant(F32, 0.0))
    power = emit_exp(builder, builder.select(positive, builder.fneg(x), x))
    return builder.fdiv(builder.select(positive, one, power), builder.fadd(one, power))
