"""rms_norm: the sum of squares of a group in 16 lanes, then one pass that scales."""

from __future__ import annotations

import math

import numpy as np

from llmcore.native.abi import claim, dim, f64_attr, inlined, native_kernel, tensor
from llmcore.native.vector import fma, load, load_first, splat, store, store_first, total, zeros
from llmcore_numba.operands import operands_of

CHUNK = 4096  # elements, at least one row

X, WEIGHT, Y, M, D, C, EPS = operands_of("rms_norm")


@inlined
def normalise(x, weight, y, size, eps):
    """One group: ``y = x / rms(x) * weight``; ``y`` may be ``x``."""
    whole = size & ~15
    rest = size - whole
    squares = zeros()
    for i in range(0, whole, 16):
        v = load(x + i * 4)
        squares = fma(v, v, squares)
    if rest:
        v = load_first(x + whole * 4, rest)
        squares = fma(v, v, squares)
    scale = splat(np.float32(1.0) / math.sqrt(total(squares) / np.float32(size) + np.float32(eps)))
    for i in range(0, whole, 16):
        store(y + i * 4, load(x + i * 4) * scale * load(weight + i * 4))
    if rest:
        at = whole * 4
        store_first(y + at, load_first(x + at, rest) * scale * load_first(weight + at, rest), rest)


@native_kernel
def rms_norm(operands, _thread, _threads):
    rows, width, size = dim(operands, M), dim(operands, D), dim(operands, C)
    x, weight, y = tensor(operands, X), tensor(operands, WEIGHT), tensor(operands, Y)
    eps = f64_attr(operands, EPS)
    chunk = max(1, CHUNK // width)
    first = claim(operands) * chunk
    while first < rows:
        end = min(first + chunk, rows) * width
        group = first * width
        while group < end:  # range would raise for a step of 0, and code that may raise needs Numba's runtime
            normalise(x + group * 4, weight, y + group * 4, size, eps)
            group += size
        first = claim(operands) * chunk
