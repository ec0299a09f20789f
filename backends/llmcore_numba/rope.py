"""rope: the two elements of a pair are loaded before either is stored, so it may run in place."""

from __future__ import annotations

from llmcore.native.abi import claim, dim, i64_attr, inlined, load_f32, load_i32, native_kernel, store_f32, tensor
from llmcore.native.vector import crossed, load, load_twice, store
from llmcore_numba.elementwise import copy
from llmcore_numba.operands import operands_of

CHUNK = 4096  # elements, at least one token

X, POSITIONS, COS, SIN, Y, T, D, _P, F, HEAD_DIM, INTERLEAVED = operands_of("rope")


@inlined
def rotate_pairs(x, y, cos, sin, first, pairs, to_second, to_next):
    """Turns pairs from ``first`` on; ``to_second`` bytes lie between the two of a pair, ``to_next`` between pairs."""
    for f in range(first, pairs):
        c, s = load_f32(cos + f * 4), load_f32(sin + f * 4)
        a, b = load_f32(x + f * to_next), load_f32(x + f * to_next + to_second)
        store_f32(y + f * to_next, a * c - b * s)
        store_f32(y + f * to_next + to_second, b * c + a * s)


@inlined
def rotate_neighbours(x, y, cos, sin, pairs):
    """Turns the pairs of one head, whose two elements are neighbours."""
    whole = pairs & ~7
    for f in range(0, whole, 8):
        v = load(x + f * 8)
        store(y + f * 8, v * load_twice(cos + f * 4) + crossed(v) * load_twice(sin + f * 4))
    rotate_pairs(x, y, cos, sin, whole, pairs, 4, 8)


@inlined
def rotate_halves(x, y, cos, sin, pairs):
    """Turns the pairs of one head, whose second elements follow all first ones."""
    whole, second = pairs & ~15, pairs * 4
    for f in range(0, whole, 16):
        c, s = load(cos + f * 4), load(sin + f * 4)
        a, b = load(x + f * 4), load(x + f * 4 + second)
        store(y + f * 4, a * c - b * s)
        store(y + f * 4 + second, b * c + a * s)
    rotate_pairs(x, y, cos, sin, whole, pairs, second, 4)


@inlined
def rotate_heads(x, y, cos, sin, width, head_dim, pairs, interleaved):
    """Turns all heads of one token; ``cos`` and ``sin`` are those of its position."""
    rest = head_dim - 2 * pairs
    head = 0
    while head < width * 4:
        if interleaved:
            rotate_neighbours(x + head, y + head, cos, sin, pairs)
        else:
            rotate_halves(x + head, y + head, cos, sin, pairs)
        if rest and x != y:
            copy(x + head + 8 * pairs, y + head + 8 * pairs, rest)
        head += head_dim * 4


@native_kernel
def rope(operands, _thread, _threads):
    tokens, width, pairs = dim(operands, T), dim(operands, D), dim(operands, F)
    x, positions, y = tensor(operands, X), tensor(operands, POSITIONS), tensor(operands, Y)
    cos, sin = tensor(operands, COS), tensor(operands, SIN)
    head_dim, interleaved = i64_attr(operands, HEAD_DIM), i64_attr(operands, INTERLEAVED)
    chunk = max(1, CHUNK // width)
    first = claim(operands) * chunk
    while first < tokens:
        for token in range(first, min(first + chunk, tokens)):
            angle, at = load_i32(positions + token * 4) * pairs * 4, token * width * 4
            rotate_heads(x + at, y + at, cos + angle, sin + angle, width, head_dim, pairs, interleaved)
        first = claim(operands) * chunk
