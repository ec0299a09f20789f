"""The linear ops on packed float weights (:mod:`llmcore_numba.float_packing`).

A unit of work is a strip of two blocks of rows, which stays in the cache while some tokens go by. ``linear.F32`` is
the kernel for F32 weights; that of ``BF16_pairs`` multiplies tokens that are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llmcore.native.abi import (
    dim,
    fetch_add,
    inlined,
    load_i64,
    scratch,
    specialised,
    tensor,
)
from llmcore.native.vector import LANES, load
from llmcore_numba.best import best_of_chunks, clear, note_best
from llmcore_numba.chunks import next_run
from llmcore_numba.elementwise import gated
from llmcore_numba.float_arithmetic import ARITHMETIC, FACTOR
from llmcore_numba.float_packing import ROWS, VECTORS
from llmcore_numba.float_tile import SHAPE, STRIP, SUMS, WIDTH, float_tile
from llmcore_numba.float_tokens import tokens_for
from llmcore_numba.inputs import ALONE, kernels_of
from llmcore_numba.linear import finish
from llmcore_numba.operands import names_of
from llmcore_numba.scratch import SHARED, SHARED_BYTES
from llmcore_numba.weights import load_up_to, store_up_to

TOKENS, FEW, TOGETHER = SHAPE  # TOGETHER: vectors
TOKEN_CHUNK = 120  # tokens at most that share a strip of weights
PANEL = 1024  # columns (pairs) of a strip at most: it stays in the second cache
SLOT_BYTES = 1 << 16  # of a classifier's weights, of which the largest result has a slot


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
tokens_of = tokens_for("linear", "F32", alone=False)  # each op has its own

WEIGHT = BIAS = RESIDUAL = GATE = UP = Y = IDS = M = K = N = F = 0  # operands: each op has its own


def parts_for(op: str, name: str, *, alone: bool) -> dict[str, Any]:
    """What a kernel of ``op`` is made of, by global names; ``alone``: for one token that nobody has prepared yet.

    Args:
        name: of an arithmetic.
    """
    if name not in ARITHMETIC:
        raise AttributeError(f"{op} has no kernel for {name}")
    return {**names_of(op), "KIND": _kind(name, alone), "tokens_of": tokens_for(op, name, alone=alone)}


def _kind(name, alone):
    arithmetic = ARITHMETIC[name]
    shapes = {"many": (TOKENS, TOGETHER), "few": (FEW, TOGETHER), "one": (1, VECTORS)}
    tiles = {part: float_tile(arithmetic, *shape) for part, shape in shapes.items()}
    tile = inlined(specialised(_tile_for_one if alone else _tile, f"tile_{name}{ALONE if alone else ''}", **tiles))
    return Kind(tile, arithmetic.columns, arithmetic.factors, arithmetic.vector_bytes)


def _tile_for_one(weights, stride, _nbytes, vectors, x, size, _tokens, factors, going_on, out):
    """:func:`_tile` for one token."""
    for block in range((vectors - 1) // VECTORS + 1):
        one(weights + block * stride, 0, 0, x, size, 0, factors, going_on, out + block * VECTORS * SUMS)
    return 1


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
def strips_of(outer):
    """Strips that ``outer`` rows are in; the last may be shorter."""
    return (outer + STRIP * ROWS - 1) // (STRIP * ROWS)


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
def multiply_strip(kind, tokens, begin, end, block, weight, bias, residual, y, inner, outer, out):
    """Rows from ``block`` on of ``y = residual + x @ weight.T + bias``, a strip, for tokens ``begin`` … ``end`` - 1."""
    factors = factors_of(kind, inner)
    here, left, stride = tokens + begin * factors * FACTOR, vectors_left(outer, block), block_bytes(kind, factors)
    strip(kind, weight + block * stride, stride, left, here, end - begin, factors, out)
    for token in range(begin, end):
        for i in range(left):
            sums, row = out + (token - begin) * WIDTH + i * SUMS, block * ROWS + i * LANES
            finish(sums, bias, residual, y, (token * outer + row) * 4, row, min(LANES, outer - row))


@inlined
def multiply(kind, tokens_of, operands, thread, threads, weight, bias, residual, y, rows, inner, outer):
    """``y = residual + x @ weight.T + bias``; ``bias`` and ``residual`` may be 0, ``y`` may be ``residual``."""
    out, strips, together = scratch(operands, thread), strips_of(outer), tokens_per_chunk(rows)
    units = strips * ((rows + together - 1) // together)
    first, last, past = next_run(operands, thread, threads, units, 0)
    tokens = tokens_of(operands, thread) if first < last else 0
    while first < last:
        for unit in range(first, last):
            begin = unit // strips * together
            end, block = min(begin + together, rows), unit % strips * STRIP
            multiply_strip(kind, tokens, begin, end, block, weight, bias, residual, y, inner, outer, out)
        first, last, past = next_run(operands, thread, threads, units, past)


def _linear(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, bias, y = tensor(operands, WEIGHT), tensor(operands, BIAS), tensor(operands, Y)
    multiply(KIND, tokens_of, operands, thread, threads, weight, bias, 0, y, rows, inner, outer)


def _linear_add(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, bias, y = tensor(operands, WEIGHT), tensor(operands, BIAS), tensor(operands, Y)
    residual = tensor(operands, RESIDUAL)
    multiply(KIND, tokens_of, operands, thread, threads, weight, bias, residual, y, rows, inner, outer)


def _gate_up_swiglu(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, F)
    gate, up, y = tensor(operands, GATE), tensor(operands, UP), tensor(operands, Y)
    factors, gates = factors_of(KIND, inner), scratch(operands, thread)
    ups, stride = gates + TOKEN_CHUNK * WIDTH, block_bytes(KIND, factors)
    strips, together = strips_of(outer), tokens_per_chunk(rows)
    units = strips * ((rows + together - 1) // together)
    first, last, past = next_run(operands, thread, threads, units, 0)
    x = tokens_of(operands, thread) if first < last else 0
    while first < last:
        for unit in range(first, last):
            block, begin = unit % strips * STRIP, unit // strips * together
            count, here, left = min(together, rows - begin), x + begin * factors * FACTOR, vectors_left(outer, block)
            strip(KIND, gate + block * stride, stride, left, here, count, factors, gates)
            strip(KIND, up + block * stride, stride, left, here, count, factors, ups)
            for token in range(count):
                for i in range(left):
                    sums, row = token * WIDTH + i * SUMS, block * ROWS + i * LANES
                    at = y + ((begin + token) * outer + row) * 4
                    store_up_to(at, gated(load(gates + sums), load(ups + sums)), min(LANES, outer - row))
        first, last, past = next_run(operands, thread, threads, units, past)


def _gate_up_swiglu_alone(operands, thread, threads):
    """For one token: of each run all rows of ``gate``, which wait in ``y``, and then all of ``up``."""
    inner, outer, ups = dim(operands, K), dim(operands, F), scratch(operands, thread)
    gate, up, y = tensor(operands, GATE), tensor(operands, UP), tensor(operands, Y)
    factors, strips = factors_of(KIND, inner), strips_of(outer) * dim(operands, M)
    stride = block_bytes(KIND, factors)
    first, last, past = next_run(operands, thread, threads, strips, 0)
    x = tokens_of(operands, thread) if first < last else 0
    while first < last:
        for index in range(first, last):
            multiply_strip(KIND, x, 0, 1, index * STRIP, gate, 0, 0, y, inner, outer, ups)
        for index in range(first, last):
            block = index * STRIP
            left = vectors_left(outer, block)
            strip(KIND, up + block * stride, stride, left, x, 1, factors, ups)
            for i in range(left):
                row = block * ROWS + i * LANES
                count, at = min(LANES, outer - row), y + row * 4
                store_up_to(at, gated(load_up_to(at, count), load(ups + i * SUMS)), count)
        first, last, past = next_run(operands, thread, threads, strips, past)


def _classifier_argmax(operands, thread, threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    weight, out, slots = tensor(operands, WEIGHT), scratch(operands, thread), scratch(operands, 0) + SHARED
    factors, strips = factors_of(KIND, inner), strips_of(outer)
    stride, most_chunks = block_bytes(KIND, factors), max(1, SHARED_BYTES // (8 * max(1, rows)))
    some = max(SLOT_BYTES // (STRIP * stride), (strips + most_chunks - 1) // most_chunks, 1)  # so that the slots fit
    chunks = (strips + some - 1) // some if rows else 0
    chunk, end, past = next_run(operands, thread, threads, chunks, 0)
    x = tokens_of(operands, thread) if chunk < end else 0
    while chunk < end:
        mine = slots + chunk * rows * 8
        for token in range(rows):
            clear(mine + token * 8, chunk * some * STRIP * ROWS)
        for index in range(chunk * some, min((chunk + 1) * some, strips)):
            block = index * STRIP
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
        chunk += 1
        if chunk == end:
            chunk, end, past = next_run(operands, thread, threads, chunks, past)


linear = kernels_of("linear", _linear, parts_for)
linear_add = kernels_of("linear_add", _linear_add, parts_for)
gate_up_swiglu = kernels_of("gate_up_swiglu", _gate_up_swiglu, parts_for, _gate_up_swiglu_alone)
rms_norm_gate_up_swiglu = kernels_of("rms_norm_gate_up_swiglu", _gate_up_swiglu, parts_for, _gate_up_swiglu_alone)
classifier_argmax = kernels_of("classifier_argmax", _classifier_argmax, parts_for)
