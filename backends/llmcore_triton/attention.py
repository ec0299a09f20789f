"""Attention over a ragged batch: FlashAttention-2 (Dao 2023, arXiv:2307.08691) over a paged cache, for prefill, its
chunks, and steps in which decode goes along.

A program takes a block of one sequence's new tokens with all query heads of a key head (GQA): its rows are pairs
(token, query head). Sequences begin at blocks of their own, so a grid of ``T // block + S`` programs holds them all,
whatever their lengths; a program finds its sequence by a binary search over ``query_starts``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llmcore_triton.attention_decode import attention_decode, fitting, head_fits, one_each
from llmcore_triton.attention_step import LOG2E, attend, mean
from llmcore_triton.configs import Config, config
from llmcore_triton.device import INTERPRETING, target
from llmcore_triton.kv_pages import load_pages, scales_of, sizes

__all__ = ["attention", "attention_decode", "head_fits", "one_each"]


@triton.jit
def first_block(query_starts, sequence, TOKENS: tl.constexpr):
    """The first of the blocks of ``sequence``; the next one's is at least ``cdiv(query_len, TOKENS)`` further on."""
    return tl.load(query_starts + sequence) // TOKENS + sequence


@triton.jit
def find_sequence(query_starts, sequences, block, TOKENS: tl.constexpr):
    """The last sequence whose blocks begin at ``block`` or before."""
    low = 0
    high = sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        before = first_block(query_starts, middle, TOKENS) <= block
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    return low


@triton.jit(do_not_specialize=["sequences", "width"])
def _attention(
    q,
    query_starts,
    query_lens,
    kv_lens,
    block_tables,
    kv,
    scales,
    y,
    sequences,
    width,
    scale,
    SHARING: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Program (block, key head): ``TOKENS`` new tokens of one sequence, ``SHARING`` query heads of each.

    The last blocks run first: in a causal prefill they are the longest, and short ones fill the gaps that they leave.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = find_sequence(query_starts, sequences, block, TOKENS)
    first = (block - first_block(query_starts, sequence, TOKENS)) * TOKENS
    count = tl.load(query_lens + sequence)
    if first >= count:
        return
    length = tl.load(kv_lens + sequence)
    row = tl.arange(0, BLOCK_M)
    token = first + row // SHARING  # of the sequence's new ones
    mine = (row < TOKENS * SHARING) & (token < count)
    index = (tl.load(query_starts + sequence) + token).to(tl.int64)
    query_head = index * (KV_HEADS * SHARING) + head * SHARING + row % SHARING  # [BLOCK_M]
    element = tl.arange(0, DIM)[None, :]
    here = mine[:, None] & (element < HEAD_DIM)
    queries = tl.load(q + query_head[:, None] * HEAD_DIM + element, mask=here, other=0)
    total = tl.zeros([BLOCK_M, DIM], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    past = length - count
    visible = past + token + 1  # [BLOCK_M]
    table = block_tables + sequence.to(tl.int64) * width
    whole = (past + first + 1) // BLOCK_N * BLOCK_N  # every row sees all of these
    pages = load_pages(table, 0, length, BLOCK_N, PAGE_SIZE)
    for at in range(0, whole, BLOCK_N):
        total, largest, weight, pages = attend(
            *(queries, total, largest, weight, pages, visible, scale, kv, scales, table, head, at, length),
            *(False, False, BLOCK_N, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES),
        )
    for at in range(whole, past + tl.minimum(first + TOKENS, count), BLOCK_N):
        total, largest, weight, pages = attend(
            *(queries, total, largest, weight, pages, visible, scale, kv, scales, table, head, at, length),
            *(True, False, BLOCK_N, HEAD_DIM, DIM, KV_HEADS, PAGE_SIZE, HEAD_STRIDE, SCALES),
        )
    out = mean(total, weight).to(y.dtype.element_ty)
    tl.store(y + query_head[:, None] * HEAD_DIM + element, out, mask=here)


def attention_config(head_dim: int, sharing: int, dtype: torch.dtype, kv: torch.Tensor) -> Config:
    """Tiles and launch of :func:`_attention`.

    In float32 nothing runs on tensor cores, and tiles are small. Before Hopper each warp keeps the keys of a block in
    registers: those made of int8 codes come on top of the codes, and leave room for less else.
    """
    if INTERPRETING:
        return Config({"BLOCK_M": 16, "BLOCK_N": 32})
    device = target()
    large = head_dim > 128
    if dtype == torch.float32:
        default = Config({"BLOCK_M": 32, "BLOCK_N": 16 if large else 32}, num_warps=4, num_stages=1)
    elif device.cuda and device.shared > 200_000:  # Hopper and the large Blackwell: units for whole warp groups
        default = Config({"BLOCK_M": 128, "BLOCK_N": 32 if large else 64}, num_warps=8, num_stages=3)
    elif device.cuda and kv.dtype == torch.int8:
        default = Config({"BLOCK_M": 64, "BLOCK_N": 16 if large else 32}, num_warps=4, num_stages=3)
    elif device.cuda:
        default = Config({"BLOCK_M": 128, "BLOCK_N": 16 if large else 32}, num_warps=8, num_stages=3)
    else:
        default = Config({"BLOCK_M": 128, "BLOCK_N": 16 if large else 32}, num_warps=4, num_stages=1)
    fitted = fitting(default, default.meta["BLOCK_M"], head_dim, dtype, kv)
    return config(f"attention_{str(kv.dtype).removeprefix('torch.')}", (head_dim, sharing), fitted)


def attention(
    q: torch.Tensor,
    query_starts: torch.Tensor,
    query_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    block_tables: torch.Tensor,
    kv: torch.Tensor,
    y: torch.Tensor,
    *,
    head_dim: int,
    kv_heads: int,
    page_size: int,
    scale: float,
) -> None:
    """Attends from each sequence's new rows of ``q`` [T, H · head_dim] to its tokens up to them, over its pages.

    ``query_starts`` must not fall from one sequence to the next.
    """
    sequences, width = block_tables.shape
    if q.shape[0] == 0:
        return
    sharing = q.shape[1] // head_dim // kv_heads
    chosen = attention_config(head_dim, sharing, q.dtype, kv)
    rows = max(chosen.meta["BLOCK_M"], triton.next_power_of_2(sharing))
    tokens = rows // sharing
    _attention[(q.shape[0] // tokens + sequences, kv_heads)](
        *(q, query_starts, query_lens, kv_lens, block_tables, kv, scales_of(kv), y, sequences, width, scale * LOG2E),
        SHARING=sharing,
        TOKENS=tokens,
        **sizes(head_dim, kv_heads, page_size, kv),
        **{**chosen.options, "BLOCK_M": rows},
    )
