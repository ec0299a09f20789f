"""The linear ops on packed float weights (:mod:`llmcore_numba.float_packing`).

Work is claimed in chunks of some blocks of rows and some tokens. A strip of two blocks stays in the cache while the
tokens of a chunk go by. ``linear.F32`` is the kernel for F32 weights; that of ``BF16_pairs`` multiplies
tokens that :mod:`llmcore_numba.rounding` has rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmcore.native.abi import (
    NativeFunction,
    claim,
    dim,
    fetch_add,
    inlined,
    load_i64,
    native_kernel,
    scratch,
    specialised,
    store_f32,
    store_i32,
    tensor,
)
from llmcore.native.vector import LANES, load
from llmcore_numba.elementwise import gated
from llmcore_numba.float_arithmetic import ARITHMETIC, FACTOR
from llmcore_numba.float_packing import ROWS, VECTORS
from llmcore_numba.float_tile import SHAPE, STRIP, SUMS, WIDTH, float_tile
from llmcore_numba.fused import best_of_chunks, note_best
from llmcore_numba.linear import finish
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.scratch import SHARED, SHARED_BYTES
from llmcore_numba.weights import store_up_to

TOKENS, FEW, TOGETHER = SHAPE  # TOGETHER: vectors
TOKEN_CHUNK = 120  # tokens at most that share a strip of weights
PANEL = 1024  # columns (pairs) of a strip at most: it stays in the second cache
SHORTEST, LONGEST, CHUNKS = 1 << 14, 1 << 16, 6  # bytes of weights in a chunk where tokens are few; how many of them


class Kind(NamedTuple):
    """What kernels are compiled for.

    Attributes:
        tile: :func:`_tile` with tiles of its arithmetic.
        columns: of a factor.
        factors, nbytes: of a vector of packed weights.
    """

    tile: Callable[..., int]
    columns: int
    factors: int
    nbytes: int


KIND = Kind(min, 1, 1, 64)  # each kernel has its own
many = few = one = float_tile(ARITHMETIC["F32"], 1, 1)  # each tile has its own

X, WEIGHT, BIAS, Y, M, K, N = operands_of("linear")
ADD_X, ADD_RESIDUAL, ADD_WEIGHT, ADD_BIAS, ADD_Y, ADD_M, ADD_K, ADD_N = operands_of("linear_add")
GATE_X, GATE, UP, GATED, GATE_M, GATE_K, GATE_F = operands_of("gate_up_swiglu")
TOP_X, TOP_WEIGHT, IDS, TOP_M, TOP_K, TOP_N = operands_of("classifier_argmax")
FOR_LINEAR, FOR_ADD = workspace_of("linear"), workspace_of("linear_add")
FOR_GATE, FOR_TOP = workspace_of("gate_up_swiglu"), workspace_of("classifier_argmax")


class PerArithmetic:
    """One kernel for every arithmetic, made of one template: ``kernels.BF16``.

    Args:
        template: ``f(operands, thread, threads)`` over the global name ``KIND``.
    """

    def __init__(self, template) -> None:
        self.template = template

    def __getattr__(self, name: str) -> NativeFunction:
        if name not in ARITHMETIC:
            raise AttributeError(f"{self.template.__name__} has no kernel for {name}")
        kernel = native_kernel(specialised(self.template, f"{self.template.__name__}_{name}", KIND=_kind(name)))
        setattr(self, name, kernel)
        return kernel


def _kind(name):
    arithmetic = ARITHMETIC[name]
    shapes = {"many": (TOKENS, TOGETHER), "few": (FEW, TOGETHER), "one": (1, VECTORS)}
    tiles = {part: float_tile(arithmetic, *shape) for part, shape in shapes.items()}
    tile = inlined(specialised(_tile, f"tile_{name}", **tiles))
    return Kind(tile, arithmetic.columns, arithmetic.factors, arithmetic.vector_bytes)


def _tile(weights, stride, nbytes, vectors, x, size, tokens, factors, going_on, out):
    """``out[token, vector, 16 rows]`` for up to ``TOKENS`` tokens and all ``vectors`` of a strip; returns how many."""
    last_block = (vectors - 1) // VECTORS
    if tokens == 1:
        for block in range(last_block + 1):
            one(weights + block * stride, 0, 0, x, size, 0, factors, going_on, out + block * VECTORS * SUMS)
        return 1
    for vector in range(0, vectors, TOGETHER):
        at, there = weights + vector // VECTORS * stride + vector % VECTORS * nbytes, out + vector * SUMS
        if tokens > FEW:
            many(at, stride, last_block, x, size, min(tokens, TOKENS) - 1, factors, going_on, there)
        else:
            few(at, stride, last_block, x, size, tokens - 1, factors, going_on, there)
    return min(tokens, TOKENS)


@inlined
def factors_of(kind, inner):
    """Factors of a token of ``inner`` elements."""
    return (inner + kind.columns - 1) // kind.columns


@inlined
def block_bytes(kind, factors):
    """Bytes of a block."""
    return (factors + kind.factors - 1) // kind.factors * kind.nbytes * VECTORS


@inlined
def vectors_left(outer, block):
    """Vectors of a strip that begins with ``block``: those with rows, and no more than it holds."""
    return min(STRIP * VECTORS, (outer - block * ROWS + LANES - 1) // LANES)


@inlined
def strip(kind, weights, stride, vectors, x, tokens, factors, out):
    """``out[token, vector, 16 rows]`` for any number of tokens."""
    size, longest = factors * FACTOR, PANEL if tokens > TOKENS else factors  # few tokens: in the order of memory
    panel = 0
    while panel < factors:
        at, some, token = panel // kind.factors * kind.nbytes * VECTORS, min(longest, factors - panel), 0
        while token < tokens:
            here, left = x + token * size + panel * FACTOR, tokens - token
            there = out + token * WIDTH
            token += kind.tile(weights + at, stride, kind.nbytes, vectors, here, size, left, some, panel, there)
        panel += some


@inlined
def tokens_per_chunk(tokens):
    """About as many for every chunk, and whole tiles of them."""
    chunks = max(1, (tokens + TOKEN_CHUNK - 1) // TOKEN_CHUNK)
    return max(1, ((tokens + chunks - 1) // chunks + TOKENS - 1) // TOKENS) * TOKENS


@inlined
def blocks_per_chunk(tokens, blocks, nbytes):
    """Blocks in a chunk, whole strips: long runs where memory takes the time, but some for each thread."""
    if tokens > TOKENS:
        return STRIP
    wanted = min(LONGEST, max(SHORTEST, blocks * nbytes // CHUNKS)) // nbytes
    return max(1, wanted // STRIP) * STRIP


@inlined
def multiply(kind, operands, thread, x, weight, bias, residual, y, rows, inner, outer):
    """``y = residual + x @ weight.T + bias``; ``bias`` and ``residual`` may be 0, ``y`` may be ``residual``."""
    factors, out = factors_of(kind, inner), scratch(operands, thread)
    stride, blocks = block_bytes(kind, factors), (outer + ROWS - 1) // ROWS
    some, tokens = blocks_per_chunk(rows, blocks, stride), tokens_per_chunk(rows)
    block_chunks, token_chunks = (blocks + some - 1) // some, (rows + tokens - 1) // tokens
    chunk = claim(operands)
    while chunk < block_chunks * token_chunks:
        first, begin = chunk % block_chunks * some, chunk // block_chunks * tokens
        count = min(tokens, rows - begin)
        for block in range(first, min(first + some, blocks), STRIP):
            here, left = x + begin * factors * FACTOR, vectors_left(outer, block)
            strip(kind, weight + block * stride, stride, left, here, count, factors, out)
            for token in range(count):
                for i in range(left):
                    sums, row = out + token * WIDTH + i * SUMS, block * ROWS + i * LANES
                    at = ((begin + token) * outer + row) * 4
                    finish(sums, bias, residual, y, at, row, min(LANES, outer - row))
        chunk = claim(operands)


@PerArithmetic
def linear(operands, thread, _threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    x = tensor(operands, FOR_LINEAR if KIND.columns > 1 else X)
    weight, bias, y = tensor(operands, WEIGHT), tensor(operands, BIAS), tensor(operands, Y)
    multiply(KIND, operands, thread, x, weight, bias, 0, y, rows, inner, outer)


@PerArithmetic
def linear_add(operands, thread, _threads):
    rows, inner, outer = dim(operands, ADD_M), dim(operands, ADD_K), dim(operands, ADD_N)
    x = tensor(operands, FOR_ADD if KIND.columns > 1 else ADD_X)
    weight, bias = tensor(operands, ADD_WEIGHT), tensor(operands, ADD_BIAS)
    residual, y = tensor(operands, ADD_RESIDUAL), tensor(operands, ADD_Y)
    multiply(KIND, operands, thread, x, weight, bias, residual, y, rows, inner, outer)


@PerArithmetic
def gate_up_swiglu(operands, thread, _threads):
    rows, inner, outer = dim(operands, GATE_M), dim(operands, GATE_K), dim(operands, GATE_F)
    x = tensor(operands, FOR_GATE if KIND.columns > 1 else GATE_X)
    gate, up, y = tensor(operands, GATE), tensor(operands, UP), tensor(operands, GATED)
    factors, gates = factors_of(KIND, inner), scratch(operands, thread)
    ups = gates + TOKEN_CHUNK * WIDTH
    stride, blocks = block_bytes(KIND, factors), (outer + ROWS - 1) // ROWS
    some, tokens = blocks_per_chunk(rows, blocks, 2 * stride), tokens_per_chunk(rows)
    block_chunks, token_chunks = (blocks + some - 1) // some, (rows + tokens - 1) // tokens
    chunk = claim(operands)
    while chunk < block_chunks * token_chunks:
        first, begin = chunk % block_chunks * some, chunk // block_chunks * tokens
        count = min(tokens, rows - begin)
        for block in range(first, min(first + some, blocks), STRIP):
            here, left = x + begin * factors * FACTOR, vectors_left(outer, block)
            strip(KIND, gate + block * stride, stride, left, here, count, factors, gates)
            strip(KIND, up + block * stride, stride, left, here, count, factors, ups)
            for token in range(count):
                for i in range(left):
                    sums, row = token * WIDTH + i * SUMS, block * ROWS + i * LANES
                    at = ((begin + token) * outer + row) * 4
                    store_up_to(y + at, gated(load(gates + sums), load(ups + sums)), min(LANES, outer - row))
        chunk = claim(operands)


@PerArithmetic
def classifier_argmax(operands, thread, _threads):
    rows, inner, outer = dim(operands, TOP_M), dim(operands, TOP_K), dim(operands, TOP_N)
    x = tensor(operands, FOR_TOP if KIND.columns > 1 else TOP_X)
    weight, out, slots = tensor(operands, TOP_WEIGHT), scratch(operands, thread), scratch(operands, 0) + SHARED
    factors, blocks = factors_of(KIND, inner), (outer + ROWS - 1) // ROWS
    stride, most_chunks = block_bytes(KIND, factors), max(1, SHARED_BYTES // (8 * max(1, rows)))
    fitting = ((blocks + most_chunks - 1) // most_chunks + STRIP - 1) // STRIP * STRIP  # so many that the slots fit
    some = max(blocks_per_chunk(1, blocks, stride), fitting)
    chunks = (blocks + some - 1) // some if rows else 0
    chunk = claim(operands)
    while chunk < chunks:
        mine = slots + chunk * rows * 8
        for token in range(rows):
            store_f32(mine + token * 8, np.float32(-np.inf))
            store_i32(mine + token * 8 + 4, chunk * some * ROWS)
        for block in range(chunk * some, min((chunk + 1) * some, blocks), STRIP):
            for begin in range(0, rows, TOKEN_CHUNK):
                count = min(TOKEN_CHUNK, rows - begin)
                here, left = x + begin * factors * FACTOR, vectors_left(outer, block)
                strip(KIND, weight + block * stride, stride, left, here, count, factors, out)
                for token in range(count):
                    for i in range(left):
                        sums, row = out + token * WIDTH + i * SUMS, block * ROWS + i * LANES
                        note_best(sums, row, min(LANES, outer - row), mine + (begin + token) * 8)
        if fetch_add(load_i64(operands) + 8, 1) == chunks - 1:  # this was the last chunk to be done
            best_of_chunks(slots, chunks, rows, tensor(operands, IDS))
        chunk = claim(operands)
