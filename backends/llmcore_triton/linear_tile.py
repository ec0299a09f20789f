"""Device functions of all linear kernels: which part of the product a program makes, and the making of it.

A program multiplies ``BN`` rows of a weight with ``BM`` tokens over one of ``SPLIT`` parts of the columns. A single
token (``BM`` = 1) is multiplied in registers: every weight is loaded once, 16 bytes a thread, and sums stay apart until
the end. More tokens go through the matrix units, the weight as the left operand: its rows are the wide side, and so few
tokens would leave most of the units idle there. Tile sizes and splits: :mod:`llmcore_triton.linear_plan`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmcore_triton.packed import packed_dot, packed_gemv


@triton.jit
def dense_gemv(x, weight, rows, columns, begin, end, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr):
    """Rows ``rows`` [BN] of a weight of floats times one token: float32 [BN], over the columns ``begin`` … ``end``."""
    inner = tl.arange(0, BK)
    acc = tl.zeros([BN, BK], tl.float32)
    for first in range(begin, end, BK):
        column = first + inner
        at = (rows * columns)[:, None] + column[None, :]
        if EVEN:
            w = tl.load(weight + at)
            v = tl.load(x + column)
        else:
            w = tl.load(weight + at, mask=(column < columns)[None, :], other=0.0)
            v = tl.load(x + column, mask=column < columns, other=0.0)
        acc += w.to(tl.float32) * v.to(tl.float32)[None, :]
    return tl.sum(acc, 1)


@triton.jit
def dense_dot(
    x,
    weight,
    rows,
    tokens,
    columns,
    begin,
    end,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Rows ``rows`` [BN] of a weight of floats times the rows ``tokens`` [BM] of ``x``: float32 [BN, BM]."""
    inner = tl.arange(0, BK)
    acc = tl.zeros([BN, BM], tl.float32)
    for first in range(begin, end, BK):
        column = first + inner
        w_at, v_at = (rows * columns)[:, None] + column[None, :], (tokens * columns)[None, :] + column[:, None]
        if EVEN:
            w = tl.load(weight + w_at)
            v = tl.load(x + v_at)
        else:
            w = tl.load(weight + w_at, mask=(column < columns)[None, :], other=0.0)
            v = tl.load(x + v_at, mask=(column < columns)[:, None], other=0.0)
        acc = tl.dot(w.to(v.dtype), v, acc, input_precision="ieee")
    return acc


@triton.jit
def tile_of(program, M, BM: tl.constexpr, BN: tl.constexpr):
    """Which rows and tokens program ``program`` of a matrix has: int32 [BN] and [BM], which may be beyond the last.

    Programs that share rows are neighbours: the second finds them in the cache.
    """
    blocks = tl.cdiv(M, BM)
    return program // blocks * BN + tl.arange(0, BN), program % blocks * BM + tl.arange(0, BM)


@triton.jit
def product(
    x,
    weight,
    rows,
    tokens,
    M,
    N,
    K,
    part,
    FORM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Part ``part`` of ``weight[rows] @ x[tokens].T``: float32 [BN, BM]; what lies beyond N and M is some number.

    ``FORM``: of a packed weight, 0 for floats; ``EVEN``: parts are whole tiles.
    """
    count = tl.cast(N, tl.int64)
    rows = tl.where(rows < N, rows, 0).to(tl.int64)
    tokens = tl.where(tokens < M, tokens, 0).to(tl.int64)
    length = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    begin = part * length
    end = tl.minimum(begin + length, K)
    if BM == 1 and FORM != 0:
        acc = packed_gemv(x, weight, count, rows, K, begin, end, FORM, BN, BK)[:, None]
    elif BM == 1:
        acc = dense_gemv(x, weight, rows, K, begin, end, BN, BK, EVEN)[:, None]
    elif FORM != 0:
        acc = packed_dot(x, weight, count, rows, tokens, K, begin, end, FORM, BM, BN, BK)
    else:
        acc = dense_dot(x, weight, rows, tokens, K, begin, end, BM, BN, BK, EVEN)
    return acc


@triton.jit
def store_tile(
    acc,
    bias,
    residual,
    y,
    partial,
    rows,
    tokens,
    M,
    N,
    part,
    SPLIT: tl.constexpr,
):
    """Writes ``acc`` [BN, BM] with bias and residual (None where absent) to ``y``, or as a part to ``partial``.

    ``partial`` is float32 [SPLIT, M, N].
    """
    known = (rows < N)[:, None] & (tokens < M)[None, :]
    at = tokens.to(tl.int64)[None, :] * N + rows[:, None]
    if SPLIT > 1:
        tl.store(partial + part.to(tl.int64) * M * N + at, acc, mask=known)
    else:
        if bias is not None:
            acc += tl.load(bias + rows, mask=rows < N, other=0.0)[:, None]
        if residual is not None:
            acc += tl.load(residual + at, mask=known, other=0.0).to(tl.float32)
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=known)


@triton.jit
def finish_tile(
    program,
    bias,
    residual,
    y,
    partial,
    M,
    N,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the parts of elements ``program * BLOCK`` …, always in the same order, and writes them to ``y``."""
    size = tl.cast(M, tl.int64) * N
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(0, SPLIT):
        total += tl.load(partial + part * size + at, mask=known, other=0.0)
    if bias is not None:
        total += tl.load(bias + at % N, mask=known, other=0.0)
    if residual is not None:
        total += tl.load(residual + at, mask=known, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=known)
