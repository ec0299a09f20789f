"""kv_write: one program for each token, all of its heads at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.configs import Config, config
from llmcore_triton.kv_pages import KEY, VALUE, scales_of, sizes, store_heads


@triton.jit
def _write(
    k,
    v,
    slots,
    kv,
    scales,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """``HEADS``: how many heads a program takes; program (token, block of heads)."""
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    element = tl.arange(0, DIM)[None, :]
    at = token.to(tl.int64) * (KV_HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + element
    here = (heads < KV_HEADS)[:, None] & (element < HEAD_DIM)
    keys = tl.load(k + at, mask=here, other=0).to(tl.float32)
    values = tl.load(v + at, mask=here, other=0).to(tl.float32)
    store_heads(keys, kv, scales, slot, heads, KEY, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES)
    store_heads(values, kv, scales, slot, heads, VALUE, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES)


def kv_write(
    k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor, *, head_dim: int, page_size: int
) -> None:
    """Stores the heads of every token, ``k`` and ``v`` [T, G], at its slot of ``kv``, as the type of its pages keeps
    them."""
    tokens, kv_heads = k.shape[0], k.shape[1] // head_dim
    if tokens == 0:
        return
    shape = sizes(head_dim, kv_heads, page_size, kv)
    heads = min(triton.next_power_of_2(kv_heads), max(1, 4096 // shape["DIM"]))
    chosen = config("kv_write", (kv_heads, head_dim), Config({"HEADS": heads}, num_warps=4))
    grid = (tokens, triton.cdiv(kv_heads, chosen.meta["HEADS"]))
    _write[grid](k, v, slots, kv, scales_of(kv), **shape, **chosen.options)
