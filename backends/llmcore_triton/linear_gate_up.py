"""The gated activation of an MLP with both of its projections: one kernel for few tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import warps
from llmcore_triton.linear import few_product, many, matrix_product
from llmcore_triton.linear_plan import form_of_weight, plan
from llmcore_triton.linear_tile import product, tile_of

BLOCK = 1024  # elements of a program of gated_kernel


@triton.jit
def gated(gate, up):
    """``silu(gate) * up`` in float32 (Shazeer 2020, arXiv:2002.05202)."""
    return gate * tl.sigmoid(gate) * up


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def gate_up_kernel(
    x,
    gate,
    up,
    y,
    M,
    N,
    K,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``y`` [M, N]; a program makes the same tile of both projections. ``GATE``, ``UP``: the weights' forms."""
    rows, tokens = tile_of(tl.program_id(0), M, BM, BN)
    gates = product(x, gate, rows, tokens, M, N, K, 0, GATE, BM, BN, BK, SPLIT, EVEN)
    ups = product(x, up, rows, tokens, M, N, K, 0, UP, BM, BN, BK, SPLIT, EVEN)
    at = tokens.to(tl.int64)[None, :] * N + rows[:, None]
    known = (rows < N)[:, None] & (tokens < M)[None, :]
    tl.store(y + at, gated(gates, ups).to(y.dtype.element_ty), mask=known)


@triton.jit
def gated_kernel(gate, up, y, size, BLOCK: tl.constexpr):
    """``y`` = ``silu(gate) * up``, element by element; ``y`` may be either of them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + at, mask=at < size, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(y + at, gated(g, u).to(y.dtype.element_ty), mask=at < size)


def gate_up_swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    """``y = silu(x @ gate.T) * (x @ up.T)``; the two may have different formats."""
    (m, k), n = x.shape, y.shape[1]
    if not m:
        return
    if many(x, gate) or many(x, up):
        ups = torch.empty_like(y)
        for weight, out in ((gate, y), (up, ups)):
            one = matrix_product if many(x, weight) else few_product
            one(x, weight, None, None, out)
        gated_kernel[(triton.cdiv(y.numel(), BLOCK),)](y, ups, y, y.numel(), BLOCK=BLOCK, num_warps=warps(BLOCK))
        return
    how = plan(x, gate, n, split=False, sides=2)
    gate_up_kernel[(how.programs(m, n),)](
        x, gate, up, y, m, n, k, GATE=how.form, UP=form_of_weight(up, k), **how.constants
    )
