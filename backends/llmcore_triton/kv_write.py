"""kv_write: heads of tokens are rows, and a program takes some of them, whatever token they belong to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config
from llmcore_triton.kv_pages import KEY, VALUE, scales_of, sizes, store_heads

ELEMENTS = 4096  # of a program, keys and values each


@triton.jit
def _write(
    k,
    v,
    slots,
    kv,
    scales,
    tokens,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Program: ``ROWS`` heads of ``k`` and ``v``, seen as [tokens · KV_HEADS, HEAD_DIM]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, heads = row // KV_HEADS, (row % KV_HEADS).to(tl.int32)
    mine = token < tokens
    slot = tl.load(slots + token, mask=mine, other=0)
    element = tl.arange(0, DIM)[None, :]
    at = row[:, None] * HEAD_DIM + element
    here = mine[:, None] & (element < HEAD_DIM)
    keys = tl.load(k + at, mask=here, other=0).to(tl.float32)
    store_heads(keys, kv, scales, slot, heads, mine, KEY, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES)
    values = tl.load(v + at, mask=here, other=0).to(tl.float32)
    store_heads(values, kv, scales, slot, heads, mine, VALUE, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES)


def kv_write(
    k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor, *, head_dim: int, page_size: int
) -> None:
    """Stores the heads of every token, ``k`` and ``v`` [T, G], at its slot of ``kv``, as the type of its pages keeps
    them."""
    tokens, kv_heads = k.shape[0], k.shape[1] // head_dim
    if tokens == 0:
        return
    shape = sizes(head_dim, kv_heads, page_size, kv)
    rows = max(1, ELEMENTS // shape["DIM"])
    chosen = config("kv_write", (kv_heads, head_dim), Config({"ROWS": rows}, num_warps=4))
    grid = (triton.cdiv(tokens * kv_heads, chosen.meta["ROWS"]),)
    _write[grid](k, v, slots, kv, scales_of(kv), tokens, **shape, **chosen.options)
