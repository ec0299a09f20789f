"""The greedy token of logits that are never written: products and their largest, in one pass over the weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.linear_plan import plan
from llmcore_triton.linear_tile import product, tile_of

REDUCE = 1024  # tiles that the second kernel looks at at once
NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["M"])  # it changes from step to step
def classifier_kernel(
    x,
    weight,
    best,
    index,
    M,
    N,
    K,
    FORM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``best`` and ``index`` [M, tiles]: each tile's largest logit and the lowest row that has it, -1 for NaN."""
    program = tl.program_id(0)
    rows, tokens = tile_of(program, M, BM, BN)
    logits = product(x, weight, rows, tokens, M, N, K, 0, FORM, BM, BN, BK, SPLIT, EVEN)
    known = (rows < N)[:, None]
    number = logits == logits  # noqa: PLR0124 (not NaN)
    broken = tl.max((known & ~number).to(tl.int32), 0)  # [BM]
    logits = tl.where(known & number, logits, float("-inf"))
    largest = tl.max(logits, 0)
    first = tl.min(tl.where(known & (logits == largest[None, :]), rows[:, None], NOWHERE), 0)
    at = tokens.to(tl.int64) * tl.cdiv(N, BN) + program // tl.cdiv(M, BM)
    tl.store(best + at, largest, mask=tokens < M)
    tl.store(index + at, tl.where(broken > 0, -1, first), mask=tokens < M)


@triton.jit
def choose_kernel(best, index, ids, tiles, BLOCK: tl.constexpr):
    """``ids`` [M]: the best of all tiles of a token, the lowest row among equals; -1 where one had NaN."""
    token = tl.program_id(0)
    inner = tl.arange(0, BLOCK)
    base = token.to(tl.int64) * tiles
    values = tl.full([BLOCK], float("-inf"), tl.float32)
    rows = tl.full([BLOCK], NOWHERE, tl.int32)
    lowest = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, tiles, BLOCK):
        at = start + inner
        value = tl.load(best + base + at, mask=at < tiles, other=float("-inf"))
        row = tl.load(index + base + at, mask=at < tiles, other=NOWHERE)
        lowest = tl.minimum(lowest, row)
        better = (value > values) | ((value == values) & (row < rows))
        values, rows = tl.where(better, value, values), tl.where(better, row, rows)
    largest = tl.max(values, 0)
    found = tl.min(tl.where(values == largest, rows, NOWHERE), 0)
    tl.store(ids + token, tl.where(tl.min(lowest, 0) < 0, -1, found))


def classifier_argmax(x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor) -> None:
    """``ids``: for each token the row of ``weight`` with the largest product, the lowest among equals; -1 for NaN."""
    (m, k), n = x.shape, weight.shape[0]
    if not m:
        return
    how = plan(x, weight, n, split=False)
    tiles = how.programs(1, n)
    best = torch.empty((m, tiles), dtype=torch.float32, device=x.device)
    index = torch.empty((m, tiles), dtype=torch.int32, device=x.device)
    classifier_kernel[(how.programs(m, n),)](x, weight, best, index, m, n, k, FORM=how.form, **how.constants)
    choose_kernel[(m,)](best, index, ids, tiles, BLOCK=REDUCE, num_warps=4)
