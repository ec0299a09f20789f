"""The linear ops on packed integer weights: tokens are quantized (:mod:`llmcore_numba.quantize`), then multiplied.

Work is claimed in chunks of some blocks of sixteen rows and up to 128 tokens. ``linear.int4`` is the kernel for weights
packed in 4 bits.
"""

from __future__ import annotations

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
from llmcore.native.vector import load
from llmcore_numba.elementwise import gated
from llmcore_numba.fused import best_of_chunks, note_best
from llmcore_numba.integer import integer_tile
from llmcore_numba.linear import finish
from llmcore_numba.operands import operands_of, workspace_of
from llmcore_numba.packing import COLUMNS, PACKINGS, PLANES, ROWS
from llmcore_numba.quantize import token_bytes
from llmcore_numba.scratch import SHARED, SHARED_BYTES
from llmcore_numba.weights import store_up_to

TOKENS = 4  # of the large tile
TOKEN_CHUNK = 128
SHORTEST, LONGEST, CHUNKS = (
    1 << 14,
    1 << 16,
    6,
)  # bytes of weights in a chunk where tokens are few, and how many there should be

PACKING = PACKINGS["Q8_0"]  # each kernel has its own, with its tiles
NBYTES = PACKING.nbytes
PLANE_COUNT = 1
one_token = integer_tile(PACKING, 1, 1)
four_tokens = integer_tile(PACKING, TOKENS, 1)

X, WEIGHT, BIAS, Y, M, K, N = operands_of("linear")
ADD_X, ADD_RESIDUAL, ADD_WEIGHT, ADD_BIAS, ADD_Y, ADD_M, ADD_K, ADD_N = operands_of("linear_add")
GATE_X, GATE, UP, GATED, GATE_M, GATE_K, GATE_F = operands_of("gate_up_swiglu")
TOP_X, TOP_WEIGHT, IDS, TOP_M, TOP_K, TOP_N = operands_of("classifier_argmax")
FOR_LINEAR, FOR_ADD = workspace_of("linear"), workspace_of("linear_add")
FOR_GATE, FOR_TOP = workspace_of("gate_up_swiglu"), workspace_of("classifier_argmax")


class PerPacking:
    """One kernel for every packing, made of one template: ``kernels.int4_min``.

    Args:
        template: ``f(operands, thread, threads)`` over the global names ``tile``, ``NBYTES`` and ``PLANE_COUNT``.
    """

    def __init__(self, template) -> None:
        self.template = template

    def __getattr__(self, name: str) -> NativeFunction:
        packing = next((packing for packing in PACKINGS.values() if packing.name == name), None)
        if packing is None:
            raise AttributeError(f"{self.template.__name__} has no kernel for {name}")
        planes = PLANES[self.template.__name__]
        tiles = {"one_token": integer_tile(packing, 1, planes), "four_tokens": integer_tile(packing, TOKENS, planes)}
        tile = inlined(specialised(_tile, f"tile_{name}", **tiles))
        constants = {"NBYTES": packing.nbytes, "PLANE_COUNT": planes, "tile": tile}
        kernel = native_kernel(specialised(self.template, f"{self.template.__name__}_{name}", **constants))
        setattr(self, name, kernel)
        return kernel


def _tile(weights, groups, tokens, count, size, out):
    """``out[token, 16 rows]`` for up to four tokens at ``tokens``, ``size`` bytes each; the last may be repeated."""
    if count == 1:
        one_token(weights, groups, tokens, out)
    else:
        last = min(count, TOKENS) - 1
        second, third, fourth = tokens + size, tokens + min(2, last) * size, tokens + min(3, last) * size
        four_tokens(weights, groups, tokens, second, third, fourth, out)


tile = inlined(_tile)


@inlined
def blocks_per_chunk(tokens, blocks, row_bytes):
    """Blocks of sixteen rows in a chunk.

    With few tokens memory takes the time, and it is read fastest in long runs; but each thread should have some.
    """
    if tokens > TOKENS:
        return 1
    return max(1, min(LONGEST, max(SHORTEST, blocks * row_bytes // CHUNKS)) // row_bytes)


@inlined
def multiply(tile, nbytes, planes, operands, thread, tokens, weight, bias, residual, y, rows, inner, outer):
    """``y = residual + x @ weight.T + bias`` for quantized ``tokens``; ``bias`` and ``residual`` may be 0."""
    groups, size, out = inner // COLUMNS, token_bytes(inner, planes), scratch(operands, thread)
    row_bytes, blocks = groups * nbytes, (outer + ROWS - 1) // ROWS
    some = blocks_per_chunk(rows, blocks, row_bytes)
    block_chunks, token_chunks = (blocks + some - 1) // some, (rows + TOKEN_CHUNK - 1) // TOKEN_CHUNK
    chunk = claim(operands)
    while chunk < block_chunks * token_chunks:
        first, begin = chunk % block_chunks * some, chunk // block_chunks * TOKEN_CHUNK
        end = min(begin + TOKEN_CHUNK, rows)
        for block in range(first, min(first + some, blocks)):
            count = min(ROWS, outer - block * ROWS)
            for token in range(begin, end, TOKENS):
                tile(weight + block * row_bytes, groups, tokens + token * size, end - token, size, out)
                for i in range(min(TOKENS, end - token)):
                    at = ((token + i) * outer + block * ROWS) * 4
                    finish(out + i * 64, bias, residual, y, at, block * ROWS, count)
        chunk = claim(operands)


@PerPacking
def linear(operands, thread, _threads):
    rows, inner, outer = dim(operands, M), dim(operands, K), dim(operands, N)
    tokens, weight, bias = tensor(operands, FOR_LINEAR), tensor(operands, WEIGHT), tensor(operands, BIAS)
    multiply(
        tile, NBYTES, PLANE_COUNT, operands, thread, tokens, weight, bias, 0, tensor(operands, Y), rows, inner, outer
    )


@PerPacking
def linear_add(operands, thread, _threads):
    rows, inner, outer = dim(operands, ADD_M), dim(operands, ADD_K), dim(operands, ADD_N)
    tokens, weight, bias = tensor(operands, FOR_ADD), tensor(operands, ADD_WEIGHT), tensor(operands, ADD_BIAS)
    residual, y = tensor(operands, ADD_RESIDUAL), tensor(operands, ADD_Y)
    multiply(tile, NBYTES, PLANE_COUNT, operands, thread, tokens, weight, bias, residual, y, rows, inner, outer)


@PerPacking
def gate_up_swiglu(operands, thread, _threads):
    rows, inner, outer = dim(operands, GATE_M), dim(operands, GATE_K), dim(operands, GATE_F)
    tokens, y = tensor(operands, FOR_GATE), tensor(operands, GATED)
    gate, up = tensor(operands, GATE), tensor(operands, UP)
    groups, size, gates = inner // COLUMNS, token_bytes(inner, PLANE_COUNT), scratch(operands, thread)
    ups = gates + TOKENS * 64
    row_bytes, blocks = groups * NBYTES, (outer + ROWS - 1) // ROWS
    some = blocks_per_chunk(rows, blocks, 2 * row_bytes)
    block_chunks, token_chunks = (blocks + some - 1) // some, (rows + TOKEN_CHUNK - 1) // TOKEN_CHUNK
    chunk = claim(operands)
    while chunk < block_chunks * token_chunks:
        first, begin = chunk % block_chunks * some, chunk // block_chunks * TOKEN_CHUNK
        end = min(begin + TOKEN_CHUNK, rows)
        for block in range(first, min(first + some, blocks)):
            count = min(ROWS, outer - block * ROWS)
            for token in range(begin, end, TOKENS):
                tile(gate + block * row_bytes, groups, tokens + token * size, end - token, size, gates)
                tile(up + block * row_bytes, groups, tokens + token * size, end - token, size, ups)
                for i in range(min(TOKENS, end - token)):
                    at = ((token + i) * outer + block * ROWS) * 4
                    store_up_to(y + at, gated(load(gates + i * 64), load(ups + i * 64)), count)
        chunk = claim(operands)


@PerPacking
def classifier_argmax(operands, thread, _threads):
    rows, inner, outer = dim(operands, TOP_M), dim(operands, TOP_K), dim(operands, TOP_N)
    tokens, weight = tensor(operands, FOR_TOP), tensor(operands, TOP_WEIGHT)
    groups, size, out = inner // COLUMNS, token_bytes(inner, PLANE_COUNT), scratch(operands, thread)
    row_bytes, blocks = groups * NBYTES, (outer + ROWS - 1) // ROWS
    slots = scratch(operands, 0) + SHARED
    most_chunks = max(1, SHARED_BYTES // (8 * max(1, rows)))
    some = max(
        blocks_per_chunk(1, blocks, row_bytes), (blocks + most_chunks - 1) // most_chunks
    )  # so many that the slots fit
    chunks = (blocks + some - 1) // some if rows else 0
    chunk = claim(operands)
    while chunk < chunks:
        mine = slots + chunk * rows * 8
        for token in range(rows):
            store_f32(mine + token * 8, np.float32(-np.inf))
            store_i32(mine + token * 8 + 4, chunk * some * ROWS)
        for block in range(chunk * some, min((chunk + 1) * some, blocks)):
            count = min(ROWS, outer - block * ROWS)
            for token in range(0, rows, TOKENS):
                tile(weight + block * row_bytes, groups, tokens + token * size, rows - token, size, out)
                for i in range(min(TOKENS, rows - token)):
                    note_best(out + i * 64, block * ROWS, count, mine + (token + i) * 8)
        if fetch_add(load_i64(operands) + 8, 1) == chunks - 1:  # this was the last chunk to be done
            best_of_chunks(slots, chunks, rows, tensor(operands, IDS))
        chunk = claim(operands)
